"""Ollama's API through a real manager to a real engine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from llamaman.testing import write_tiny_model
from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import Answer, Request, call

CHAT, GENERATE, EMBED = "/api/chat", "/api/generate", "/api/embed"

#: Knows tools and thinking, and shows what it is given of both.
TEMPLATE = (
    "{% if tools %}[{% for tool in tools %}{{ tool.function.name }}{% endfor %}]{% endif %}"
    "{% for message in messages %}<{{ message.role }}>"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {"name": "lookup", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}},
}


def send(manager: Manager, path: str, body: Any, *, port: int | None = None) -> Request:
    return Request(port or manager.proxy_port, "POST", path, key=manager.inference_key, body=body, seconds=60)


def ask(
    manager: Manager, path: str, body: Any = None, *, method: str = "POST", port: int | None = None
) -> Answer:
    return call(port or manager.proxy_port, method, path, key=manager.inference_key, body=body, seconds=60)


def chat(text: str = "hello", **fields: Any) -> dict[str, Any]:
    options = {"num_predict": 6, "temperature": 0, "seed": 1, **fields.pop("options", {})}
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "options": options, **fields}


def lines(answer: Answer) -> list[dict[str, Any]]:
    """A stream's objects: every line is one, and the last one says that it is."""
    assert answer.status == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    *found, end = answer.body.split(b"\n")
    assert end == b""
    return [json.loads(line) for line in found]


def whole(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.text
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    return dict(answer.json())


@pytest.fixture
def further(plain_manager: Manager) -> Callable[..., str]:
    """Puts another model beside ``tiny``; its name."""

    def write(name: str, **changes: Any) -> str:
        write_tiny_model(plain_manager.models / f"{name}.gguf", **changes)
        plain_manager.manage("POST", "/api/models/rescan")
        return name

    return write


# --- text -----------------------------------------------------------------------------------------------


def test_a_model_is_started_for_a_chat_and_streams_it(manager: Manager) -> None:
    *said, last = lines(ask(manager, CHAT, chat(model="TINY:latest")))
    assert [line["done"] for line in said] == [False] * 6
    assert {line["model"] for line in (*said, last)} == {"TINY:latest"}
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 6)
    assert last["prompt_eval_count"] > 6
    assert 1 <= last["load_duration"] <= last["total_duration"]
    text = "".join(line["message"]["content"] for line in said)
    again = whole(ask(manager, CHAT, chat(stream=False)))
    assert again["message"] == {"role": "assistant", "content": text}
    assert (again["done_reason"], again["eval_count"]) == ("length", 6)


def test_generate_streams_answers_whole_and_goes_on_from_a_context(plain_manager: Manager) -> None:
    manager = plain_manager
    body = {"model": "tiny", "prompt": "hi", "options": {"num_predict": 4, "temperature": 0}}
    *said, last = lines(ask(manager, GENERATE, body))
    text = "".join(line["response"] for line in said)
    first = whole(ask(manager, GENERATE, {**body, "stream": False}))
    assert first["response"] == text
    assert first["context"] == last["context"], "one byte is one token"
    assert bytes(token - 3 for token in first["context"]).decode() == f"<user>hi\n<assistant>{text}"
    more = whole(
        ask(manager, GENERATE, {**body, "prompt": "on", "context": first["context"], "stream": False})
    )
    assert more["context"][: len(first["context"])] == first["context"]
    assert more["prompt_eval_count"] == len(more["context"]) - 4 + 1, "and the one at the very beginning"


def test_a_raw_prompt_has_one_first_token_and_tells_probabilities(plain_manager: Manager) -> None:
    body = {"model": "tiny", "raw": True, "stream": False, "options": {"num_predict": 3}, "logprobs": True}
    for prompt in ("ab", "<s>ab"):
        found = whole(ask(plain_manager, GENERATE, {**body, "prompt": prompt, "top_logprobs": 2}))
        assert found["prompt_eval_count"] == 3
        assert "context" not in found
        assert [len(token["top_logprobs"]) for token in found["logprobs"]] == [2, 2, 2]
        assert bytes(found["logprobs"][0]["bytes"]).decode() == found["logprobs"][0]["token"]


def test_a_beginning_is_gone_on_with_and_not_echoed(plain_manager: Manager) -> None:
    body = chat(stream=False)
    body["messages"] += [{"role": "assistant", "content": "zzzz"}, {"role": "assistant", "content": "ZZZZ"}]
    found = whole(ask(plain_manager, CHAT, body))
    assert len(found["message"]["content"]) == 6
    assert "Z" not in found["message"]["content"]
    rendered = whole(ask(plain_manager, CHAT, {**body, "_debug_render_only": True}))
    assert rendered["_debug_info"]["rendered_template"].endswith("<assistant>zzzzZZZZ")


def test_tools_and_thoughts_reach_a_template_that_knows_them(
    plain_manager: Manager, further: Callable[..., str]
) -> None:
    model = further("tools", chat_template=TEMPLATE)
    body = chat("tide?", model=model, tools=[TOOL], _debug_render_only=True)
    body["messages"] += [
        {
            "role": "assistant",
            "thinking": "hm",
            "tool_calls": [{"function": {"name": "lookup", "arguments": {"q": "ti\u2028de"}}}],
        },
        {"role": "tool", "content": "high"},
    ]
    answer = ask(plain_manager, CHAT, body)
    assert answer.body.isascii()
    rendered = whole(answer)["_debug_info"]["rendered_template"]
    assert rendered.startswith("[lookup]<user>tide?")
    assert "<think>hm</think>" in rendered
    assert '<tool_call>\n{"name": "lookup", "arguments": ' in rendered
    assert "ti\u2028de" in rendered
    assert rendered.endswith("<tool>high<assistant>")
    off = whole(ask(plain_manager, CHAT, {**body, "think": False}))
    assert off["_debug_info"]["rendered_template"].endswith("<assistant><think></think>")
    with_chances = {
        **body,
        "_debug_render_only": False,
        "think": False,
        "logprobs": True,
        "options": {"num_predict": 4},
    }
    *said, last = lines(ask(plain_manager, CHAT, with_chances))
    assert sum(len(line.get("logprobs", [])) for line in said) == 4, (
        "llama-server does not stream these beside tools"
    )
    assert last["eval_count"] == 4


def test_a_format_is_kept_to(plain_manager: Manager) -> None:
    schema = {"enum": ["yes", "no"]}
    limit = {"num_predict": 20}
    for path, body in (
        (CHAT, chat(stream=False, format=schema, options=limit)),
        (
            GENERATE,
            {
                "model": "tiny",
                "prompt": "x",
                "raw": True,
                "stream": False,
                "format": schema,
                "options": limit,
            },
        ),
    ):
        found = whole(ask(plain_manager, path, body))
        text = found["response"] if path == GENERATE else found["message"]["content"]
        assert json.loads(text) in ("yes", "no")
    refused = ask(plain_manager, CHAT, chat(format={"type": "nonsense"}))
    assert refused.status == 400, refused.text


def test_the_oldest_messages_make_room(plain_manager: Manager) -> None:
    plain_manager.preset("tiny", ctx_size=512)
    body = chat("new", stream=False)
    body["messages"] = [
        {"role": "system", "content": "rules"},
        *({"role": "user", "content": f"{n}" * 150} for n in range(6)),
        *body["messages"],
    ]
    found = whole(ask(plain_manager, CHAT, body))
    assert 150 < found["prompt_eval_count"] < 512
    info = whole(ask(plain_manager, CHAT, {**body, "_debug_render_only": True}))["_debug_info"]
    assert info["rendered_template"].startswith("<system>rules\n<user>")
    assert [str(n) for n in range(6) if str(n) * 150 in info["rendered_template"]] == ["3", "4", "5"]
    refused = ask(plain_manager, CHAT, {**body, "truncate": False})
    assert refused.status == 400
    assert "exceed" in refused.error
    assert "context" in refused.error


# --- models ---------------------------------------------------------------------------------------------


def test_a_model_is_loaded_described_and_unloaded(plain_manager: Manager) -> None:
    manager = plain_manager
    assert [model["name"] for model in ask(manager, "/api/tags", method="GET").json()["models"]] == [
        "tiny:latest"
    ]
    assert ask(manager, "/api/ps", method="GET").json() == {"models": []}
    loaded = ask(manager, GENERATE, {"model": "tiny", "keep_alive": "10m"})
    assert (whole(loaded)["done_reason"], whole(loaded)["response"]) == ("load", "")
    (running,) = ask(manager, "/api/ps", method="GET").json()["models"]
    assert (running["model"], running["context_length"]) == ("tiny:latest", 4096)
    shown = ask(manager, "/api/show", {"name": "Tiny", "model": ""}).json()
    assert shown["model_info"]["general.architecture"] == "llama"
    assert "completion" in shown["capabilities"]
    gone = whole(ask(manager, CHAT, {"model": "tiny", "messages": [], "keep_alive": 0}))
    assert gone["message"] == {"role": "assistant", "content": ""}
    assert gone["done_reason"] == "unload"
    manager.until(
        lambda: ask(manager, "/api/ps", method="GET").json() == {"models": []}, "the model to leave"
    )
    assert whole(ask(manager, GENERATE, {"model": "tiny", "keep_alive": 0}))["done_reason"] == "unload"


def test_an_instance_port_needs_no_name(plain_manager: Manager) -> None:
    port = plain_manager.launch("tiny")["port"]
    body = chat(stream=False)
    del body["model"]
    assert whole(ask(plain_manager, CHAT, body, port=port))["model"] == "tiny"
    wrong = ask(plain_manager, CHAT, chat(model="nobody"), port=port)
    assert (wrong.status, wrong.error) == (404, "model 'nobody' is not loaded on this port")
    assert [m["name"] for m in ask(plain_manager, "/api/tags", method="GET", port=port).json()["models"]] == [
        "tiny:latest"
    ]


def test_vectors_of_an_embedding_model(plain_manager: Manager, further: Callable[..., str]) -> None:
    model = further("embed", embedding=True, context_length=512)
    found = whole(ask(plain_manager, EMBED, {"model": model, "input": ["a", "b" * 700]}))
    assert [len(vector) for vector in found["embeddings"]] == [64, 64]
    assert found["prompt_eval_count"] == 2 + 512, "the second is cut to what the model can read"
    for vector in found["embeddings"]:
        assert sum(number * number for number in vector) == pytest.approx(1, abs=1e-3)
    short = whole(ask(plain_manager, EMBED, {"model": model, "input": "a", "dimensions": 3}))["embeddings"][0]
    assert (len(short), sum(number * number for number in short)) == (3, pytest.approx(1))
    old = whole(ask(plain_manager, "/api/embeddings", {"model": model, "prompt": "a"}))
    assert old["embedding"] == pytest.approx(found["embeddings"][0], abs=1e-4)
    assert whole(ask(plain_manager, EMBED, {"model": model, "input": []})) == {
        "model": model,
        "embeddings": [],
    }
    uncut = ask(plain_manager, EMBED, {"model": model, "input": "b" * 700, "truncate": False})
    assert (uncut.status, uncut.error) == (400, "the input length exceeds the context length")
    for path, body, word in (
        (CHAT, chat(model="Embed"), "chat"),
        (GENERATE, {"model": "Embed", "prompt": "x"}, "generate"),
    ):
        refused = ask(plain_manager, path, body)
        assert (refused.status, refused.error) == (400, f'"Embed" does not support {word}')


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        (CHAT, b"", 400, "missing request body"),
        (CHAT, {"messages": []}, 400, "model is required"),
        (GENERATE, {"prompt": "x"}, 404, "model '' not found"),
        (CHAT, chat(model="x!"), 400, "invalid model name"),
        (CHAT, chat(model="nobody"), 404, "model 'nobody' not found"),
        (GENERATE, {"model": "nobody"}, 404, "model 'nobody' not found"),
        (EMBED, {"model": "nobody", "input": "x"}, 404, 'model "nobody" not found, try pulling it first'),
        ("/api/show", {"model": "nobody"}, 404, "model 'nobody:latest' not found"),
        (CHAT, chat(think=True), 400, '"tiny" does not support thinking'),
        (CHAT, chat(tools=[TOOL]), 400, "registry.ollama.ai/library/tiny:latest does not support tools"),
        (
            GENERATE,
            {"model": "tiny", "prompt": "x", "suffix": "y"},
            400,
            "registry.ollama.ai/library/tiny:latest does not support insert",
        ),
        (CHAT, chat(keep_alive="300"), 400, 'time: missing unit in duration "300"'),
        (CHAT, chat(options={"top_k": "x"}), 400, 'option "top_k" must be of type integer'),
        (
            CHAT,
            chat(
                Messages=[{"Content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/"}}]}],
            ),
            400,
            "Messages[0].Content[0].image_url.url names its file by URL, and such URLs are not fetched; send the "
            "file itself in base64 (data:image/png;base64,...), or have an administrator switch on the setting "
            "media.fetch_urls",
        ),
        ("/api/me", {}, 401, "unauthorized"),
        ("/api/experimental/web_search", {}, 403, "ollama cloud is disabled: web search is unavailable"),
        (
            "/api/pull",
            {"model": "x"},
            501,
            "LlamaMan does not pull models through Ollama's API yet; "
            "put their GGUF files into its models folder (MODELS_DIR)",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_request_has_its_status_and_text_and_starts_nothing(
    plain_manager: Manager, path: str, body: Any, status: int, text: str
) -> None:
    refused = ask(plain_manager, path, body)
    assert (refused.status, refused.error) == (status, text)
    assert plain_manager.instances() == []


def test_copilot_can_tell_models_of_one_family_apart(plain_manager: Manager) -> None:
    shown = call(
        plain_manager.proxy_port,
        "POST",
        "/api/show",
        key=plain_manager.inference_key,
        body={"model": "tiny"},
        headers={"User-Agent": "GitHubCopilotChat/0.31"},
    )
    assert whole(shown)["model_info"]["general.basename"] == "tiny:latest"


def test_the_greeting_is_the_one_that_clients_look_for(plain_manager: Manager) -> None:
    for path in ("/", "/api/version", "/api/tags"):
        assert ask(plain_manager, path, method="HEAD").status == 200
    assert ask(plain_manager, "/", method="GET").text == "Ollama is running"


# --- ends -----------------------------------------------------------------------------------------------


def test_an_engine_that_is_killed_ends_the_stream_with_an_error_line(
    plain_manager: Manager, slow: Callable[[Manager], str]
) -> None:
    manager = plain_manager
    instance = manager.launch(slow(manager), **ENDLESS)
    with send(manager, CHAT, chat(model="slow", options={"num_predict": FOR_EVER})) as request:
        first = request.begun.readline()
        os.kill(instance["pid"], signal.SIGKILL)
        assert json.loads(first)["done"] is False
        *_, last = request.begun.read().strip().split(b"\n")
    assert set(json.loads(last)) == {"error"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(
    plain_manager: Manager, slow: Callable[[Manager], str], stream: bool
) -> None:
    manager = plain_manager
    instance = manager.launch(slow(manager), **ENDLESS)
    with send(manager, CHAT, chat(model="slow", stream=stream, options={"num_predict": FOR_EVER})):
        manager.until(lambda: manager.busy_slots(instance["id"]) == 1, "the engine to be at work")
    manager.until(lambda: manager.busy_slots(instance["id"]) == 0, "the slot to be free")
