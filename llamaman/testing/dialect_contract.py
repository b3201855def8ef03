"""What every dialect must do. Inherit :class:`DialectContract`, make the dialect and give example requests.

    class TestMyDialect(DialectContract):
        examples = (Example("/my/chat", {"model": "alpha", "text": "hi"}),)

        def make_dialect(self):
            return MyDialect()

Give at least one example for every route. Models that exist are ``alpha`` and ``beta`` (an embedding model).
"""

from __future__ import annotations

import builtins
import inspect
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamaman import errors
from llamaman.access import Access
from llamaman.errors import LlamaManError
from llamaman.gateway.dialect import Dialect, Intent, Phase, Reply, Request
from llamaman.gateway.routes import Table
from llamaman.testing.dialect_script import (
    LEASE,
    MODEL,
    MODELS,
    Answer,
    Example,
    Stream,
    Transcript,
    check_reply,
    drive,
    good_answer,
    good_stream,
    refusal,
    request_for,
    route_of,
)

__all__ = ["DialectContract", "Example"]

FUZZED = 60
_DETAIL = "detail-that-only-managers-see"
_MESSAGE = 'it went wrong: "ä"'

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _text
    | st.sampled_from(["alpha", "beta", "ALPHA:latest", "", "user", "assistant"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=10,
)
_fuzz = settings(
    max_examples=FUZZED,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)


class DialectContract:
    """The contract suite."""

    examples: ClassVar[Sequence[Example]] = ()

    def make_dialect(self) -> Dialect:
        """The dialect under test."""
        raise NotImplementedError("return your dialect")

    # --- routes ---------------------------------------------------------------------------------------

    def test_routes_are_sane_and_each_is_there_once(self) -> None:
        dialect = self.make_dialect()
        assert dialect.name
        assert dialect.routes, "a dialect without routes serves nobody"
        table: Table[object] = Table()
        for route in dialect.routes:
            table.add(route.method, route.pattern, route, dialect.name)  # raises when it is there twice
            assert route.method in {"GET", "POST", "PUT", "PATCH", "DELETE"}, route
            assert route.body in {"json", "list", "raw", "none"}, route
            assert route.surfaces, route
            assert set(route.surfaces) <= {"manage", "proxy", "instance"}, route
            assert isinstance(route.access, Access), route
            assert 0 < route.limit <= 1 << 30, route
            assert route.pattern == "/" or not route.pattern.endswith("/"), route
            names = []
            for segment in route.pattern[1:].split("/"):
                if "{" in segment or "}" in segment:
                    assert re.fullmatch(r"\{[a-z_]+(\.\.\.)?\}", segment), (
                        f"a name is a whole segment: {route}"
                    )
                    names.append(segment)
                else:
                    assert re.fullmatch(r"[\w.~:@-]*", segment), f"{segment!r} of {route}"
            assert route.pattern.startswith("/"), route
            assert len(set(names)) == len(names), route

    def test_every_route_has_an_example(self) -> None:
        dialect = self.make_dialect()
        known = {(example.method, example.pattern) for example in self.examples}
        missing = [r for r in dialect.routes if (r.method, r.pattern) not in known]
        assert not missing, f"give an example for {missing}"

    # --- open -----------------------------------------------------------------------------------------

    def test_every_example_is_accepted(self) -> None:
        dialect = self.make_dialect()
        for example in self.examples:
            opened = self._open(dialect, example)
            if isinstance(opened, Reply):
                check_reply(opened)
                assert opened.status == example.refused if example.refused else opened.status < 400, opened
            else:
                assert not example.refused, f"{example} is not refused"
                _check_intent(opened)

    def test_any_json_body_is_opened_or_refused_in_words(self) -> None:
        dialect = self.make_dialect()
        for example in self.examples:
            route = route_of(dialect, example)

            @_fuzz
            @given(st.dictionaries(_text | st.sampled_from(sorted(example.body)), _values, max_size=5))
            def any_object(body: dict[str, Any]) -> None:
                self._survives(dialect, request_for(route, body, example.values, **_raw(example)))  # noqa: B023 # called in this turn

            if example.body:
                any_object()

    def test_a_good_body_with_one_strange_member_is_opened_or_refused_in_words(self) -> None:
        dialect = self.make_dialect()
        for example in self.examples:
            route = route_of(dialect, example)
            places = list(_places(example.body))

            @_fuzz
            @given(st.sampled_from(places or [()]), _values)
            def one_strange_member(place: tuple[Any, ...], value: Any) -> None:
                body = _with(example.body, place, value)  # noqa: B023 # called in this turn of the loop
                self._survives(dialect, request_for(route, body, example.values, **_raw(example)))  # noqa: B023 # the same

            if places:
                one_strange_member()

    def test_any_value_of_a_path_is_opened_or_refused_in_words(self) -> None:
        dialect = self.make_dialect()
        for example in self.examples:
            route = route_of(dialect, example)

            @_fuzz
            @given(_text)
            def any_value(value: str) -> None:
                values = dict.fromkeys(example.values, value)  # noqa: B023 # called in this turn of the loop
                self._survives(dialect, request_for(route, example.body, values, **_raw(example)))  # noqa: B023 # the same

            if example.values:
                any_value()

    def _survives(self, dialect: Dialect, request: Request) -> None:
        opened = _opened(dialect, request)
        if isinstance(opened, LlamaManError):
            assert 400 <= opened.status < 500, f"{opened.status} blames the server for {request.json}"
            phrased = dialect.error(opened, started=False)
            assert isinstance(phrased, Reply)
            check_reply(phrased)
            return
        if isinstance(opened, Reply):
            check_reply(opened)
            return
        _check_intent(opened)
        if opened.action == "infer":
            drive(dialect, opened)

    def test_models_that_a_caller_may_not_see_are_not_listed(self) -> None:
        dialect = self.make_dialect()
        for example in self.examples:
            route = route_of(dialect, example)
            opened = _opened(dialect, request_for(route, example.body, example.values, models=MODELS[1:]))
            if isinstance(opened, Reply) and not example.values and not example.body:
                assert b"alpha" not in opened.body.lower(), f"{example} lists what it was not given"

    # --- serve ----------------------------------------------------------------------------------------

    def test_a_good_engine_gives_a_good_answer(self) -> None:
        for example, transcript in self._served(good_answer):
            if transcript.reply:
                assert transcript.reply.status == 200, example
            else:
                assert transcript.relayed or transcript.emitted, f"{example} is never answered"

    def test_an_engines_refusal_reaches_the_client(self) -> None:
        for example, transcript in self._served(refusal):
            if not transcript.calls:
                continue
            reply = transcript.reply
            assert reply is not None, f"{example}: an error before the first byte is a whole answer"
            assert reply.status == 400, example
            assert b"the engine refuses this" in reply.body, example

    def test_a_stream_that_ends_early_is_still_answered(self) -> None:
        dialect = self.make_dialect()
        for example, intent in self._intents(dialect):
            for count in range(3):
                transcript = drive(dialect, intent, stream=_cut(count))
                assert transcript.reply or transcript.relayed or transcript.begun, example

    def test_a_client_may_leave_at_any_moment(self) -> None:
        dialect = self.make_dialect()
        for _, intent in self._intents(dialect):
            whole = drive(dialect, intent)
            for count in range(len(whole.ops) + 1):
                drive(
                    dialect, intent, most_ops=count
                )  # closes the generator; it must neither raise nor go on

    def test_a_generator_that_never_began_can_be_closed(self) -> None:
        dialect = self.make_dialect()
        for _, intent in self._intents(dialect):
            dialect.serve(intent, MODEL, LEASE).close()

    # --- errors and waiting ---------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", sorted(vars(errors)), ids=str)
    def test_every_error_of_the_kernel_is_phrased(self, kind: str) -> None:
        error = _error(kind)
        if error is None:
            return
        dialect = self.make_dialect()
        reply = dialect.error(error, started=False)
        assert isinstance(reply, Reply), "before the start an error is a whole answer"
        assert reply.status == error.status
        check_reply(reply)
        assert dict(reply.headers).get(b"retry-after") == (b"7" if error.retry_after else None)
        late = dialect.error(error, started=True)
        assert isinstance(late, bytes), "after the start an error is bytes of the stream"
        assert late.endswith(b"\n")
        for text in (reply.body, late):
            assert error.message in _strings(text), "the message is what the user reads"
            assert _DETAIL.encode() not in text, "detail is for managers"

    def test_what_is_sent_while_waiting_means_nothing_to_a_client(self) -> None:
        dialect = self.make_dialect()
        for phase in get_args(Phase):
            data = dialect.waiting(phase, 15.0)
            if data is None:
                continue
            assert isinstance(data, bytes)
            assert data.endswith(b"\n")
            for line in data.splitlines():
                assert not line.strip() or line.startswith(b":"), f"{line!r} is not a comment"
            assert not data.strip() or data.endswith(b"\n\n"), "a comment of its own must not touch an event"

    # --- purity ---------------------------------------------------------------------------------------

    def test_the_same_request_gives_the_same_answer_without_touching_the_world(self) -> None:
        dialect = self.make_dialect()
        for example in self.examples:
            self._open(
                dialect, example
            )  # what is imported or cached at the first use is not I/O of a request
        with _sealed_off():
            for example in self.examples:
                first, second = self._open(dialect, example), self._open(self.make_dialect(), example)
                assert first == second, example
                if isinstance(first, Intent) and isinstance(second, Intent) and first.action == "infer":
                    assert drive(dialect, first).ops == drive(dialect, second).ops, example
                dialect.error(errors.QueueFull("full"), started=False)
                dialect.waiting("queue", 15.0)

    def test_a_request_is_not_changed(self) -> None:
        dialect = self.make_dialect()
        for example in self.examples:
            body = json.loads(json.dumps(example.body))
            opened = dialect.open(
                request_for(route_of(dialect, example), body, example.values, **_raw(example))
            )
            if isinstance(opened, Intent) and opened.action == "infer":
                drive(dialect, opened)
            assert body == example.body, example

    # --- small things ---------------------------------------------------------------------------------

    def _open(self, dialect: Dialect, example: Example) -> Intent | Reply:
        return dialect.open(
            request_for(route_of(dialect, example), example.body, example.values, **_raw(example))
        )

    def _intents(self, dialect: Dialect) -> Iterator[tuple[Example, Intent]]:
        for example in self.examples:
            opened = self._open(dialect, example)
            if isinstance(opened, Intent) and opened.action == "infer":
                yield example, opened

    def _served(self, answer: Answer) -> Iterator[tuple[Example, Transcript]]:
        dialect = self.make_dialect()
        for example, intent in self._intents(dialect):
            yield example, drive(dialect, intent, answer=answer)


def _opened(dialect: Dialect, request: Request) -> Intent | Reply | LlamaManError:
    """What became of a request; anything else that is raised fails the test."""
    try:
        return dialect.open(request)
    except LlamaManError as refusal:
        return refusal


def _raw(example: Example) -> dict[str, Any]:
    return {"raw": example.raw, "content_type": example.content_type}


def _check_intent(intent: Intent) -> None:
    assert intent.model is None or isinstance(intent.model, str), intent
    assert intent.action in {"infer", "load", "unload"}, intent
    assert intent.needs in {"chat", "completion", "embedding", "any"}, intent
    assert isinstance(intent.stream, bool), intent
    assert isinstance(intent.slots, int), intent
    assert intent.slots >= 0, intent  # 0: it runs beside what generates
    assert intent.keep_alive is None or isinstance(intent.keep_alive, int | float), intent


def _cut(count: int) -> Stream:
    """A stream that ends after so many events."""
    return lambda call: good_stream(call)[:count]


def _error(kind: str) -> LlamaManError | None:
    """An error of a class named in llamaman.errors, with everything that it can carry."""
    cls = getattr(errors, kind)
    if not (inspect.isclass(cls) and issubclass(cls, LlamaManError)):
        return None
    if cls is errors.InvalidField:
        return errors.InvalidField("n", _MESSAGE)
    if cls is errors.ModelNotFound:
        return errors.ModelNotFound("ä", ["b", "c"])
    if cls is errors.PluginError:
        return errors.PluginError("some", _MESSAGE)
    return cls(_MESSAGE, detail=_DETAIL, retry_after=7, field="model")


def _strings(text: bytes) -> list[str]:
    """Every string in an answer's or an event's JSON."""
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    for line in text.splitlines():
        data = line.removeprefix(b"data:").strip()
        if data.startswith(b"{"):
            walk(json.loads(data))
    return found


def _places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every member in a JSON value."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*here, key)
        if isinstance(inner, dict | list):
            yield from _places(inner, (*here, key))


def _with(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy with the member at a place replaced."""
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = _with(copy[place[0]], place[1:], new)
    return copy


@contextmanager
def _sealed_off() -> Iterator[None]:
    """No files, sockets, processes, threads or clocks for the time of the block."""

    def forbidden(what: str) -> Callable[..., NoReturn]:
        def refuse(*args: object, **kwargs: object) -> NoReturn:
            raise AssertionError(f"a dialect is pure, but it used {what}")

        return refuse

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", forbidden("open()"))
        patch.setattr(os, "open", forbidden("os.open()"))
        patch.setattr(os, "stat", forbidden("os.stat()"))
        patch.setattr(socket, "socket", forbidden("a socket"))
        patch.setattr(subprocess, "Popen", forbidden("a process"))
        patch.setattr(threading.Thread, "start", forbidden("a thread"))
        for clock in ("time", "time_ns", "monotonic", "sleep"):
            patch.setattr(time, clock, forbidden(f"time.{clock}()"))
        yield
