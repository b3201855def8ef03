"""What the OpenAI API says, beyond what every dialect must do."""

from __future__ import annotations

import json
import struct
from base64 import b64decode
from dataclasses import replace
from typing import Any

import pytest

from llamaman import errors
from llamaman.errors import (
    InvalidField,
    InvalidRequest,
    LlamaManError,
    ModelNotFound,
    QueueFull,
    Unauthorized,
)
from llamaman.gateway.dialect import Call, Intent, Reply, Result
from llamaman.testing.dialect_script import MODEL, MODELS, drive, request_for
from llamaman_api_openai.dialect import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, RERANKS, TRANSCRIPTIONS, OpenAI

DIALECT = OpenAI()
HELLO = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}
ROUTES = {(route.method, route.pattern): route for route in DIALECT.routes}


def opened(path: str, body: dict[str, Any]) -> Intent:
    intent = DIALECT.open(request_for(ROUTES["POST", path], body))
    assert isinstance(intent, Intent)
    return intent


def models(name: str | None = None, **given: Any) -> Any:
    pattern, values = ("/v1/models", {}) if name is None else ("/v1/models/{model...}", {"model": name})
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


def test_the_model_list_has_the_shape_of_openai_and_what_local_models_have_besides() -> None:
    listed = models()
    assert listed["object"] == "list"
    assert [(e["id"], e["object"], e["created"], e["owned_by"]) for e in listed["data"]] == [
        ("alpha", "model", 1_700_000_000, "local"),
        ("beta", "model", 1_700_000_001, "local"),
    ]
    assert listed["data"][1]["capabilities"] == ["embedding"]
    assert listed["data"][0]["state"] == "not_loaded"


def test_models_that_cannot_run_are_not_listed() -> None:
    assert "folder" not in [entry["id"] for entry in models()["data"]]


def test_an_instance_port_lists_its_own_model_only() -> None:
    assert [entry["id"] for entry in models(own_model=MODELS[1])["data"]] == ["beta"]


def test_a_caller_sees_no_model_that_its_key_may_not_use() -> None:
    assert models(models=())["data"] == []


@pytest.mark.parametrize("name", ["alpha", "ALPHA", "Alpha:latest"])
def test_one_model_answers_to_every_spelling_and_echoes_it(name: str) -> None:
    assert (models(name)["id"], models(name)["created"]) == (name, 1_700_000_000)


@pytest.mark.parametrize("name", ["nobody", "folder", "some/body"])
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
    assert opened(CHAT, {"messages": [{}]}).model is None
    assert opened(CHAT, {"messages": [{}], "model": None}).model is None


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
    assert only_call(CHAT, {**HELLO, "tools": [{}], "max_tokens": 500}).mode == "assemble"
    assert only_call(CHAT, {**HELLO, "tools": [{}]}).mode == "assemble"
    assert only_call(COMPLETIONS, {"model": "alpha", "prompt": "a"}).mode == "assemble"


@pytest.mark.parametrize(
    "body",
    [
        {**HELLO, "n": 2},
        {**HELLO, "n_cmpl": 2},
        {**HELLO, "verbose": True},
        {**HELLO, "reasoning_format": "none"},
        {**HELLO, "tools": [{}], "logprobs": True},
        {**HELLO, "tools": [{}], "max_tokens": 20},
        {"model": "alpha", "messages": [*HELLO["messages"], {"role": "assistant", "content": "he"}]},
        {"model": "alpha", "prompt": ["a", "b"]},
    ],
)
def test_what_a_stream_does_not_tell_whole_is_asked_plainly(body: dict[str, Any]) -> None:
    assert only_call(COMPLETIONS if "prompt" in body else CHAT, body).mode == "plain"
    assert only_call(EMBEDDINGS, {"model": "beta", "input": "a"}).mode == "plain"


def test_the_clients_bytes_are_sent_and_only_patched() -> None:
    body = {**HELLO, "unknown": [1.50]}
    call = only_call(CHAT, body)
    assert json.loads(call.body) == body
    assert call.patch == {}


@pytest.mark.parametrize(("name", "rename"), [("alpha", None), ("ALPHA:latest", ("alpha", "ALPHA:latest"))])
def test_answers_name_the_model_as_the_client_did(name: str, rename: tuple[str, str] | None) -> None:
    for stream in (True, False):
        assert only_call(CHAT, {**HELLO, "model": name, "stream": stream}).rename == rename


def test_an_instance_port_without_a_model_name_renames_nothing() -> None:
    assert only_call(CHAT, {"messages": [{}]}).rename is None


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
    late = DIALECT.error(error, started=True)
    assert isinstance(late, bytes)
    event = json.loads(late.removeprefix(b"data: "))
    told = json.loads(reply.body)["error"]
    assert event["error"] == told, "what clients of chat completions look for"
    assert event == {**told, "type": "error", "error": told}, "an error event of the Responses API as well"


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


def engine_says(status: int, body: bytes) -> Reply:
    # A stream that the engine refuses ends like any other body: nothing of it was relayed.
    intent = opened(EMBEDDINGS, {"model": "beta", "input": "a"})
    reply = drive(DIALECT, intent, MODEL, answer=lambda call: Result(status, body)).reply
    assert reply is not None
    return reply


def test_an_engines_error_is_openais_object() -> None:
    said = {"code": 500, "message": "Compute error.", "type": "server_error"}
    reply = engine_says(500, json.dumps({"error": said}).encode())
    told = {"message": "Compute error.", "type": "server_error", "param": None, "code": None}
    assert (reply.status, json.loads(reply.body)) == (500, {"error": told})
    assert reply.late is not None, "in a stream that has begun it is the last event"
    assert json.loads(reply.late.removeprefix(b"data: "))["error"] == told


@pytest.mark.parametrize("body", [b"[]", b'{"error": "x"}', b'{"error": {"message": 5}}', b"5", b"<html>"])
def test_an_error_that_is_no_error_object_becomes_one(body: bytes) -> None:
    reply = engine_says(502, body)
    assert (reply.status, json.loads(reply.body)["error"]["message"]) == (502, "the engine failed")


def test_a_prompt_that_is_too_long_has_the_code_that_clients_shorten_it_for() -> None:
    said = {
        "code": 400,
        "message": "request (3019 tokens) exceeds the available context size (1024 tokens), try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 3019,
        "n_ctx": 1024,
    }
    reply = engine_says(400, json.dumps({"error": said}).encode())
    error = json.loads(reply.body)["error"]
    assert reply.status == 400
    assert (error["type"], error["code"]) == ("invalid_request_error", "context_length_exceeded")
    assert "maximum context length is 1024 tokens" in error["message"]
    assert "3019" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "slots", "tasks"),
    [
        (CHAT, {"n": 3}, 3, 3),
        (CHAT, {"prompt": ["a", "b"]}, 1, 1),
        (COMPLETIONS, {"prompt": "a"}, 1, 1),
        (COMPLETIONS, {"prompt": ["a", "b", "c"]}, 1, 3),
        (COMPLETIONS, {"prompt": [1, 2, 3]}, 1, 1),
        (COMPLETIONS, {"prompt": [[1, 2], [3]], "n": 2}, 2, 4),
        (COMPLETIONS, {"prompt": ["a", 1]}, 1, 1),
        (COMPLETIONS, {"prompt": []}, 1, 1),
        (EMBEDDINGS, {"input": ["a", "b"], "n": 2}, 1, 2),
        (EMBEDDINGS, {"input": [1, 2]}, 1, 1),
        ("/rerank", {"documents": ["a", "b", "c"]}, 1, 3),
    ],
)
def test_what_the_engine_makes_several_tasks_of_is_known(
    path: str, body: dict[str, Any], slots: int, tasks: int
) -> None:
    intent = opened(path, {"model": "alpha", **body})
    assert (intent.slots, intent.tasks) == (slots, tasks)


def test_a_conversation_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidField, match="too short") as error:
        DIALECT.check(opened(CHAT, {"model": "alpha", "messages": []}), MODEL)
    assert error.value.field == "messages"


# --- how long to think ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "patch"),
    [
        ({}, {}),
        ({"reasoning_effort": None}, {}),
        ({"reasoning_effort": "low"}, {}),
        ({"reasoning_effort": "minimal"}, {"reasoning_effort": "low"}),
        ({"reasoning_effort": "xhigh"}, {"reasoning_effort": "high"}),
        ({"reasoning": {"effort": "medium"}}, {"reasoning_effort": "medium"}),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"a": 1, "enable_thinking": True}},
            {"reasoning_effort": None, "chat_template_kwargs": {"a": 1, "enable_thinking": False}},
        ),
    ],
)
def test_openais_words_for_thinking_become_the_engines(asked: dict[str, Any], patch: dict[str, Any]) -> None:
    assert only_call(CHAT, {**HELLO, **asked}).patch == patch


@pytest.mark.parametrize("effort", ["", "Low", "very", 5, True, [], {}])
def test_an_unknown_word_for_thinking_is_refused(effort: Any) -> None:
    with pytest.raises(InvalidField, match="none, minimal, low"):
        opened(CHAT, {**HELLO, "reasoning_effort": effort})


# --- embeddings and rerank ------------------------------------------------------------------------------


def embedded(body: dict[str, Any], vectors: list[list[float]]) -> Any:
    def says(call: Call) -> Result:
        assert call.patch["encoding_format"] == "float"
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        return Result(
            200, json.dumps({"object": "list", "model": "beta", "data": data, "usage": {}}).encode()
        )

    reply = drive(
        DIALECT, opened(EMBEDDINGS, {"model": "beta", "input": "a", **body}), MODEL, answer=says
    ).reply
    assert reply is not None
    return json.loads(reply.body)["data"]


def test_shorter_embeddings_have_the_norm_1_again() -> None:
    first, second = embedded({"dimensions": 2}, [[3.0, 4.0, 9.0], [0.0, 0.0, 1.0]])
    assert first["embedding"] == pytest.approx([0.6, 0.8])
    assert second["embedding"] == [0.0, 0.0]


def test_shorter_embeddings_come_in_base64_as_well() -> None:
    (entry,) = embedded({"dimensions": 2, "encoding_format": "base64"}, [[3.0, 4.0, 9.0]])
    assert struct.unpack("<2f", b64decode(entry["embedding"])) == pytest.approx((0.6, 0.8))


def test_more_dimensions_than_there_are_is_the_clients_mistake() -> None:
    with pytest.raises(InvalidRequest, match="have only 3") as error:
        embedded({"dimensions": 4}, [[3.0, 4.0, 9.0]])
    assert (error.value.status, error.value.field) == (400, "dimensions")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dimensions", 0),
        ("dimensions", -1),
        ("dimensions", "5"),
        ("dimensions", True),
        ("encoding_format", "hex"),
    ],
)
def test_fields_of_embeddings_are_checked(field: str, value: Any) -> None:
    with pytest.raises(InvalidField) as error:
        opened(EMBEDDINGS, {"model": "beta", "input": "a", field: value})
    assert error.value.field == field


def test_a_reranker_makes_no_embeddings() -> None:
    assert MODEL.details is not None
    reranker = replace(MODEL, details=replace(MODEL.details, capabilities=frozenset({"embedding", "rerank"})))
    with pytest.raises(InvalidRequest, match="/v1/rerank"):
        DIALECT.check(opened(EMBEDDINGS, {"model": "alpha", "input": "a"}), reranker)
    DIALECT.check(opened(RERANK, {"model": "alpha"}), reranker)


@pytest.mark.parametrize("path", RERANKS)
def test_every_name_of_rerank_is_the_same(path: str) -> None:
    intent = opened(path, {"model": "beta", "query": "a", "documents": ["b"], "stream": True})
    (call,) = drive(DIALECT, intent).calls
    assert (call.path, call.mode, intent.needs, intent.stream) == ("/v1/rerank", "plain", "embedding", False)


# --- transcriptions -------------------------------------------------------------------------------------

FORM = b"multipart/form-data; boundary=xX1"


def form(*parts: tuple[str, bytes]) -> bytes:
    made = b"".join(
        b'--xX1\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), data)
        for name, data in parts
    )
    return made + b"--xX1--\r\n"


def transcription(raw: bytes, content_type: bytes = FORM) -> Intent:
    request = request_for(ROUTES["POST", TRANSCRIPTIONS], {}, raw=raw, content_type=content_type)
    intent = DIALECT.open(request)
    assert isinstance(intent, Intent)
    return intent


@pytest.mark.parametrize("order", [1, -1])
def test_an_upload_is_passed_on_untouched_wherever_its_model_stands(order: int) -> None:
    raw = form(*[("file", b"RIFF\r\n--xX\r\n\0\xff" * 3), ("model", b"alpha"), ("language", b"en")][::order])
    intent = transcription(raw)
    assert (intent.model, intent.stream) == ("alpha", False)
    (call,) = drive(DIALECT, intent).calls
    assert (call.body, call.content_type, call.mode, call.patch) == (raw, FORM, "plain", {})


def test_an_upload_without_a_model_is_for_the_instance_of_the_port() -> None:
    assert transcription(form(("file", b"x"))).model is None


def test_a_transcript_in_plain_text_stays_one() -> None:
    plain = Result(200, b"hello", content_type=b"text/plain; charset=x")
    reply = drive(DIALECT, transcription(form(("model", b"alpha"))), answer=lambda call: plain).reply
    assert reply is not None
    assert (reply.body, dict(reply.headers)[b"content-type"]) == (b"hello", b"text/plain; charset=utf-8")


@pytest.mark.parametrize(
    ("raw", "content_type"),
    [
        (b"", FORM),
        (b"broken", FORM),
        (b"--xX1\r\n", FORM),
        (b"--xX1--\r\n", FORM),
        (form(("model", b"a")).replace(b"--xX1--", b"--xX1"), FORM),
        (form(("model", b"a")), b"multipart/form-data; boundary=other"),
        (form(("model", b"a")), b"multipart/form-data"),
        (form(("model", b"a")), b"application/json"),
        (form(("model", b"a"), ("model", b"b")), FORM),
        (form(("model", b"\xff")), FORM),
        (form(("model", b"a" * 5000)), FORM),
        (form(("stream", b"true"), ("model", b"a")), FORM),
    ],
)
def test_a_broken_upload_is_refused_in_words(raw: bytes, content_type: bytes) -> None:
    with pytest.raises(LlamaManError) as error:
        transcription(raw, content_type)
    assert error.value.status == 400


# --- tools, stops and probabilities -----------------------------------------------------------------------

SAY: dict[str, Any] = {"type": "function", "function": {"name": "say", "parameters": {}}}
SING: dict[str, Any] = {"type": "function", "function": {"name": "sing", "parameters": {}}}
ONE = {"type": "function", "function": {"name": "sing"}}
SOME = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [ONE]}}


@pytest.mark.parametrize("path", [CHAT, CHAT + "/input_tokens"])
@pytest.mark.parametrize(
    ("choice", "patch"),
    [
        ("auto", {}),
        ("none", {}),
        ("required", {}),
        (ONE, {"tools": [SING], "tool_choice": "required"}),
        (SOME, {"tools": [SING], "tool_choice": "auto"}),
    ],
)
def test_a_chosen_tool_is_the_only_one_that_the_engine_hears_of(
    path: str, choice: Any, patch: dict[str, Any]
) -> None:
    call = only_call(path, {**HELLO, "tools": [SAY, SING], "tool_choice": choice, "max_tokens": 500})
    assert call.patch == patch


def test_the_responses_api_names_functions_without_a_member() -> None:
    say, sing = ({"type": "function", "name": name, "parameters": {}} for name in ("say", "sing"))
    body = {"model": "alpha", "input": "hi", "tools": [say, sing, {"type": "web_search"}]}
    for choice, mode in (
        ({"type": "function", "name": "sing"}, "required"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "sing"}]}, "auto"),
    ):
        patch = only_call("/v1/responses", {**body, "tool_choice": choice}).patch
        assert (patch["tools"], patch["tool_choice"]) == ([sing], mode)


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "function": {"name": "nobody"}},
        {"type": "function"},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [ONE, {"type": "web_search"}]}},
        {"type": "allowed_tools", "allowed_tools": {"mode": "never", "tools": [ONE]}},
        {"type": "allowed_tools"},
        {"type": "custom", "custom": {"name": "sing"}},
        {},
    ],
)
def test_a_choice_that_cannot_be_met_is_refused(choice: Any) -> None:
    with pytest.raises(InvalidField) as error:
        opened(CHAT, {**HELLO, "tools": [SAY, SING], "tool_choice": choice})
    assert error.value.field == "tool_choice"


def test_a_tool_must_be_there_to_be_required() -> None:
    for tools in ({}, {"tools": []}):
        with pytest.raises(InvalidField, match="no tools"):
            opened(CHAT, {**HELLO, "tool_choice": "required", **tools})


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, "functions", [{"name": "f"}]),
        (COMPLETIONS, "echo", True),
        (COMPLETIONS, "suffix", "}"),
        ("/v1/responses", "prompt", {"id": "p"}),
        (CHAT, "stop", 5),
        (CHAT, "stop", ["a", 5]),
        (COMPLETIONS, "stop", {}),
    ],
)
def test_what_would_be_left_out_in_silence_is_refused(path: str, field: str, value: Any) -> None:
    body = {**HELLO, "prompt": "a"} if path != "/v1/responses" else {"model": "alpha", "input": "a"}
    with pytest.raises(InvalidField) as error:
        opened(path, {**body, field: value})
    assert error.value.field == field
    for nothing in (None, [] if field in ("functions", "stop") else False if field == "echo" else None):
        opened(path, {**body, field: nothing})


def test_probabilities_without_those_of_other_tokens_are_still_given() -> None:
    asked = {**HELLO, "logprobs": True}
    assert only_call(CHAT, {**asked, "top_logprobs": 0}).patch == {"top_logprobs": 1}
    assert only_call(CHAT, asked).patch == {}


def test_probabilities_of_a_completion_come_in_both_forms() -> None:
    def token(text: str, logprob: float) -> dict[str, Any]:
        other = {"token": "x", "logprob": -9.0}
        return {
            "token": text,
            "logprob": logprob,
            "top_logprobs": [{"token": text, "logprob": logprob}, other],
        }

    def choice(*tokens: dict[str, Any]) -> dict[str, Any]:
        text = "".join(each["token"] for each in tokens)
        return {"index": 0, "text": text, "logprobs": {"content": list(tokens)}}

    body = {"model": "alpha", "prompt": "ab", "logprobs": 1}
    tokens = token("c", -0.5), token("de", -1.5)
    whole = json.dumps({"choices": [choice(*tokens)]}).encode()
    reply = drive(DIALECT, opened(COMPLETIONS, body), MODEL, answer=lambda call: Result(200, whole)).reply
    assert reply is not None
    lists = {
        "tokens": ["c", "de"],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{"c": -0.5}, {"de": -1.5}],
        "text_offset": [2, 3],
    }
    assert json.loads(reply.body)["choices"][0]["logprobs"] == {**lists, "content": list(tokens)}

    chunks = [{"choices": [choice(each)], "model": "alpha"} for each in tokens]
    asked = opened(COMPLETIONS, {**body, "model": "ALPHA", "stream": True})
    sent = drive(DIALECT, asked, MODEL, stream=lambda call: chunks).emitted.decode().split("\n\n")
    told = [json.loads(event.removeprefix("data: ")) for event in sent[:2]]
    assert sent[2:] == ["data: [DONE]", ""]
    assert [event["model"] for event in told] == ["ALPHA", "ALPHA"]
    assert [event["choices"][0]["logprobs"]["text_offset"] for event in told] == [[2], [3]]
    assert only_call(COMPLETIONS, {**body, "logprobs": 0}).patch == {"logprobs": 1}
