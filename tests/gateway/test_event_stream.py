"""An engine's stream as events and as one body: what is news, what is an error, what is nonsense."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaman.errors import UpstreamFailed
from llamaman.gateway.dialect import Chunk, Result
from llamaman.gateway.event_stream import EventStream, assemble, meter_body, parse_events, stream_error
from llamaman.gateway.meter import Meter


class Blocks:
    """An answer whose blocks are the test's."""

    def __init__(self, blocks: Sequence[bytes]) -> None:
        self._blocks = [block for block in blocks if block]

    async def read_block(self) -> bytes:
        await asyncio.sleep(0)
        return self._blocks.pop(0) if self._blocks else b""


def sse(*events: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(e).encode() for e in events)


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


async def _all(blocks: Sequence[bytes]) -> tuple[list[dict[str, Any]], Result, Meter]:
    meter = Meter()
    stream = EventStream(Blocks(blocks), meter)  # type: ignore[arg-type] # all that is asked of it
    events = []
    while isinstance(event := await stream.next(), Chunk):
        events.append(event.data)
    assert isinstance(event, Result)
    return events, event, meter


def read(*blocks: bytes) -> tuple[list[dict[str, Any]], Result, Meter]:
    return asyncio.run(_all(blocks))


def rebuilt(*blocks: bytes) -> Result:
    return asyncio.run(assemble(Blocks(blocks), Meter(), chat=True))  # type: ignore[arg-type] # the same


def test_progress_pings_and_done_are_swallowed() -> None:
    progress = {"choices": [], "prompt_progress": {"processed": 1}}
    events, end, _ = read(
        b":\n\n", sse(progress), sse(delta("a")), b": x\n\n" + sse(delta("b")), b"data: [DONE]\n\n"
    )
    assert (events, end) == ([delta("a"), delta("b")], Result(200, b""))


@given(st.lists(st.integers(0, 300), max_size=6))
def test_it_makes_no_difference_where_blocks_are_cut(cuts: list[int]) -> None:
    whole = sse(*(delta(text) for text in ("a", "ä\n\n🦙", "", "data: x"))) + b"data: [DONE]\n\n"
    places = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    blocks = [whole[a:b] for a, b in itertools.pairwise(places)]
    assert [e["choices"][0]["delta"]["content"] for e in read(*blocks)[0]] == ["a", "ä\n\n🦙", "", "data: x"]
    assert json.loads(rebuilt(*blocks).body)["choices"][0]["message"]["content"] == "aä\n\n🦙data: x"


def test_an_error_inside_a_stream_is_its_end() -> None:
    error = {"code": 400, "message": "too long", "type": "exceed_context_size_error"}
    for result in (
        read(sse(delta("a"), {"error": error}, delta("b")))[1],
        rebuilt(sse(delta("a"), {"error": error})),
    ):
        assert (result.status, json.loads(result.body)) == (400, {"error": error})


@pytest.mark.parametrize(
    ("error", "status"),
    [({"code": 503}, 503), ({"code": 200}, 500), ({"code": "x"}, 500), ({}, 500), ("text", 500), (None, 500)],
)
def test_the_status_of_such_an_error_is_the_engines_where_it_is_one(error: Any, status: int) -> None:
    assert stream_error(error).status == status


@pytest.mark.parametrize("junk", [b"data: {no\n\n", b"data: 5\n\n", b"data: []\n\n", b'data: "x"\n\n'])
def test_what_is_no_object_is_the_engines_failure(junk: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        parse_events(junk)
    with pytest.raises(UpstreamFailed):
        read(sse(delta("a")), junk)
    with pytest.raises(UpstreamFailed):
        rebuilt(junk)


def test_an_event_without_end_is_the_engines_failure() -> None:
    endless = [b"data: " + b"x" * (1 << 20)] * 10
    with pytest.raises(UpstreamFailed, match="larger than"):
        read(*endless)
    with pytest.raises(UpstreamFailed, match="larger than"):
        rebuilt(*endless)


def test_after_the_end_there_is_only_the_end() -> None:
    async def main() -> None:
        stream = EventStream(Blocks([sse(delta("a"))]), Meter())  # type: ignore[arg-type] # the same
        assert isinstance(await stream.next(), Chunk)
        for _ in range(3):
            assert await stream.next() == Result(200, b"")

    asyncio.run(main())


def test_figures_are_read_from_streams_and_bodies() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    assert read(sse(delta("a"), {"choices": [], "usage": usage}))[2].usage().completion_tokens == 2
    meter = Meter()
    meter_body(meter, json.dumps({"usage": usage}).encode())
    assert (meter.usage().prompt_tokens, meter.first is not None) == (3, True)


@given(st.binary(max_size=40))
def test_a_body_that_is_no_json_is_nobodys_problem(body: bytes) -> None:
    for text in (body, b'"usage"' + body, b'{"timings":' + body):
        meter_body(Meter(), text)


def test_a_long_block_is_handed_out_whole_and_others_get_their_turn_meanwhile() -> None:
    texts = [str(number) for number in range(1000)]
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> list[dict[str, Any]]:
        beside = asyncio.create_task(others())
        events, _, _ = await _all([sse(*map(delta, texts))])
        beside.cancel()
        return events

    assert asyncio.run(main()) == [delta(text) for text in texts]
    assert turns >= 4


def test_it_is_known_whether_the_next_event_has_come() -> None:
    async def main() -> None:
        stream = EventStream(Blocks([sse(delta("a"), delta("b")) + b":\n\ndata: [DONE]\n\n"]), Meter())  # type: ignore[arg-type] # the same
        assert not stream.has_more
        await stream.next()
        assert stream.has_more
        await stream.next()
        assert not stream.has_more, "pings and [DONE] are none"
        assert isinstance(await stream.next(), Result)

    asyncio.run(main())
