"""How tokens are counted, and what errors look like."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamaman import errors
from llamaman.errors import LlamaManError
from llamaman.gateway.dialect import Call, Intent, Reply, Result
from llamaman.testing.dialect_script import MODEL, Transcript, drive, request_for
from llamaman_api_anthropic.dialect import COUNT, MESSAGES, Anthropic

DIALECT = Anthropic()
ROUTES = {route.pattern: route for route in DIALECT.routes}
HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]


def sent(path: str, answers: dict[str, tuple[int, Any]], **fields: Any) -> Transcript:
    """A request to an engine that answers so on each path, and 404 on others."""

    def says(call: Call) -> Result:
        status, body = answers.get(call.path, (404, {"error": {"message": "File Not Found", "code": 404}}))
        return Result(status, json.dumps(body).encode())

    body = {"model": "alpha", "messages": HI, **fields}
    intent = DIALECT.open(request_for(ROUTES[path], body))
    assert isinstance(intent, Intent)
    return drive(DIALECT, intent, MODEL, answer=says)


def told(transcript: Transcript) -> tuple[int, Any]:
    assert transcript.reply is not None
    return transcript.reply.status, json.loads(transcript.reply.body)


# --- counting -------------------------------------------------------------------------------------------

INPUT_TOKENS = "/v1/chat/completions/input_tokens"


def test_the_engine_counts_the_tokens_of_what_it_would_be_asked() -> None:
    tools = [{"name": "f", "input_schema": {}}]
    counted = sent(COUNT, {INPUT_TOKENS: (200, {"input_tokens": 12})}, system="S", tools=tools)
    assert told(counted) == (200, {"input_tokens": 12})
    (call,) = counted.calls
    body = json.loads(call.body)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["tools"][0]["function"]["name"] == "f"
    assert "max_tokens" not in body


@pytest.mark.parametrize("status", [404, 501])
def test_an_engine_that_cannot_count_makes_the_prompt_and_its_tokens(status: int) -> None:
    counted = sent(
        COUNT,
        {
            INPUT_TOKENS: (status, {"error": {"message": "no"}}),
            "/apply-template": (200, {"prompt": "<user>hi"}),
            "/tokenize": (200, {"tokens": [1, 2, 3]}),
        },
    )
    assert told(counted) == (200, {"input_tokens": 3})
    assert json.loads(counted.calls[-1].body) == {
        "content": "<user>hi",
        "add_special": True,
        "parse_special": True,
    }


def test_what_cannot_be_counted_is_an_error() -> None:
    status, body = told(sent(COUNT, {}))
    assert (status, body["error"]["type"]) == (404, "not_found_error")
    with pytest.raises(LlamaManError, match="how many tokens"):
        sent(COUNT, {INPUT_TOKENS: (200, {}), "/apply-template": (200, {}), "/tokenize": (200, {})})


def test_a_refusal_to_count_reaches_the_client() -> None:
    no = {"error": {"message": "image input is not supported - hint", "code": 400}}
    counted = sent(COUNT, {INPUT_TOKENS: (400, no)})
    assert len(counted.calls) == 1
    status, body = told(counted)
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidField("n", "no"), 400, "invalid_request_error"),
        (errors.Unauthorized("no"), 401, "authentication_error"),
        (errors.Forbidden("no"), 403, "permission_error"),
        (errors.ModelNotFound("no"), 404, "not_found_error"),
        (errors.Conflict("no"), 409, "invalid_request_error"),
        (errors.PayloadTooLarge("no"), 413, "request_too_large"),
        (errors.Misdirected("no"), 421, "invalid_request_error"),
        (errors.QueueFull("no"), 429, "rate_limit_error"),
        (errors.LaunchError("no"), 500, "api_error"),
        (errors.UpstreamFailed("no"), 502, "api_error"),
        (errors.ModelUnavailable("no"), 503, "overloaded_error"),
        (errors.UpstreamTimeout("no"), 504, "timeout_error"),
    ],
)
def test_an_error_is_anthropics_envelope(error: LlamaManError, status: int, kind: str) -> None:
    reply = DIALECT.error(error, started=False)
    assert isinstance(reply, Reply)
    assert reply.status == status
    assert json.loads(reply.body) == {
        "type": "error",
        "error": {"type": kind, "message": error.message},
        "request_id": None,
    }
    assert DIALECT.error(error, started=True) == b"event: error\ndata: " + reply.body + b"\n\n"


def test_an_error_names_its_request_in_the_body_and_in_the_header() -> None:
    error = errors.QueueFull("no", retry_after=3)
    error.request_id = "1-7"
    reply = DIALECT.error(error, started=False)
    assert isinstance(reply, Reply)
    assert json.loads(reply.body)["request_id"] == "req_1-7"
    assert dict(reply.headers) == {
        b"content-type": b"application/json",
        b"request-id": b"req_1-7",
        b"retry-after": b"3",
    }


def test_an_engines_error_is_told_in_its_words() -> None:
    answer = {"error": {"code": 500, "message": "Compute error.", "type": "x"}}
    got, body = told(sent(MESSAGES, {"/v1/chat/completions": (500, answer)}, max_tokens=5))
    assert (got, body["error"]["message"], body["request_id"]) == (500, "Compute error.", "req_1-1")


def test_a_prompt_that_is_too_long_is_told_in_anthropics_words() -> None:
    """Its clients make the conversation shorter when they read them."""
    said = {"message": "request (3019 tokens) exceeds", "n_prompt_tokens": 3019, "n_ctx": 1024}
    for path, field in ((MESSAGES, {"max_tokens": 5}), (COUNT, {})):
        answers = {"/v1/chat/completions": (400, {"error": said}), INPUT_TOKENS: (400, {"error": said})}
        got, body = told(sent(path, answers, **field))
        assert (got, body["error"]["type"]) == (400, "invalid_request_error")
        assert body["error"]["message"] == "prompt is too long: 3019 tokens > 1024 maximum"


@pytest.mark.parametrize("body", [[], {"error": "x"}, {"error": {"message": 5}}, 5])
def test_an_error_without_words_gets_some(body: Any) -> None:
    status, said = told(sent(MESSAGES, {"/v1/chat/completions": (500, body)}, max_tokens=5))
    assert (status, said["error"]["message"]) == (500, "the engine answered 500 without saying why")
