"""What Open WebUI 0.12.4 sends, byte for byte as ``test_openwebui.py`` recorded it; it needs no Open WebUI.

Only the key and the port are put in. Each answer is read as that program reads it: the content type it insists
on, a complete JSON object in every line, the fields it subscripts.
"""

from __future__ import annotations

import http.client
import json
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from scripted_model import CALL, WEATHER, WORDS

from llamaman.testing.manager import Manager
from llamaman.testing.wire import Answer

pytestmark = pytest.mark.real("engine")

RECORDED: dict[str, str] = json.loads(
    (Path(__file__).parent / "openwebui_requests.json").read_text(encoding="utf-8")
)


def replay(site: Manager, recorded: str) -> Answer:
    """Send the recorded bytes and read the whole answer."""
    text = recorded.replace("<key>", site.inference_key).replace(":<port>", f":{site.proxy_port}")
    with socket.create_connection(("127.0.0.1", site.proxy_port), timeout=60) as connection:
        connection.sendall(text.encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        body = answer.read()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)


def path_and_body(recorded: str) -> tuple[str, dict[str, Any]]:
    head, _, body = recorded.partition("\r\n\r\n")
    return head.split(" ")[1], json.loads(body) if body else {}


def of(path: str, **wanted: Any) -> list[str]:
    """The names of recorded requests to ``path`` whose bodies have these values."""
    found = []
    for name, recorded in RECORDED.items():
        target, body = path_and_body(recorded)
        if target == path and all(body.get(key) == value for key, value in wanted.items()):
            found.append(name)
    assert found, f"nothing like it was recorded: {path} {wanted}"
    return found


@pytest.fixture
def site_for(site: Manager, request: pytest.FixtureRequest) -> Manager:
    """The manager, which asks for no key where the recorded request has none."""
    if "<key>" not in RECORDED[request.node.callspec.params["name"]]:
        request.getfixturevalue("open_site")
    return site


@pytest.mark.parametrize("name", of("/api/tags"))
def test_the_model_menu_is_filled(site_for: Manager, name: str) -> None:
    answer = replay(site_for, RECORDED[name])
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/json")
    models = [model["model"] for model in answer.json()["models"]]
    assert len(models) == len(set(models)) == 5
    assert all(model["name"] == model["model"] for model in answer.json()["models"])


@pytest.mark.parametrize("name", of("/api/ps"))
def test_loaded_models_tell_when_they_leave(site_for: Manager, name: str) -> None:
    site_for.ask("words", max_tokens=1).answer()
    answer = replay(site_for, RECORDED[name])
    assert answer.headers["content-type"].startswith("application/json")
    (words,) = [model for model in answer.json()["models"] if model["model"] == "words:latest"]
    assert datetime.fromisoformat(words["expires_at"]).tzinfo is not None


@pytest.mark.parametrize("name", of("/api/version"))
def test_the_version_is_numbers(site_for: Manager, name: str) -> None:
    version = replay(site_for, RECORDED[name]).json()["version"]
    assert [int(part) for part in version.split("-")[0].split(".")]


@pytest.mark.parametrize("name", of("/api/show"))
def test_a_model_is_shown(site_for: Manager, name: str) -> None:
    assert "tools" in replay(site_for, RECORDED[name]).json()["capabilities"]


def is_plain(body: dict[str, Any]) -> bool:
    """Whether the words are all that can be the answer."""
    last = body["messages"][-1]
    return not (body.get("tools") or body.get("options") or "images" in last or last["role"] == "tool")


@pytest.mark.parametrize("name", of("/api/chat", model="words:latest", stream=True))
def test_a_chat_streams_whole_objects_in_lines(site_for: Manager, name: str) -> None:
    _, body = path_and_body(RECORDED[name])
    answer = replay(site_for, RECORDED[name])
    if "images" in body["messages"][-1]:
        assert answer.status == 400
        assert "image" in answer.json()["error"]
        return
    assert answer.status == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.body.decode().splitlines()]
    assert all("message" in line for line in lines)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["eval_duration"] > 0
    words = "".join(line["message"]["content"] for line in lines)
    assert words == WORDS if is_plain(body) else words


@pytest.mark.parametrize("name", of("/api/chat", model="words:latest", stream=False))
def test_a_chat_is_answered_whole(site_for: Manager, name: str) -> None:
    _, body = path_and_body(RECORDED[name])
    answer = replay(site_for, RECORDED[name])
    assert answer.status == 200, answer.text
    message = answer.json()["message"]
    if body["messages"][-1]["role"] == "tool":
        assert message["content"] == WEATHER
    elif body.get("tools"):
        assert message["tool_calls"][0]["function"]["arguments"] == CALL["arguments"]
    else:
        assert message["content"] == WORDS


@pytest.mark.parametrize("name", of("/api/generate", stream=False))
def test_a_prompt_is_answered(site_for: Manager, name: str) -> None:
    assert replay(site_for, RECORDED[name]).json()["response"] == WORDS


@pytest.mark.parametrize("name", of("/api/generate", keep_alive=0))
def test_a_model_is_unloaded(site_for: Manager, name: str) -> None:
    model = path_and_body(RECORDED[name])[1]["model"].removesuffix(":latest")
    site_for.ask(model, max_tokens=1).answer()
    assert replay(site_for, RECORDED[name]).json()["done_reason"] == "unload"

    def gone() -> bool:
        listed = replay(site_for, RECORDED[of("/api/ps")[-1]]).json()["models"]
        return f"{model}:latest" not in [each["model"] for each in listed]

    site_for.until(gone, "the model to be gone")


@pytest.mark.parametrize("name", of("/api/embed"))
def test_documents_are_embedded(site_for: Manager, name: str) -> None:
    _, body = path_and_body(RECORDED[name])
    embeddings = replay(site_for, RECORDED[name]).json()["embeddings"]
    assert [len(each) for each in embeddings] == [64] * len(body["input"])


@pytest.mark.parametrize("name", of("/v1/chat/completions"))
def test_openai_requests_pass_through(site_for: Manager, name: str) -> None:
    answer = replay(site_for, RECORDED[name]).json()
    assert answer["choices"][0]["message"]["content"] == WORDS
