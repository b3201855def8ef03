"""The dialect contract catches what it promises to catch: one broken dialect per promise."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from llamaman.errors import InvalidField, LlamaManError
from llamaman.gateway.dialect import (
    JSON_HEADERS,
    Call,
    Dialect,
    Emit,
    InferenceRoute,
    Intent,
    Lease,
    Next,
    Phase,
    Reply,
    Request,
    Serving,
    Start,
)
from llamaman.records import ModelView
from llamaman.testing.dialect_contract import DialectContract, Example


class Good:
    """As small as a dialect can be."""

    name = "good"
    routes: tuple[InferenceRoute, ...] = (InferenceRoute("POST", "/ask"),)

    def open(self, request: Request) -> Intent | Reply:
        model = request.json.get("model")
        if not isinstance(model, str):
            raise InvalidField("model", "model must be a string")
        return Intent(model, "infer", "chat", request=request)

    def check(self, intent: Intent, model: ModelView) -> None:
        """Nothing to refuse."""

    def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
        assert intent.request is not None
        result: Any = yield Call("POST", "/v1/chat/completions", intent.request.raw, patch={"n": 1})
        yield Reply(result.status, JSON_HEADERS, result.body)

    def error(self, error: LlamaManError, *, started: bool) -> Reply | bytes:
        body = json.dumps({"error": error.message}).encode()
        headers = [*JSON_HEADERS]
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        return b"data: " + body + b"\n\n" if started else Reply(error.status, headers, body)

    def waiting(self, phase: Phase, seconds: float) -> bytes | None:
        return b": waiting\n\n"


def contract(dialect: Dialect) -> DialectContract:
    class Suite(DialectContract):
        examples = (Example("/ask", {"model": "alpha", "messages": []}),)

        def make_dialect(self) -> Dialect:
            return dialect

    return Suite()


def fails(dialect: Dialect, check: str, *arguments: str) -> None:
    with pytest.raises(
        (AssertionError, RuntimeError, LlamaManError, LookupError, TypeError, ValueError, ExceptionGroup)
    ):
        getattr(contract(dialect), check)(*arguments)


def test_a_good_dialect_passes() -> None:
    suite = contract(Good())
    checks = [name for name in dir(suite) if name.startswith("test_")]
    assert len(checks) > 12
    for name in checks:
        getattr(suite, name)(*(["QueueFull"] if "every_error" in name else []))


@pytest.mark.parametrize(
    "routes",
    [
        (),
        (InferenceRoute("POST", "/ask"), InferenceRoute("POST", "/ask")),
        (InferenceRoute("POST", "ask"),),
        (InferenceRoute("POST", "/ask/"),),
        (InferenceRoute("post", "/ask"),),
        (InferenceRoute("POST", "/a/{model}.json"),),
        (InferenceRoute("POST", "/a/{x}/{x}"),),
        (InferenceRoute("POST", "/ask", limit=0),),
    ],
)
def test_strange_routes_are_caught(routes: tuple[InferenceRoute, ...]) -> None:
    dialect = Good()
    dialect.routes = routes
    fails(dialect, "test_routes_are_sane_and_each_is_there_once")


def test_a_route_without_an_example_is_caught() -> None:
    dialect = Good()
    dialect.routes = (*Good.routes, InferenceRoute("GET", "/list"))
    fails(dialect, "test_every_route_has_an_example")


def test_an_unchecked_body_is_caught() -> None:
    class Careless(Good):
        def open(self, request: Request) -> Intent | Reply:
            return Intent(request.json["model"], request=request)

    fails(Careless(), "test_any_json_body_is_opened_or_refused_in_words")
    fails(Careless(), "test_a_good_body_with_one_strange_member_is_opened_or_refused_in_words")


@pytest.mark.parametrize(
    ("check", "serve"),
    [
        ("test_a_good_engine_gives_a_good_answer", lambda: [Emit(b"x")]),
        ("test_a_good_engine_gives_a_good_answer", list),
        ("test_a_good_engine_gives_a_good_answer", lambda: [Next()]),
        ("test_a_good_engine_gives_a_good_answer", lambda: [Start(200, ()), Start(200, ())]),
        ("test_a_good_engine_gives_a_good_answer", lambda: [Reply(200, (), b""), Emit(b"x")]),
        ("test_a_good_engine_gives_a_good_answer", lambda: [Reply(200, JSON_HEADERS, b"no json")]),
        ("test_a_good_engine_gives_a_good_answer", lambda: [Reply(200, ((b"A", b"b"),), b"")]),
        ("test_a_good_engine_gives_a_good_answer", lambda: [Call("POST", "/a b", b"{}")]),
        ("test_a_good_engine_gives_a_good_answer", lambda: [Call("POST", "/a", b"", patch={"a": 1})]),
        ("test_an_engines_refusal_reaches_the_client", lambda: [Call("POST", "/v1/chat/completions", b"{}")]),
    ],
)
def test_operations_out_of_order_are_caught(check: str, serve: Callable[[], list[Any]]) -> None:
    class Disorderly(Good):
        def check(self, intent: Intent, model: ModelView) -> None:
            """Nothing to refuse."""

        def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
            for op in serve():  # noqa: UP028 # a list takes no send()
                yield op

    fails(Disorderly(), check)


def test_a_generator_that_goes_on_after_its_client_left_is_caught() -> None:
    class Stubborn(Good):
        def check(self, intent: Intent, model: ModelView) -> None:
            """Nothing to refuse."""

        def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
            try:
                yield from super().serve(intent, model, lease)
            finally:
                yield Emit(b"still here")

    fails(Stubborn(), "test_a_client_may_leave_at_any_moment")


def test_a_clock_or_a_file_is_caught() -> None:
    class Clockwork(Good):
        def open(self, request: Request) -> Intent | Reply:
            time.time()
            return super().open(request)

    class Reader(Good):
        def open(self, request: Request) -> Intent | Reply:
            with open(__file__):
                return super().open(request)

    fails(Clockwork(), "test_the_same_request_gives_the_same_answer_without_touching_the_world")
    fails(Reader(), "test_the_same_request_gives_the_same_answer_without_touching_the_world")


def test_a_memory_between_requests_is_caught() -> None:
    class Counter(Good):
        seen = 0

        def open(self, request: Request) -> Intent | Reply:
            Counter.seen += 1
            return Intent("alpha", affinity=str(Counter.seen), request=request)

    fails(Counter(), "test_the_same_request_gives_the_same_answer_without_touching_the_world")


@pytest.mark.parametrize(
    "error",
    [
        lambda error, started: b"data: {}\n\n",
        lambda error, started: Reply(500, (), b""),
        lambda error, started: (
            b"data: {}\n\n" if started else Reply(error.status, ((b"retry-after", b"7"),), b"{}")
        ),
    ],
)
def test_an_error_that_is_phrased_badly_is_caught(error: Callable[..., Any]) -> None:
    class Mute(Good):
        def error(self, given: LlamaManError, *, started: bool) -> Reply | bytes:
            result: Reply | bytes = error(given, started)
            return result

    fails(Mute(), "test_every_error_of_the_kernel_is_phrased", "QueueFull")


@pytest.mark.parametrize("data", [b"data: hello\n\n", b": no end", b": touches an event\n", b"{}\n"])
def test_a_heartbeat_that_a_client_would_read_is_caught(data: bytes) -> None:
    class Talkative(Good):
        def waiting(self, phase: Phase, seconds: float) -> bytes | None:
            return data

    fails(Talkative(), "test_what_is_sent_while_waiting_means_nothing_to_a_client")
