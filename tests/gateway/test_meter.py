"""Counting what passes: figures, and which events a client never sees."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llamaman.gateway.meter import Meter

TIMINGS = {
    "cache_n": 10,
    "prompt_n": 5,
    "prompt_ms": 3.0,
    "predicted_n": 8,
    "predicted_ms": 70.0,
    "predicted_per_second": 100.5,
}


def sse(*events: dict[str, Any] | str) -> bytes:
    return b"".join(
        b"data: %b\n\n" % (e if isinstance(e, str) else json.dumps(e, separators=(",", ":"))).encode()
        for e in events
    )


def delta(text: str | None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}], **more}


def test_ordinary_events_pass_as_they_are() -> None:
    block = sse(delta("a"), delta("b"), "[DONE]")
    assert Meter().pass_events(block) is block


def test_progress_and_pings_are_removed_and_are_no_first_token() -> None:
    meter = Meter()
    progress = delta(None, prompt_progress={"total": 9, "cache": 0, "processed": 3, "time_ms": 1})
    assert meter.pass_events(sse(progress)) == b""
    assert meter.pass_events(b":\n\n") == b""
    assert meter.pass_events(b": ping\n\n:\n\n") == b""
    assert (meter.first, meter.usage().ttft_s) == (None, None)
    assert meter.pass_events(sse(progress) + b":\n\n" + sse(delta("a")) + b":\n\n") == sse(delta("a"))
    assert (meter.usage().ttft_s or -1) >= 0


@given(st.text(max_size=30))
def test_text_that_looks_like_progress_or_a_ping_still_passes(text: str) -> None:
    for looks in ('"prompt_progress"', ":", "\n:", "\n\n: ping", '{"prompt_progress": {}}', '"timings"'):
        event = delta(text + looks + text)
        assert Meter().pass_events(sse(event, delta("x"))) == sse(event, delta("x"))


def test_the_figures_come_from_the_last_event() -> None:
    meter = Meter()
    meter.pass_events(sse(delta("a")))
    meter.pass_events(sse(delta("b"), delta(None, timings=TIMINGS), "[DONE]"))
    usage = meter.usage()
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (15, 10, 8)
    assert usage.tokens_per_second == 100.5


def test_with_timings_in_each_event_the_last_ones_count() -> None:
    meter = Meter()
    meter.pass_events(sse(*(delta("a", timings={**TIMINGS, "predicted_n": n}) for n in (1, 2, 3))))
    assert meter.usage().completion_tokens == 3


def test_one_token_has_no_speed() -> None:
    meter = Meter()
    meter.pass_events(sse(delta("a", timings={**TIMINGS, "predicted_n": 1, "predicted_per_second": 0.0})))
    assert (meter.usage().completion_tokens, meter.usage().tokens_per_second) == (1, None)


def test_a_parsed_body_is_read_too() -> None:
    meter = Meter()
    meter.saw({"usage": {"prompt_tokens": 4, "completion_tokens": 6}})
    assert (meter.usage().prompt_tokens, meter.usage().completion_tokens) == (4, 6)
    assert meter.usage().cached_tokens is None


def test_what_the_engine_did_not_say_is_unknown_not_zero() -> None:
    usage = Meter().usage()
    assert (usage.prompt_tokens, usage.completion_tokens, usage.ttft_s) == (None, None, None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(json_values, json_values)
def test_strange_figures_of_an_engine_never_break_a_stream(timings: Any, usage: Any) -> None:
    meter = Meter()
    block = sse({"timings": timings, "usage": usage})
    assert meter.pass_events(block) == block
    meter.saw({"timings": timings, "usage": usage})
    meter.usage()


@given(st.binary(max_size=60))
def test_whatever_an_engine_sends_never_breaks_the_meter(junk: bytes) -> None:
    for event in (junk, b'"timings"' + junk, b'data: {"timings":' + junk, b'"prompt_progress"' + junk):
        Meter().pass_events(event + b"\n\n")
