"""A client that leaves frees its slot, whatever the engine was doing for it and whoever else it works for.

What is looked at is the engine's own list of slots, and the number of running requests that the instance
shows. Both real engines. An engine that reads a prompt looks up between two batches (2,048 tokens), so the
model for that is one whose batch takes a fraction of a second on one busy thread.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from llamaman.testing import write_tiny_model
from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import Request

FREE_S = 30.0
"""Generous: the promise is 2 s, and the figure is noted. What is left would else go on for ever."""

LONG_PROMPT = "llama " * 5000
"""40,000 tokens, some 20 batches: many seconds of reading."""


def active(manager: Manager, instance_id: str) -> int:
    return int(manager.instance(instance_id)["queue"]["active"])


def seconds_until_free(manager: Manager, instance_id: str, left_busy: int) -> float:
    """Seconds from now until the engine and the instance agree that only ``left_busy`` slots work."""
    begun = time.monotonic()

    def free() -> bool:
        return manager.busy_slots(instance_id) == left_busy and active(manager, instance_id) == left_busy

    manager.until(free, f"{left_busy} busy slots", seconds=FREE_S)
    return time.monotonic() - begun


def tokens_at_the_end(manager: Manager, instance_id: str) -> list[int]:
    """How many tokens each request that has left its slot had there, prompt included, as the engine logs it."""
    log = (manager.logs / f"{instance_id}.log").read_text()
    return [int(number) for number in re.findall(r"stop processing: n_tokens = (\d+)", log)]


def was_cut_short(manager: Manager, instance_id: str, full: int) -> None:
    """The request that left was ended before it was done, and has not just come to its end in the meantime."""
    (last,) = manager.until(lambda: tokens_at_the_end(manager, instance_id)[-1:], "the engine to say so")
    assert last < full


@contextmanager
def another_stream(manager: Manager, wanted: bool) -> Iterator[int]:
    """A second client that reads a stream from the same instance; how many slots it holds."""
    if not wanted:
        yield 0
        return
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as other:
        events = other.events()
        next(events)
        yield 1
        for _ in range(20):
            next(events)  # it is alive and well after the other client's end


def wait_until_it_works(manager: Manager, instance_id: str, busy: int) -> None:
    manager.until(lambda: manager.busy_slots(instance_id) == busy, f"{busy} busy slots")


@pytest.mark.parametrize("beside_a_stream", [False, True], ids=["alone", "beside a stream"])
@pytest.mark.parametrize("half", [False, True], ids=["closes", "half-closes"])
def test_leaving_a_whole_answer_frees_the_slot(
    manager: Manager,
    slow: Callable[[Manager], str],
    measured: Callable[[str, float], None],
    beside_a_stream: bool,
    half: bool,
) -> None:
    instance = manager.launch(slow(manager), parallel=2, **ENDLESS)
    with another_stream(manager, beside_a_stream) as others:
        request = manager.ask("slow", max_tokens=FOR_EVER)
        wait_until_it_works(manager, instance["id"], others + 1)
        assert active(manager, instance["id"]) == others + 1
        leave(request, half)
        measured("slot free after", seconds_until_free(manager, instance["id"], others))
    assert manager.chat("slow", max_tokens=2).status == 200


@pytest.mark.parametrize("beside_a_stream", [False, True], ids=["alone", "beside a stream"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_leaving_during_a_long_prefill_frees_the_slot(
    manager: Manager, measured: Callable[[str, float], None], beside_a_stream: bool, stream: bool
) -> None:
    write_tiny_model(manager.models / "slow.gguf", layers=12, context_length=65_536)
    manager.manage("POST", "/api/models/rescan")
    instance = manager.launch("slow", parallel=2, ctx_size=65_536, **ENDLESS)
    with another_stream(manager, beside_a_stream) as others:
        request = manager.ask("slow", prompt=LONG_PROMPT, max_tokens=2, stream=stream)
        wait_until_it_works(manager, instance["id"], others + 1)
        leave(request, half=False)
        measured("slot free after", seconds_until_free(manager, instance["id"], others))
        was_cut_short(manager, instance["id"], 40_000)
    assert manager.chat("slow", max_tokens=2).status == 200


def leave(request: Request, half: bool) -> None:
    if half:
        request.half_close()
    else:
        request.disconnect()


def test_leaving_a_stream_frees_the_slot(
    manager: Manager, slow: Callable[[Manager], str], measured: Callable[[str, float], None]
) -> None:
    instance = manager.launch(slow(manager), **ENDLESS)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as request:
        next(request.events())
    measured("slot free after", seconds_until_free(manager, instance["id"], 0))


def test_leaving_the_queue_leaves_nothing_to_run(manager: Manager, slow: Callable[[Manager], str]) -> None:
    instance = manager.launch(slow(manager), **ENDLESS)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as running:
        next(running.events())
        waiting = [manager.ask("slow", max_tokens=FOR_EVER) for _ in range(3)]
        manager.until(lambda: queued(manager, instance["id"]) == 3, "three in the queue")
        for request in waiting:
            request.disconnect()
        manager.until(lambda: queued(manager, instance["id"]) == 0, "the queue to be empty")
        next(running.events())
    seconds_until_free(manager, instance["id"], 0)
    answer = manager.chat("slow", max_tokens=2)
    assert answer.status == 200
    engine_log = (manager.logs / f"{instance['id']}.log").read_text()
    assert engine_log.count("processing task") == 2, "none of those who left reached the engine"


def queued(manager: Manager, instance_id: str) -> int:
    return int(manager.instance(instance_id)["queue"]["queued"])


def test_a_reader_that_falls_asleep_does_not_stop_the_others(
    manager: Manager, slow: Callable[[Manager], str]
) -> None:
    manager.launch(slow(manager), parallel=2, **ENDLESS)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER):  # never read
        for _ in range(3):
            assert manager.chat("slow", max_tokens=5).status == 200
