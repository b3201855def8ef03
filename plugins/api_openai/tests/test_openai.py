"""What the OpenAI API says, beyond what every dialect must do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamaman import errors
from llamaman.errors import InvalidField, LlamaManError, ModelNotFound, QueueFull, Unauthorized
from llamaman.gateway.dialect import Call, Intent, Reply, Result
from llamaman.testing.dialect_script import MODEL, MODELS, drive, request_for
from llamaman_api_openai.dialect import CHAT, COMPLETIONS, EMBEDDINGS, OpenAI

DIALECT = OpenAI()
HELLO = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}
ROUTES = {(route.method, route.pattern): route for route in DIALECT.routes}


def opened(path: str, body: dict[str, Any]) -> Intent:
    intent = DIALECT.open(request_for(ROUTES["POST", path], body))
    assert isinstance(intent, Intent)
    return intent


def models(name: str | None = None, **given: Any) -> Any:
    pattern, values = ("/v1/models", {}) if name is None else ("/v1/models/{model}", {"model": name})
    reply = DIALECT.open(request_for(ROUTES["GET", pattern], {}, values, **given))
    assert isinstance(reply, Reply)
    assert reply.status == 200
    return json.loads(reply.body)


def only_call(path: str, body: dict[str, Any]) -> Call:
    calls = drive(DIALECT, opened(path, body)).calls
    assert len(calls) == 1
    assert calls[0].path == path
    return calls[0]


# --- models ---------------------------------------------------------------------------------------------


def test_the_model_list_has_the_shape_of_openai() -> None:
    assert models() == {
        "object": "list",
        "data": [
            {"id": "alpha", "object": "model", "created": 1_700_000_000, "owned_by": "local"},
            {"id": "beta", "object": "model", "created": 1_700_000_001, "owned_by": "local"},
        ],
    }


def test_models_that_cannot_run_are_not_listed() -> None:
    assert "folder" not in [entry["id"] for entry in models()["data"]]


def test_an_instance_port_lists_its_own_model_only() -> None:
    assert [entry["id"] for entry in models(own_model=MODELS[1])["data"]] == ["beta"]


def test_a_caller_sees_no_model_that_its_key_may_not_use() -> None:
    assert models(models=())["data"] == []


@pytest.mark.parametrize("name", ["alpha", "ALPHA", "Alpha:latest"])
def test_one_model_answers_to_every_spelling_and_echoes_it(name: str) -> None:
    assert models(name) == {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "local"}


@pytest.mark.parametrize("name", ["nobody", "alph", "folder"])
def test_an_unknown_model_is_openais_404(name: str) -> None:
    with pytest.raises(ModelNotFound) as error:
        models(name)
    reply = DIALECT.error(error.value, started=False)
    assert isinstance(reply, Reply)
    assert (reply.status, json.loads(reply.body)) == (
        404,
        {
            "error": {
                "message": f"model '{name}' not found",
                "type": "not_found_error",
                "param": "model",
                "code": "model_not_found",
            }
        },
    )


# --- what is asked --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "needs"), [(CHAT, "chat"), (COMPLETIONS, "completion"), (EMBEDDINGS, "embedding")]
)
def test_each_endpoint_needs_a_model_of_its_kind(path: str, needs: str) -> None:
    assert opened(path, {"model": "alpha"}).needs == needs


def test_the_model_may_be_left_out_for_an_instance_port() -> None:
    assert opened(CHAT, {"messages": []}).model is None
    assert opened(CHAT, {"messages": [], "model": None}).model is None


@pytest.mark.parametrize("model", [1, True, ["alpha"], {"name": "alpha"}, 1.5])
def test_a_model_that_is_no_text_is_refused(model: Any) -> None:
    with pytest.raises(InvalidField) as error:
        opened(CHAT, {**HELLO, "model": model})
    assert (error.value.field, error.value.status) == ("model", 400)


@pytest.mark.parametrize("stream", [1, 0, "true", "false", [], {}, 0.0])
def test_a_stream_flag_that_is_no_boolean_is_refused(stream: Any) -> None:
    with pytest.raises(InvalidField) as error:
        opened(CHAT, {**HELLO, "stream": stream})
    assert error.value.field == "stream"


@pytest.mark.parametrize(("stream", "streams"), [(True, True), (False, False), (None, False)])
def test_a_stream_is_one_when_it_is_asked_for(stream: bool | None, streams: bool) -> None:
    assert opened(CHAT, {**HELLO, "stream": stream}).stream is streams
    assert opened(EMBEDDINGS, {"model": "beta", "input": "a", "stream": stream}).stream is False


@pytest.mark.parametrize("n", [0, -1, 129, 1.0, 1.5, "2", True, [], {}])
def test_n_is_a_whole_number_from_1_to_128(n: Any) -> None:
    for path in (CHAT, COMPLETIONS):
        with pytest.raises(InvalidField) as error:
            opened(path, {**HELLO, "n": n})
        assert (error.value.field, "1 to 128" in error.value.message) == ("n", True)


@pytest.mark.parametrize(("n", "slots"), [(None, 1), (1, 1), (2, 2), (128, 128)])
def test_n_takes_as_many_slots(n: int | None, slots: int) -> None:
    assert opened(CHAT, {**HELLO, "n": n}).slots == slots
    assert opened(EMBEDDINGS, {"model": "beta", "n": n}).slots == 1


# --- how the engine is asked ----------------------------------------------------------------------------


def test_a_stream_is_relayed_and_a_body_rebuilt() -> None:
    assert only_call(CHAT, {**HELLO, "stream": True}).mode == "relay"
    assert only_call(COMPLETIONS, {"model": "alpha", "prompt": "a", "stream": True}).mode == "relay"
    assert only_call(CHAT, HELLO).mode == "assemble"
    assert only_call(COMPLETIONS, {"model": "alpha", "prompt": "a"}).mode == "assemble"


@pytest.mark.parametrize(
    "body",
    [
        {**HELLO, "n": 2},
        {**HELLO, "verbose": True},
        {**HELLO, "reasoning_format": "none"},
        {"model": "alpha", "messages": [*HELLO["messages"], {"role": "assistant", "content": "he"}]},
        {"model": "alpha", "prompt": ["a", "b"]},
    ],
)
def test_what_a_stream_does_not_tell_whole_is_asked_plainly(body: dict[str, Any]) -> None:
    assert only_call(COMPLETIONS if "prompt" in body else CHAT, body).mode == "plain"
    assert only_call(EMBEDDINGS, {"model": "beta", "input": "a"}).mode == "plain"


def test_the_clients_bytes_are_sent_and_only_patched() -> None:
    body = {**HELLO, "id_slot": 3, "unknown": [1.50]}
    call = only_call(CHAT, body)
    assert json.loads(call.body) == body
    assert call.patch == {"id_slot": -1}  # which slot serves whom is the pool's business
    assert only_call(CHAT, HELLO).patch == {}


@pytest.mark.parametrize(("name", "rename"), [("alpha", None), ("ALPHA:latest", ("alpha", "ALPHA:latest"))])
def test_answers_name_the_model_as_the_client_did(name: str, rename: tuple[str, str] | None) -> None:
    for stream in (True, False):
        assert only_call(CHAT, {**HELLO, "model": name, "stream": stream}).rename == rename


def test_an_instance_port_without_a_model_name_renames_nothing() -> None:
    assert only_call(CHAT, {"messages": []}).rename is None


@pytest.mark.parametrize(
    ("body", "most"),
    [({}, None), ({"max_tokens": 5}, 5), ({"max_completion_tokens": 6}, 6), ({"n_predict": 7}, 7)]
    + [({"max_tokens": value}, None) for value in (0, -1, True, "5", 2.5)],
)
def test_the_length_of_an_answer_is_known_when_the_client_bounds_it(
    body: dict[str, Any], most: int | None
) -> None:
    assert only_call(CHAT, {**HELLO, **body}).most_tokens == most


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidField("n", "no"), "invalid_request_error"),
        (Unauthorized("no"), "authentication_error"),
        (errors.Forbidden("no"), "permission_error"),
        (ModelNotFound("no"), "not_found_error"),
        (errors.PayloadTooLarge("no"), "invalid_request_error"),
        (QueueFull("no"), "rate_limit_error"),
        (errors.ModelUnavailable("no"), "unavailable_error"),
        (errors.UpstreamFailed("no"), "server_error"),
        (LlamaManError("no"), "server_error"),
    ],
)
def test_an_error_is_openais_object(error: LlamaManError, kind: str) -> None:
    reply = DIALECT.error(error, started=False)
    assert isinstance(reply, Reply)
    assert json.loads(reply.body) == {
        "error": {"message": error.message, "type": kind, "param": error.field, "code": error.code}
    }
    assert DIALECT.error(error, started=True) == b"data: " + reply.body + b"\n\n"


def test_a_caller_without_a_key_is_told_how_to_send_one() -> None:
    reply = DIALECT.error(Unauthorized("API key required"), started=False)
    assert isinstance(reply, Reply)
    assert dict(reply.headers)[b"www-authenticate"] == b"Bearer"


def test_when_to_try_again_is_a_header() -> None:
    reply = DIALECT.error(QueueFull("full", retry_after=3), started=False)
    assert isinstance(reply, Reply)
    assert dict(reply.headers)[b"retry-after"] == b"3"


def test_an_embedding_body_is_passed_on_as_it_is() -> None:
    transcript = drive(DIALECT, opened(EMBEDDINGS, {"model": "beta", "input": ["a"]}), MODEL)
    assert transcript.reply is not None
    assert json.loads(transcript.reply.body)["data"][0]["embedding"] == [0.5, -0.5]


def engine_says(status: int, message: str) -> Reply:
    def says(call: Call) -> Result:
        return Result(status, json.dumps({"error": {"code": status, "message": message}}).encode())

    # A stream that the engine refuses ends like any other body: nothing of it was relayed.
    reply = drive(DIALECT, opened(EMBEDDINGS, {"model": "beta", "input": "a"}), MODEL, answer=says).reply
    assert reply is not None
    return reply


@pytest.mark.parametrize(
    "message",
    [
        "Failed to parse tools: Expected 'tools' to be an array, got true; tools = true",
        "Unknown reasoning format: x",
        "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
    ],
)
def test_what_is_the_clients_fault_is_no_fault_of_the_server(message: str) -> None:
    reply = engine_says(500, message)
    assert reply.status == 400
    error = json.loads(reply.body)["error"]
    assert (error["message"], error["type"], error["code"]) == (message, "invalid_request_error", 400)


@pytest.mark.parametrize("message", ["Compute error.", "", "we Failed to parse tools"])
def test_a_fault_of_the_engine_stays_one(message: str) -> None:
    reply = engine_says(500, message)
    assert (reply.status, json.loads(reply.body)["error"]["message"]) == (500, message)
    assert engine_says(503, "Failed to parse tools").status == 503


@pytest.mark.parametrize("body", [b"[]", b'{"error": "x"}', b'{"error": {"message": 5}}', b"5"])
def test_an_error_that_is_no_error_object_is_passed_on(body: bytes) -> None:
    intent = opened(EMBEDDINGS, {"model": "beta", "input": "a"})
    reply = drive(DIALECT, intent, MODEL, answer=lambda call: Result(500, body)).reply
    assert reply is not None
    assert (reply.status, reply.body) == (500, body)
