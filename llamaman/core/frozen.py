"""Notices an engine that is frozen: its one loop gets no further, while its process lives and ``/health`` answers.

llama-server works in one loop: prompts, tokens, grammars, and what ``/slots`` tells. A grammar that expands without
end, or a stuck driver, holds it for minutes; ``/health``, and the pings of a stream that has begun, come from other
threads and go on. So what is asked is ``/slots``, which the loop answers between any two of its steps, and which is
never counted as use. That it does not come for as long as ``instances.frozen_after_s`` allows is not enough: one
batch of a prompt on a slow processor, an image, or weights that are read from disk take their time, too, and show
it. See :func:`is_at_work`. Nor does time count in which this process itself stood still: an answer may lie there.

One watch per generation, on the event loop; the supervisor decides what its verdict means.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llamaman.core import messages as m
from llamaman.core.crash import Guest
from llamaman.core.engine_client import EngineClient, EngineUnreachable
from llamaman.core.instance import Instance
from llamaman.core.services import Run
from llamaman.records import State, WorkDone

#: Between two looks. Asked more than once a second, llama-server no longer notices clients that have left.
LONGEST_LOOK_AWAY_S = 10.0
SHORTEST_LOOK_AWAY_S = 0.1
#: The part of the allowed time that a look may come late.
LATE_LOOK_SHARE = 0.25
#: Threads that get this part of what the busiest one gets work together with it; of a grammar, one thread works.
TOGETHER_SHARE = 0.25
#: What a thread of a busy machine gets at least when it works; those that wait for requests get less.
AT_WORK_SHARE = 0.02
#: Processors that more than one thread must have had; of threads that cannot be told apart.
MORE_THAN_ONE = 1.1
#: A wait that took so many times as long as it should was held up in this very process, and shows nothing.
HELD_UP = 2.0
_LOG_BYTES = 16 << 10
_ANSWER_BYTES = 16 << 20
_NEVER_S = 7 * 86_400.0  # its watch gives up sooner
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

#: Time, level and module of a line of llama-server's log. Module ``srv`` writes about connections, loop or no loop.
_OF_THE_DOOR = re.compile(rb"\S+ \S srv\b")


@dataclass(frozen=True, slots=True)
class Signs:
    """What an engine shows of its work at one moment; None, or empty, where that cannot be seen from here.

    :ivar line: the last line in its log that is not about connections.
    :ivar faults: page faults that were served from disk, so far.
    :ivar ticks: processor time so far, by thread.
    :ivar cpu_s: seconds of it so far, where threads cannot be told apart.
    """

    line: bytes | None = None
    faults: int | None = None
    ticks: Mapping[str, int] = field(default_factory=dict)
    cpu_s: float | None = None


async def watch(
    instance: Instance,
    generation: int,
    allowed_s: Callable[[], float],
    inspect: Run,
    work: Callable[[], WorkDone | None],
    post: Callable[[m.Message], None],
) -> None:
    """Look after one generation for as long as it runs, and post :class:`messages.Frozen` when it is frozen.

    :param allowed_s: asked anew each time; 0 for no verdict.
    :param inspect: runs what blocks on a pool.
    :param work: what its runtime knows of its work where its process cannot be seen from here; blocks.
    """
    heard: dict[Guest, object] = {}
    while _runs(instance, generation):
        await asyncio.sleep(_look_away_s(allowed_s()))
        limit_s = allowed_s()
        was_heard = _spoke(heard)
        heard = {guest: guest.progress for guest in instance.inside}
        if limit_s <= 0 or not heard or was_heard:
            continue
        pid = instance.handle.pid if instance.handle else None
        before = await inspect(signs, instance.log_path, pid, work)
        if await _answers(instance, limit_s):
            continue
        after = await inspect(signs, instance.log_path, pid, work)
        if not is_at_work(before, after, limit_s) and not _spoke(heard):
            suspects = tuple(heard) if computes(before, after, limit_s) else ()
            post(m.Frozen(generation, limit_s, suspects))


def is_at_work(before: Signs, after: Signs, seconds: float) -> bool:
    """Whether an engine whose loop is silent works on something long rather than being stuck.

    What tells: its log says something more, it reads its weights from disk, or several of its threads work, as they
    do on a batch or an image and never on a grammar. With one thread a batch cannot be told from a grammar. Where
    nothing of its work can be seen, nobody knows that it is stuck.
    """
    if after.line is not None and after.line != before.line:
        return True
    if before.faults is not None and after.faults is not None and after.faults > before.faults:
        return True
    if spent := _spent(before, after):
        second, busiest = [0, *spent][-2:]
        return second >= busiest * TOGETHER_SHARE and second >= seconds * _TICKS_PER_S * AT_WORK_SHARE
    if before.cpu_s is None or after.cpu_s is None:
        return True
    return after.cpu_s - before.cpu_s >= seconds * MORE_THAN_ONE


def computes(before: Signs, after: Signs, seconds: float) -> bool:
    """Whether any of its threads works; none does in an engine that somebody has suspended, or that a disk holds up,
    and no request is to blame for that."""
    if spent := _spent(before, after):
        return spent[-1] >= seconds * _TICKS_PER_S * AT_WORK_SHARE
    return (after.cpu_s or 0.0) - (before.cpu_s or 0.0) >= seconds * AT_WORK_SHARE


def signs(log_path: Path, pid: int | None, work: Callable[[], WorkDone | None]) -> Signs:
    """What can be seen now. Blocks.

    :param pid: its process, where that can be seen from here. :param work: asked where it cannot.
    """
    line = _last_line(log_path)
    if pid is None:
        done = work() or WorkDone()
        return Signs(line, done.faults, cpu_s=done.cpu_s)
    try:
        faults = int(_stat(Path(f"/proc/{pid}/stat"))[9])
        ticks = {}
        for thread in Path(f"/proc/{pid}/task").iterdir():
            fields = _stat(thread / "stat")
            ticks[thread.name] = int(fields[11]) + int(fields[12])
    except OSError:  # it, or one of its threads, has just ended
        return Signs(line)
    return Signs(line, faults, ticks)


# --- inside -------------------------------------------------------------------------------------------


def _look_away_s(limit_s: float) -> float:
    """Seconds until the next look."""
    wanted = limit_s * LATE_LOOK_SHARE or LONGEST_LOOK_AWAY_S
    return min(max(wanted, SHORTEST_LOOK_AWAY_S), LONGEST_LOOK_AWAY_S)


def _spent(before: Signs, after: Signs) -> list[int]:
    """What each of its threads has got meanwhile, the busiest one last; empty where that cannot be seen."""
    return sorted(ticks - before.ticks.get(thread, 0) for thread, ticks in after.ticks.items())


async def _answers(instance: Instance, limit_s: float) -> bool:
    """Whether the loop answers in time; a connection that breaks is no silence."""
    client = instance.client
    if client is None:
        return True
    asked = asyncio.create_task(_ask(client, instance.api_key))
    step_s = _look_away_s(limit_s)
    silent = 0
    try:
        while silent < math.ceil(limit_s / step_s):
            begun = time.monotonic()
            await asyncio.wait((asked,), timeout=step_s)
            if asked.done():
                await asked
                return True
            silent += time.monotonic() - begun < step_s * HELD_UP
        return False
    finally:
        asked.cancel()


async def _ask(client: EngineClient, api_key: bytes) -> None:
    headers = ((b"authorization", b"Bearer " + api_key),)
    with contextlib.suppress(OSError, EngineUnreachable):
        response = await client.request("GET", b"/slots", headers, silence_s=_NEVER_S)
        await response.read_all(_ANSWER_BYTES)


def _spoke(since: Mapping[Guest, object]) -> bool:
    """Whether the engine has said something more of any of these requests."""
    return any(guest.progress != progress for guest, progress in since.items())


def _runs(instance: Instance, generation: int) -> bool:
    return instance.generation == generation and instance.state in (State.READY, State.DRAINING)


def _last_line(log_path: Path) -> bytes | None:
    try:
        with log_path.open("rb") as log:
            start = max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES)
            log.seek(start)
            lines = log.read(_LOG_BYTES).splitlines()[1 if start else 0 :]  # the first one is cut there
    except OSError:
        return None
    return next((line for line in reversed(lines) if line and not _OF_THE_DOOR.match(line)), None)


def _stat(path: Path) -> list[bytes]:
    """The fields behind the name of a process or a thread."""
    return path.read_bytes().rpartition(b")")[2].split()
