"""What holds for the streams of every API, at every door and with a real engine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from samples import HELLO
from scripted_model import WORDS

from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import Answer, Request, call

Json = dict[str, Any]


def _choice(event: Json) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))


def _messages(event: Json) -> str:
    return str(event["delta"].get("text", "")) if event["type"] == "content_block_delta" else ""


#: path -> (what asks for a long text, how its pieces are read)
STREAMS: dict[str, tuple[Json, Callable[[Json], str]]] = {
    "/api/chat": ({"messages": HELLO}, lambda event: event["message"]["content"]),
    "/api/generate": ({"prompt": "hello"}, lambda event: event["response"]),
    "/v1/chat/completions": ({"messages": HELLO}, _choice),
    "/v1/completions": ({"prompt": "hello"}, lambda event: "".join(c["text"] for c in event["choices"])),
    "/v1/responses": (
        {"input": "hello"},
        lambda event: event["delta"] if event["type"] == "response.output_text.delta" else "",
    ),
    "/v1/messages": ({"messages": HELLO, "max_tokens": FOR_EVER}, _messages),
    "/completion": ({"prompt": "hello"}, lambda event: event["content"]),
    "/chat/completions": ({"messages": HELLO}, _choice),
    "/upstream/{}/v1/messages": ({"messages": HELLO, "max_tokens": FOR_EVER}, _messages),
    "/upstream/{}/v1/chat/completions": ({"messages": HELLO}, _choice),
    "/upstream/{}/completion": ({"prompt": "hello"}, lambda event: event["content"]),
}
every_stream = pytest.mark.parametrize("path", STREAMS)


def asked(path: str, model: str, **more: Any) -> tuple[str, Json]:
    return path.format(model), {**STREAMS[path][0], "model": model, **more}


def events(path: str, body: bytes) -> list[Json]:
    """A stream's objects; of lines of JSON none is blank."""
    assert body.endswith(b"\n")
    lines = body.removesuffix(b"\n").split(b"\n")
    if not path.startswith("/api/"):
        lines = [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: {")]
    return [json.loads(line) for line in lines]


@every_stream
def test_separators_of_unicode_survive(site: Manager, path: str) -> None:
    where, body = asked(path, "words")
    ports = [site.proxy_port]
    if not path.startswith("/upstream"):
        call(site.proxy_port, "POST", where, key=site.inference_key, body={**body, "stream": False})
        ports += [each["port"] for each in site.instances() if each["model_name"] == "words.gguf"]
    for port in ports:
        for stream in (True, False):
            answer = call(
                port, "POST", where, key=site.inference_key, body={**body, "stream": stream}, seconds=60
            )
            assert answer.status == 200, answer.text
            if stream:
                read = STREAMS[path][1]
                assert "".join(map(read, events(path, answer.body))) == WORDS
            else:
                assert "\u2028" in json.dumps(answer.json(), ensure_ascii=False)


@every_stream
def test_a_refusal_before_the_first_piece_keeps_its_status(site: Manager, path: str) -> None:
    text = "too long " * 600
    turns = [{"role": "user", "content": text}]
    where, body = asked(path, "other", stream=True, truncate=False)
    body |= {
        name: turns if name == "messages" else text
        for name in ("messages", "prompt", "input")
        if name in body
    }
    refused: Answer = call(site.proxy_port, "POST", where, key=site.inference_key, body=body, seconds=60)
    assert refused.status == 400, refused.text
    assert refused.headers["content-type"].startswith("application/json")
    words = "prompt is too long" if path.endswith("/messages") else "exceeds the available context size"
    assert words in refused.error


@every_stream
def test_an_engine_that_dies_in_a_stream_ends_it_with_an_error_event(site: Manager, path: str) -> None:
    instance = site.launch("slow", restart_policy="never", **ENDLESS)
    where, body = asked(path, "slow", stream=True)
    own_key = site.key("inference").secret  # a key answers for what it crashes
    with Request(site.proxy_port, "POST", where, key=own_key, body=body, seconds=60) as request:
        begun = [request.begun.readline() for _ in range(6)]
        assert request.begun.status == 200
        (engine,) = site.engines(instance["id"])
        os.kill(engine, signal.SIGKILL)
        *_, last = events(path, b"".join(begun) + request.begun.read())
    site.until(lambda: site.instance(instance["id"])["status"] == "failed", "its death to be seen")
    site.remove(instance["id"])
    assert "the engine ended in the middle of this answer" in json.dumps(last)
    if path.startswith("/api/"):
        assert set(last) == {"error"}
    elif path.endswith(("/v1/messages", "/v1/responses")):
        assert last["type"] == "error"
    else:
        assert "error" in last
