"""Cutting event streams: nothing is lost, nothing is merged, however the bytes arrive."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaman.gateway.sse import COMMENT, EventTooLarge, Splitter, frame, iter_events, split_events


def test_only_complete_events_are_handed_out() -> None:
    assert split_events(b"data: a\n\ndata: b\n\ndata: c") == (b"data: a\n\ndata: b\n\n", b"data: c")
    assert split_events(b"data: a\r\n\r\ndata: b") == (b"data: a\r\n\r\n", b"data: b")
    assert split_events(b"data: a\n") == (b"", b"data: a\n")
    assert split_events(b"data: a\n\n") == (b"data: a\n\n", b"")
    assert split_events(b"") == (b"", b"")


def test_the_last_boundary_counts_whatever_line_ends_came_before() -> None:
    assert split_events(b"data: a\r\n\r\ndata: b\n\nx") == (b"data: a\r\n\r\ndata: b\n\n", b"x")
    assert split_events(b"data: a\n\ndata: b\r\n\r\nx") == (b"data: a\n\ndata: b\r\n\r\n", b"x")


def test_data_lines_are_joined_and_the_rest_is_dropped() -> None:
    block = b": ping\n\nevent: x\nid: 1\ndata: a\ndata:b\n\ndata: [DONE]\n\nretry: 3\n\ndata\n\ndata:\n\n"
    assert list(iter_events(block)) == [b"a\nb", b"[DONE]", b"", b""]
    assert list(iter_events(b"data: a\r\ndata:  b\r\n\r\n")) == [b"a\n b"]
    assert list(iter_events(COMMENT)) == []


def test_a_framed_event_reads_back() -> None:
    for data in (b"{}", b"", b"a\nb", b"\n"):
        assert list(iter_events(frame(data))) == [data]


@given(
    st.lists(st.tuples(st.binary(max_size=20), st.sampled_from([b"\n", b"\r\n"])), min_size=1, max_size=6),
    st.lists(st.integers(min_value=0, max_value=200), max_size=12),
)
def test_the_cuts_between_packets_do_not_matter(events: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    payloads = [payload.replace(b"\r", b"x").replace(b"\n", b"y") for payload, _ in events]
    stream = b"".join(
        b"data: " + payload + end + end for payload, (_, end) in zip(payloads, events, strict=True)
    )
    marks = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    splitter = Splitter()
    found: list[bytes] = []
    for start, stop in pairwise(marks):
        complete = splitter.feed(stream[start:stop])
        assert complete == b"" or complete.endswith((b"\n\n", b"\r\n\r\n"))
        found += iter_events(complete)
    assert found == payloads
    assert splitter.rest() == b""


@pytest.mark.parametrize("stream", [b"data: a\n\ndata: b\n\n", b"data: a\r\n\r\ndata: b\r\n\r\n: x\n\n"])
def test_every_pair_of_cuts_gives_the_same_events(stream: bytes) -> None:
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            splitter = Splitter()
            pieces = (stream[:first], stream[first:second], stream[second:])
            complete = [splitter.feed(piece) for piece in pieces if piece]
            assert b"".join(complete) == stream
            assert [data for block in complete for data in iter_events(block)] == [b"a", b"b"]
            assert splitter.rest() == b""


def test_an_unfinished_event_is_kept_to_tell_truncation() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: a\n\ndata: b") == b"data: a\n\n"
    assert splitter.rest() == b"data: b"


def test_an_event_without_an_end_is_refused_at_the_cap() -> None:
    splitter = Splitter(limit_bytes=1000)
    for _ in range(10):
        splitter.feed(b"x" * 100)
    with pytest.raises(EventTooLarge, match="1000 bytes"):
        splitter.feed(b"x")


def test_large_blocks_of_small_events_are_no_large_event() -> None:
    splitter = Splitter(limit_bytes=1000)
    assert len(splitter.feed(b"data: x\n\n" * 1000)) == 9000
