"""Open WebUI, the real program, in front of a manager; it also makes the recordings that CI replays.

Runs only where OPEN_WEBUI_BIN names its program; README.md beside this file says how to install it. With
OPEN_WEBUI_RECORD set, ``openwebui_requests.json`` is written anew.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright
from recorder import Recorder
from samples import HELLO, PIXEL, WEATHER_TOOL
from scripted_model import CALL, WORDS

from llamaman.testing import processes
from llamaman.testing.manager import FOR_EVER, Manager
from llamaman.testing.wire import Answer, Request, call

PROGRAM = os.environ.get("OPEN_WEBUI_BIN", "")
RECORDING = Path(__file__).parent / "openwebui_requests.json"

pytestmark = [
    pytest.mark.openwebui,
    pytest.mark.skipif(not PROGRAM, reason="set OPEN_WEBUI_BIN to the program open-webui"),
]


class WebUI:
    """A running Open WebUI and the user who is logged in."""

    def __init__(self, port: int, token: str, recorder: Recorder) -> None:
        self.port, self.token, self.recorder = port, token, recorder

    def ask(self, method: str, path: str, body: object = None, **options: Any) -> Answer:
        """One call to its own API."""
        return call(self.port, method, path, body=body, key=self.token, **{"seconds": 60, **options})

    def chat(self, model: str, **fields: Any) -> Answer:
        """Through its middleware, as its pages do."""
        return self.ask("POST", "/api/chat/completions", {"model": model, "messages": HELLO, **fields})

    def models(self) -> list[str]:
        """What its model menu lists, asked for anew."""
        return [model["id"] for model in self.ask("GET", "/api/models?refresh=true").json()["data"]]

    def connect(self, key: str = "") -> None:
        """Use the manager with this key."""
        config = {"enable": True, **({"key": key} if key else {})}
        form = {
            "ENABLE_OLLAMA_API": True,
            "OLLAMA_BASE_URLS": [f"http://127.0.0.1:{self.recorder.port}"],
            "OLLAMA_API_CONFIGS": {"0": config},
        }
        answer = self.ask("POST", "/ollama/config/update", form)
        assert answer.status == 200, answer.text


@pytest.fixture(scope="module")
def webui(site: Manager, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    folder = tmp_path_factory.mktemp("webui")
    (port,) = processes.free_ports(1)
    with Recorder(site.proxy_port) as recorder:
        environment = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
        environment |= {
            "DATA_DIR": str(folder),
            "WEBUI_SECRET_KEY": "for tests",
            "WEBUI_AUTH": "False",
            "OLLAMA_BASE_URL": f"http://127.0.0.1:{recorder.port}",
            "ENABLE_OPENAI_API": "False",
            "RAG_EMBEDDING_ENGINE": "ollama",
            "RAG_EMBEDDING_MODEL": "embed:latest",
            "RAG_OLLAMA_BASE_URL": f"http://127.0.0.1:{recorder.port}",
            "RAG_OLLAMA_API_KEY": site.inference_key,
            # Else it sends 30,000 characters of tools of its own with each message, also to models without any.
            "DEFAULT_MODEL_METADATA": '{"capabilities": {"builtin_tools": false}}',
            "OFFLINE_MODE": "true",
            "ENABLE_VERSION_UPDATE_CHECK": "false",
            "SCARF_NO_ANALYTICS": "true",
            "DO_NOT_TRACK": "true",
            "ANONYMIZED_TELEMETRY": "false",
        }
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [PROGRAM, "serve", "--host", "127.0.0.1", "--port", str(port)],
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            processes.wait_until(lambda: _is_up(port), "Open WebUI", process, log, 120)
            token = call(port, "POST", "/api/v1/auths/signin", body={"email": "", "password": ""}).json()[
                "token"
            ]
            found = WebUI(port, token, recorder)
            found.connect(site.inference_key)
            yield found
            if os.environ.get("OPEN_WEBUI_RECORD"):
                record(recorder.requests(), site.inference_key, recorder.port)
        finally:
            processes.stop(process, seconds=20)


def _is_up(port: int) -> bool:
    try:
        return call(port, "GET", "/health", seconds=5).status == 200
    except OSError:
        return False


def record(requests: list[bytes], key: str, port: int) -> None:
    """Keep one of each kind, with marks for the key and the port."""
    kept: dict[str, str] = {}
    for request in requests:
        text = request.decode().replace(key, "<key>").replace(f":{port}", ":<port>")
        line, _, body = text.partition("\r\n")[0], *text.partition("\r\n\r\n")[1:]
        given = json.loads(body) if body else {}
        about = [f"{name}={given[name]}" for name in ("model", "stream", "keep_alive") if name in given]
        about += [name for name in ("tools", "options", "format", "images", "think") if given.get(name)]
        about += ["images"] if any("images" in turn for turn in given.get("messages", [])) else []
        about += ["with key"] if "<key>" in text else []
        about += (
            ["to a tool's answer"] if [t for t in given.get("messages", []) if t["role"] == "tool"] else []
        )
        kept.setdefault(" ".join([line.rpartition(" ")[0], *about]), text)
    RECORDING.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def pieces(answer: Answer) -> str:
    """The words of an event stream."""
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    found = [json.loads(event).get("choices") or [] for event in events]
    return "".join(choices[0]["delta"].get("content") or "" for choices in found if choices)


def test_each_model_appears_once(webui: WebUI) -> None:
    names = webui.models()
    assert sorted(name for name in names if name != "arena-model") == [
        "embed:latest",
        "other:latest",
        "slow:latest",
        "thinker:latest",
        "words:latest",
    ]


def test_the_connection_is_verified_with_and_without_a_key(webui: WebUI, site: Manager) -> None:
    url = f"http://127.0.0.1:{webui.recorder.port}"
    good = webui.ask("POST", "/ollama/verify", {"url": url, "key": site.inference_key})
    assert good.status == 200, good.text
    assert good.json()["version"]
    assert webui.ask("GET", "/ollama/api/version").status == 200


def test_a_chat_streams(webui: WebUI) -> None:
    webui.models()
    answer = webui.chat("words:latest", stream=True)
    assert answer.status == 200, answer.text
    assert pieces(answer) == WORDS
    whole = webui.chat("words:latest", stream=False)
    assert whole.json()["choices"][0]["message"]["content"] == WORDS


def test_its_own_ollama_routes_answer(webui: WebUI) -> None:
    shown = webui.ask("POST", "/ollama/api/show", {"model": "words:latest"})
    assert "tools" in shown.json()["capabilities"]
    assert webui.ask("GET", "/ollama/api/ps").status == 200
    generated = webui.ask(
        "POST", "/ollama/api/generate", {"model": "words:latest", "prompt": "Say it", "stream": False}
    )
    assert WORDS in generated.text or json.dumps(WORDS)[1:-1] in generated.text
    passed = webui.ask("POST", "/ollama/v1/chat/completions", {"model": "words:latest", "messages": HELLO})
    assert passed.json()["choices"][0]["message"]["content"] == WORDS


def test_a_tool_is_called(webui: WebUI) -> None:
    answer = webui.chat(
        "words:latest", stream=False, tools=[WEATHER_TOOL], params={"function_calling": "native"}
    )
    (called,) = answer.json()["choices"][0]["message"]["tool_calls"]
    assert called["function"]["name"] == CALL["name"]
    assert json.loads(called["function"]["arguments"]) == CALL["arguments"]
    turns = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": called["id"], "content": "sunny"},
    ]
    end = webui.chat("words:latest", stream=False, tools=[WEATHER_TOOL], messages=turns)
    assert end.json()["choices"][0]["message"]["content"] == "It is sunny in Paris."


def test_an_image_for_a_model_without_eyes_is_a_clear_error(webui: WebUI) -> None:
    parts = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    ]
    answer = webui.chat("words:latest", stream=True, messages=[{"role": "user", "content": parts}])
    assert answer.status == 400, answer.text
    assert "image" in answer.text


def test_a_title_is_made(webui: WebUI) -> None:
    answer = webui.ask(
        "POST",
        "/api/v1/tasks/title/completions",
        {"model": "words:latest", "messages": [*HELLO, {"role": "assistant", "content": WORDS}]},
    )
    assert answer.status == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == WORDS


def test_a_document_is_embedded_and_found(webui: WebUI, site: Manager) -> None:
    made = webui.ask(
        "POST",
        "/api/v1/retrieval/process/text",
        {"name": "llamas", "content": "Llamas hum.", "collection_name": "llamas"},
    )
    assert made.status == 200, made.text
    found = webui.ask(
        "POST", "/api/v1/retrieval/query/collection", {"collection_names": ["llamas"], "query": "hum", "k": 1}
    )
    assert found.status == 200, found.text
    assert found.json()["documents"] == [["Llamas hum."]]


def test_options_reach_the_model(webui: WebUI) -> None:
    params = {"num_predict": 3, "max_tokens": 3, "mirostat": 0, "num_ctx": 2048, "keep_alive": "5m"}
    answer = webui.chat("words:latest", stream=True, params=params)
    assert pieces(answer) != ""
    assert len(pieces(answer)) < len(WORDS)


def loaded(webui: WebUI) -> list[str]:
    found = webui.ask("GET", "/ollama/api/ps").json()
    return [model["model"] for model in found["models"]]


def test_a_model_is_unloaded(webui: WebUI, site: Manager) -> None:
    webui.models()
    assert webui.chat("other:latest", stream=False, params={"max_tokens": 2}).status == 200
    assert "other:latest" in loaded(webui)
    answer = webui.ask("POST", "/api/models/unload", {"model": "other:latest"})
    assert answer.status == 200, answer.text
    site.until(lambda: "other:latest" not in loaded(webui), "the model to be gone")


def test_leaving_a_stream_frees_the_slot(webui: WebUI, site: Manager) -> None:
    body = {"model": "slow:latest", "messages": HELLO, "stream": True, "params": {"max_tokens": FOR_EVER}}
    with Request(webui.port, "POST", "/api/chat/completions", key=webui.token, body=body) as request:
        next(request.events())
        (slow,) = [each for each in site.instances() if each["model"] == "slow"]
        assert site.busy_slots(slow["id"]) == 1
    site.until(lambda: site.busy_slots(slow["id"]) == 0, "the slot to be free", seconds=30)


def test_without_require_auth_it_needs_no_key(webui: WebUI, open_site: Manager) -> None:
    webui.connect()
    assert "words:latest" in webui.models()
    assert pieces(webui.chat("words:latest", stream=True)) == WORDS
    open_site.setting(require_auth=True)
    assert "words:latest" not in webui.models(), "without a key it sees nothing once one is needed"
    webui.connect(open_site.inference_key)
    assert "words:latest" in webui.models()


@pytest.fixture(scope="module")
def page(webui: WebUI) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("LLAMAMAN_TEST_CHROMIUM") or "/usr/bin/chromium",
            args=["--no-sandbox"],
        )
        page = browser.new_page()
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def begin_chat(page: Page, webui: WebUI, model: str, text: str) -> None:
    page.goto(f"http://127.0.0.1:{webui.port}/?models={model}")
    box = page.locator("#chat-input")
    box.wait_for(timeout=60_000)
    news = page.get_by_role("dialog").get_by_role("button", name="Okay, Let's Go!")
    page.add_locator_handler(news, news.click)
    box.click()
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def test_a_person_chats_in_the_browser(webui: WebUI, page: Page) -> None:
    webui.models()
    begin_chat(page, webui, "words:latest", "hello")
    page.get_by_text("Llamas are friendly animals").first.wait_for(timeout=60_000)


def test_the_stop_button_frees_the_slot(webui: WebUI, site: Manager, page: Page) -> None:
    def busy() -> int:
        running = [each for each in site.instances() if each["model"] == "slow" and each["state"] == "ready"]
        return sum(site.busy_slots(each["id"]) for each in running)

    begin_chat(page, webui, "slow:latest", "hello")
    site.until(lambda: busy() == 1, "the answer to be computed", seconds=30)
    page.get_by_role("button", name="Stop", exact=True).click()
    site.until(lambda: busy() == 0, "the slot to be free", seconds=30)
