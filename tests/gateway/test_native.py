"""llama-server's own endpoints on an instance port: the dialect contract, and what is kept from callers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamaman.errors import InvalidField
from llamaman.gateway.dialect import Call, Dialect, Intent, Result
from llamaman.gateway.native import ENDPOINTS, Native
from llamaman.testing.dialect_contract import DialectContract, Example
from llamaman.testing.dialect_script import Transcript, drive, request_for

BODY = {"prompt": "a", "messages": [], "content": "a"}
ROUTES = {(route.method, route.pattern): route for route in Native.routes}


class TestNative(DialectContract):
    examples = (
        *(Example(e.path, BODY if e.method == "POST" else {}, e.method) for e in ENDPOINTS),
        Example("/completion", {"prompt": "a", "stream": True, "id_slot": 4}),
        Example("/chat/completions", {"messages": [], "stream": True, "model": "alpha"}),
    )

    def make_dialect(self) -> Dialect:
        return Native()


def served(method: str, path: str, body: dict[str, Any], answer: bytes = b"{}") -> Transcript:
    intent = Native().open(request_for(ROUTES[method, path], body))
    assert isinstance(intent, Intent)
    return drive(Native(), intent, answer=lambda call: Result(200, answer))


@pytest.mark.parametrize("path", ["/completion", "/completions", "/chat/completions", "/infill"])
def test_streams_are_relayed(path: str) -> None:
    assert served("POST", path, {"stream": True}).relayed
    assert not served("POST", path, {"stream": False}).relayed


def test_other_endpoints_do_not_stream_whatever_is_asked() -> None:
    transcript = served("POST", "/tokenize", {"content": "a", "stream": True})
    assert (transcript.relayed, transcript.calls[0].mode) == (False, "plain")


def test_the_engine_is_asked_for_a_path_of_ours_never_the_clients() -> None:
    asked = {e.path: served(e.method, e.path, BODY if e.method == "POST" else {}).calls[0] for e in ENDPOINTS}
    assert asked["/completions"].path == "/completion"
    assert asked["/chat/completions"].path == "/v1/chat/completions"
    assert {call.path for call in asked.values()} == {e.upstream for e in ENDPOINTS}


def test_which_slot_serves_whom_is_not_the_clients_choice() -> None:
    (call,) = served("POST", "/completion", {"prompt": "a", "id_slot": 3}).calls
    assert isinstance(call, Call)
    assert call.patch == {"id_slot": -1}


def test_paths_of_the_host_are_left_out() -> None:
    reply = served("GET", "/props", {}, b'{"model_path":"/srv/models/x.gguf","total_slots":2}').reply
    assert reply is not None
    assert json.loads(reply.body) == {"total_slots": 2}
    reply = served("GET", "/lora-adapters", {}, b'[{"id":0,"path":"/srv/models/lora","scale":1.0}]').reply
    assert reply is not None
    assert json.loads(reply.body) == [{"id": 0, "scale": 1.0}]


def test_metrics_stay_text() -> None:
    reply = served("GET", "/metrics", {}, b"llamacpp:x 1\n").reply
    assert reply is not None
    assert (reply.body, dict(reply.headers)[b"content-type"].split(b";")[0]) == (
        b"llamacpp:x 1\n",
        b"text/plain",
    )


@pytest.mark.parametrize(("field", "value"), [("stream", 1), ("stream", "true"), ("model", 5), ("model", [])])
def test_fields_that_we_read_are_checked(field: str, value: Any) -> None:
    with pytest.raises(InvalidField) as error:
        served("POST", "/completion", {"prompt": "a", field: value})
    assert error.value.field == field


def test_errors_have_the_flat_shape() -> None:
    reply = Native().error(InvalidField("n", "no"), started=False)
    assert not isinstance(reply, bytes)
    assert json.loads(reply.body) == {"error": "no"}
