"""Notices an engine that is frozen: its one loop gets no further, while its process lives and ``/health`` answers.

llama-server works in one loop: prompts, tokens, grammars, and what ``/slots`` tells. A grammar that expands without
end, or a stuck driver, holds it for minutes; ``/health``, and the pings of a stream that has begun, come from other
threads and go on. So what is asked is ``/slots``, which the loop answers between any two of its steps, and which is
never counted as use. That it does not come for as long as ``instances.frozen_after_s`` allows is not enough: one
batch of a prompt on a slow processor, an image, or weights that are read from disk take their time, too, and show
it. See :func:`is_at_work`.

One watch per generation, on the event loop; the supervisor decides what its verdict means.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llamaman.core import messages as m
from llamaman.core.crash import Guest
from llamaman.core.engine_client import EngineUnreachable
from llamaman.core.instance import Instance
from llamaman.core.services import Run
from llamaman.records import State

#: Between two looks. Asked more than once a second, llama-server no longer notices clients that have left.
LONGEST_LOOK_AWAY_S = 10.0
#: The part of the allowed time that a look may come late.
LATE_LOOK_SHARE = 0.25
#: Threads that get this part of what the busiest one gets work together with it; of a grammar, one thread works.
TOGETHER_SHARE = 0.25
#: What a thread of a busy machine gets at least when it works; those that wait for requests get less.
AT_WORK_SHARE = 0.02
_LOG_BYTES = 16 << 10
_ANSWER_BYTES = 16 << 20
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

#: Time, level and module of a line of llama-server's log. Module ``srv`` writes about connections, loop or no loop.
_OF_THE_DOOR = re.compile(rb"\S+ \S srv\b")


@dataclass(frozen=True, slots=True)
class Signs:
    """What an engine shows of its work at one moment; None, or empty, where that cannot be seen from here.

    :ivar line: the last line in its log that is not about connections.
    :ivar faults: page faults that were served from disk, so far.
    :ivar ticks: processor time so far, by thread.
    """

    line: bytes | None = None
    faults: int | None = None
    ticks: Mapping[str, int] = field(default_factory=dict)


async def watch(
    instance: Instance,
    generation: int,
    allowed_s: Callable[[], float],
    inspect: Run,
    post: Callable[[m.Message], None],
) -> None:
    """Look after one generation for as long as it runs, and post :class:`messages.Frozen` when it is frozen.

    :param allowed_s: asked anew each time; 0 for no verdict.
    :param inspect: runs what blocks on a pool.
    """
    heard: dict[Guest, object] = {}
    while _runs(instance, generation):
        await asyncio.sleep(min(allowed_s() * LATE_LOOK_SHARE or LONGEST_LOOK_AWAY_S, LONGEST_LOOK_AWAY_S))
        limit_s = allowed_s()
        was_heard = _spoke(heard)
        heard = {guest: guest.progress for guest in instance.inside}
        if limit_s <= 0 or not heard or was_heard:
            continue
        if await _is_frozen(instance, limit_s, inspect) and not _spoke(heard):
            post(m.Frozen(generation, limit_s, tuple(heard)))


def is_at_work(before: Signs, after: Signs, seconds: float) -> bool:
    """Whether an engine whose loop is silent works on something long rather than being stuck.

    What tells: its log says something more, it reads its weights from disk, or several of its threads work, as they
    do on a batch or an image and never on a grammar. With one thread a batch cannot be told from a grammar.
    """
    if after.line is not None and after.line != before.line:
        return True
    if before.faults is not None and after.faults is not None and after.faults > before.faults:
        return True
    spent = sorted(ticks - before.ticks.get(thread, 0) for thread, ticks in after.ticks.items())
    if len(spent) < 2:
        return False
    second, busiest = spent[-2:]
    return second >= busiest * TOGETHER_SHARE and second >= seconds * _TICKS_PER_S * AT_WORK_SHARE


def signs(log_path: Path, pid: int | None) -> Signs:
    """What can be seen now. Blocks.

    :param pid: its process, where that can be seen from here.
    """
    line = _last_line(log_path)
    if pid is None:
        return Signs(line)
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


async def _is_frozen(instance: Instance, limit_s: float, inspect: Run) -> bool:
    """Whether its loop answers nothing for so long and nothing else shows that it works."""
    pid = instance.handle.pid if instance.handle else None
    before = await inspect(signs, instance.log_path, pid)
    if await _answers(instance, limit_s):
        return False
    return not is_at_work(before, await inspect(signs, instance.log_path, pid), limit_s)


async def _answers(instance: Instance, limit_s: float) -> bool:
    """Whether the loop answers in time; a connection that breaks is no silence."""
    client = instance.client
    if client is None:
        return True
    headers = ((b"authorization", b"Bearer " + instance.api_key),)
    try:
        async with asyncio.timeout(limit_s):
            response = await client.request("GET", b"/slots", headers, silence_s=2 * limit_s)
            await response.read_all(_ANSWER_BYTES)
    except TimeoutError:
        return False
    except (OSError, EngineUnreachable):
        return True
    return True


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
