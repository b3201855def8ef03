"""llama-server's own endpoints: the dialect contract, what is kept from callers, and how the engine is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llamaman.access import Access
from llamaman.errors import InvalidField, InvalidRequest, LlamaManError, NotFound
from llamaman.gateway.dialect import Call, Dialect, Intent, Result
from llamaman.gateway.endpoints import ASSETS, ENDPOINTS, UPSTREAM
from llamaman.gateway.native import Native
from llamaman.testing.dialect_contract import DialectContract, Example
from llamaman.testing.dialect_script import LEASE, MODEL, Transcript, drive, request_for

BODY = {"prompt": "a", "messages": [], "content": "a"}
FORM = b"multipart/form-data; boundary=xyz"
ROUTES = {(route.method, route.pattern): route for route in Native.routes}
VALUES = {"model": "alpha", "id_slot": "1", "file": "immutable/chunks/a.B-1_2.js"}


def _examples() -> list[Example]:
    found = []
    for route in Native.routes:
        values = {name: value for name, value in VALUES.items() if "{" + name in route.pattern}
        body = BODY if route.pattern in ("/completion", "/tokenize") else {}  # each of them is fuzzed
        kind = FORM if route.body == "raw" else b"application/json"
        found.append(Example(route.pattern, body, route.method, values, b"--xyz--" * (kind == FORM), kind))
    return found


class TestNative(DialectContract):
    examples = (
        *_examples(),
        Example("/completion", {"prompt": "a", "stream": True, "id_slot": 4}),
        Example("/chat/completions", {"messages": [], "stream": True, "model": "alpha", "n": 2}),
    )

    def make_dialect(self) -> Dialect:
        return Native(lambda: True)


def opened(method: str, path: str, body: dict[str, Any] | None = None, **given: Any) -> Intent:
    values = {name: value for name, value in VALUES.items() if "{" + name in path} | given.pop("values", {})
    query, identity = given.pop("query", b""), given.pop("identity", None)
    request = request_for(ROUTES[method, path], body or {}, values, **given)
    request = replace(request, query=query, identity=identity or request.identity)
    intent = Native(lambda: True).open(request)
    assert isinstance(intent, Intent)
    return intent


def served(
    method: str, path: str, body: dict[str, Any] | None = None, answer: bytes | Result = b"{}", **given: Any
) -> Transcript:
    result = Result(200, answer) if isinstance(answer, bytes) else answer
    return drive(Native(lambda: True), opened(method, path, body, **given), answer=lambda call: result)


@pytest.mark.parametrize(
    "path", ["/completion", "/completions", "/chat/completions", "/infill", "/responses"]
)
@pytest.mark.parametrize("before", ["", UPSTREAM])
def test_streams_are_relayed(path: str, before: str) -> None:
    assert served("POST", before + path, {"stream": True}).relayed
    assert not served("POST", before + path, {"stream": False}).relayed


def test_other_endpoints_do_not_stream_whatever_is_asked() -> None:
    transcript = served("POST", "/tokenize", {"content": "a", "stream": True})
    assert (transcript.relayed, transcript.calls[0].mode) == (False, "plain")


def test_the_engine_is_asked_for_a_path_of_ours_never_the_clients() -> None:
    for e in ENDPOINTS:
        for before in ("", UPSTREAM) if (e.method, e.path) in ROUTES else (UPSTREAM,):
            given = {"content_type": FORM} if e.body == "raw" else {}
            (call,) = served(e.method, before + e.path, BODY, **given).calls
            assert call.path == (e.upstream or e.path).replace("{id_slot}", "1")
    assert served("POST", "/completions", BODY).calls[0].path == "/completion"
    assert served("POST", "/chat/completions", BODY).calls[0].path == "/v1/chat/completions"


@pytest.mark.parametrize("slot", ["-1", "1.0", "a", "٣", "1e1", "00000", "1?action=erase", " 1"])
def test_a_slot_is_a_plain_number(slot: str) -> None:
    with pytest.raises(NotFound):
        opened("POST", "/slots/{id_slot}", values={"id_slot": slot})


def test_a_slot_that_the_instance_does_not_have_is_none_of_another() -> None:
    intent = opened("POST", "/slots/{id_slot}", values={"id_slot": str(LEASE.slots)})
    with pytest.raises(NotFound, match="has 4 slots"):
        drive(Native(), intent)


@pytest.mark.parametrize(
    ("method", "path", "query", "asked"),
    [
        ("POST", "/slots/{id_slot}", b"action=erase&x=y&filename=/etc/passwd", "/slots/1?action=erase"),
        ("POST", "/slots/{id_slot}", b"%61ction=s%61ve", "/slots/1?action=save"),
        ("POST", "/slots/{id_slot}", b"", "/slots/1"),
        ("GET", "/slots", b"fail_on_no_slot=1&model=x", "/slots?fail_on_no_slot=1"),
        ("GET", "/props", b"autoload=1&model=/x", "/props"),
    ],
)
def test_only_listed_parameters_are_passed_on_in_our_own_spelling(
    method: str, path: str, query: bytes, asked: str
) -> None:
    intent = opened(method, path, query=query)
    with pytest.raises(StopIteration):  # the call is looked at as it leaves; it is not answered
        call = next(serving := Native().serve(intent, MODEL, LEASE))
        assert isinstance(call, Call)
        assert call.path == asked
        serving.close()
        next(serving)


@pytest.mark.parametrize(
    "query", [b"action=rm", b"action=", b"action=save&action=erase", b"action=save%0d%0a"]
)
def test_a_listed_parameter_has_a_listed_value(query: bytes) -> None:
    with pytest.raises(InvalidField, match="save, restore, erase"):
        opened("POST", "/slots/{id_slot}", query=query)


def test_paths_of_the_host_are_left_out() -> None:
    answer = (
        b'{"model_path":"/srv/x.gguf","total_slots":2,"deep":{"path":"/a","lora":[{"path":"/b","id":1}]}}'
    )
    reply = served("GET", "/props", answer=answer).reply
    assert reply is not None
    assert json.loads(reply.body) == {"total_slots": 2, "deep": {"lora": [{"id": 1}]}}
    reply = served("GET", "/lora-adapters", answer=b'[{"id":0,"path":"/srv/lora","scale":1.0}]').reply
    assert reply is not None
    assert json.loads(reply.body) == [{"id": 0, "scale": 1.0}]
    models = b'{"data":[{"id":"m","status":{"args":["-m","/srv/m"]}}],"models":[{"name":"m"}]}'
    for path in ("/models", UPSTREAM + "/v1/models", UPSTREAM + "/models"):
        reply = served("GET", path, answer=models).reply
        assert reply is not None
        assert b"/srv" not in reply.body


def test_metrics_stay_text() -> None:
    reply = served("GET", "/metrics", answer=b"llamacpp:x 1\n").reply
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


@pytest.mark.parametrize("n", [0, -1, 129, True, "2", 1.0])
def test_the_number_of_answers_is_checked_and_takes_as_many_slots(n: Any) -> None:
    with pytest.raises(InvalidField, match="1 to 128"):
        opened("POST", "/chat/completions", {"n": n})
    assert opened("POST", "/chat/completions", {"n": 3}).slots == 3
    assert opened("POST", "/tokenize", {"n": 3}).slots == 0


def test_errors_have_the_flat_shape() -> None:
    reply = Native().error(InvalidField("n", "no"), started=False)
    assert not isinstance(reply, bytes)
    assert json.loads(reply.body) == {"error": "no"}


# --- whose model ----------------------------------------------------------------------------------------


def test_the_model_is_the_one_of_the_path_or_else_of_the_body() -> None:
    assert opened("POST", "/completion", {"model": "beta"}).model == "beta"
    assert opened("POST", "/completion").model is None
    assert opened("POST", UPSTREAM + "/completion", {"model": "beta"}).model == "alpha"
    assert opened("GET", UPSTREAM + "/props").model == "alpha"


def test_answers_name_the_model_as_the_body_did() -> None:
    assert served("POST", "/completion", {"model": "ALPHA"}).calls[0].rename == ("alpha", "ALPHA")
    assert served("POST", "/completion", {"model": "alpha"}).calls[0].rename is None
    assert served("POST", UPSTREAM + "/completion").calls[0].rename is None


def test_only_inference_starts_a_model() -> None:
    for e in ENDPOINTS:
        given = {"content_type": FORM} if e.body == "raw" else {}
        wakes = opened(e.method, UPSTREAM + e.path, **given).wakes
        assert wakes is (e.method == "POST" and e.access is Access.INFERENCE), e


def test_what_has_no_generation_takes_no_slot() -> None:
    beside = {e.path for e in ENDPOINTS if e.slots == 0}
    assert {"/tokenize", "/apply-template", "/v1/responses/input_tokens", "/props", "/slots"} <= beside
    assert not {"/completion", "/v1/embeddings", "/rerank", "/v1/audio/transcriptions"} & beside


# --- uploads --------------------------------------------------------------------------------------------


def test_an_upload_reaches_the_engine_untouched_with_its_content_type() -> None:
    path, body = (
        "/audio/transcriptions",
        b'--xyz\r\nContent-Disposition: form-data; name="file"\r\n\r\n\0\r\n--xyz--',
    )
    (call,) = served("POST", path, raw=body, content_type=FORM).calls
    assert (call.body, call.content_type, call.path) == (body, FORM, "/v1/audio/transcriptions")
    reply = served(
        "POST", path, answer=Result(200, b"words", content_type=b"text/plain"), raw=body, content_type=FORM
    ).reply
    assert reply is not None
    assert dict(reply.headers)[b"content-type"].startswith(b"text/plain")


@pytest.mark.parametrize(
    "kind",
    [
        b"",
        b"application/json",
        b"text/html",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b"multipart/form-data; boundary=a b",
        b"multipart/form-data; boundary=a; charset=x",
        b"multipart/mixed; boundary=a",
    ],
)
def test_an_upload_is_a_form_with_a_plain_boundary(kind: bytes) -> None:
    with pytest.raises(InvalidRequest, match="multipart/form-data"):
        opened("POST", "/audio/transcriptions", content_type=kind)


# --- llama.cpp's own page -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [asset.path for asset in ASSETS])
def test_without_the_setting_there_is_no_page(path: str) -> None:
    request = request_for(ROUTES["GET", path], {}, {"file": "a.js"} if "{" in path else {})
    with pytest.raises(LlamaManError) as error:
        Native().open(request)
    assert (error.value.status, error.value.message) == (404, "Not found")


def test_a_file_of_the_page_has_a_type_of_ours_and_may_come_compressed() -> None:
    script = Result(200, b"\x1f\x8b", content_type=b"text/html", encoding=b"gzip")
    transcript = served("GET", "/_app/{file...}", answer=script)
    (call,) = transcript.calls
    assert (call.path, call.compressed) == ("/_app/immutable/chunks/a.B-1_2.js", True)
    assert transcript.reply is not None
    assert dict(transcript.reply.headers) == {
        b"content-type": b"text/javascript; charset=utf-8",
        b"content-encoding": b"gzip",
        b"cache-control": b"no-cache",
    }
    odd = served(
        "GET", "/_app/{file...}", answer=Result(200, b"x", encoding=b"br"), values={"file": "x"}
    ).reply
    assert odd is not None
    assert dict(odd.headers)[b"content-type"] == b"application/octet-stream"
    assert b"content-encoding" not in dict(odd.headers)


def test_the_page_itself_is_the_engines_root() -> None:
    for path in ("/", "/index.html"):
        transcript = served("GET", path, answer=b"<html>")
        assert transcript.calls[0].path == "/"
        assert transcript.reply is not None
        assert dict(transcript.reply.headers)[b"content-type"] == b"text/html; charset=utf-8"


@pytest.mark.parametrize(
    "file", ["..", "../x", "a/../b", ".env", "a b", "a%2fb", "ä.js", "a//b", "x?y", "/".join("a" * 12)]
)
def test_a_file_of_the_page_has_a_plain_name(file: str) -> None:
    with pytest.raises(NotFound):
        opened("GET", "/_app/{file...}", values={"file": file})


def test_nobody_waits_for_a_page_to_wake_a_model() -> None:
    assert opened("GET", "/").wakes is False
    assert all(asset.access is Access.PUBLIC for asset in ASSETS)
