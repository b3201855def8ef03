"""When is an engine ready: ``/health`` at growing intervals, and what ``/props`` says then.

The caller watches for the process's end at the same time; this module only ever sees an engine that may
still become ready. It times out on stall (no log line for a while) and on the cap MODEL_LOAD_TIMEOUT.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llamaman.core.engine_client import EngineClient, EngineUnreachable
from llamaman.core.in_docker import WRONG_PLACE
from llamaman.records import EngineFacts

SHORTEST_INTERVAL_S = 0.02
LONGEST_INTERVAL_S = 0.5
#: The part of the wait by which readiness may be noticed late.
LATE_SHARE = 0.02
STALL_S = 60.0
_PROPS_LIMIT = 8 * 1024 * 1024
#: The documented answer to a model that does not become ready, word for word.
STUCK: Final = (
    "Check logs via the Logs button. Common causes: OOM, model path typo, corrupt GGUF, image not pulled."
)


@dataclass(frozen=True, slots=True)
class Health:
    """What is needed to ask one engine.

    :ivar pid: its process, where it can be seen from here.
    :ivar use: what it uses now, where its runtime knows; any change is a sign of life. Does not block.
    :ivar in_container: it runs in a container, which another network than ours may hold.
    """

    client: EngineClient
    api_key: bytes
    log_path: Path
    pid: int | None
    load_timeout_s: float
    health_timeout_s: float
    use: Callable[[], object] = lambda: None
    in_container: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What a ready engine says about itself; None where it does not."""

    slots: int | None = None
    context_length: int | None = None
    engine: EngineFacts | None = None


async def await_ready(health: Health) -> Facts:
    """Return when the engine answers.

    :raises TimeoutError: with the sentence that users see.
    """
    begun = now = time.monotonic()
    deadline = now + health.load_timeout_s
    alive_at, signs = now, _signs_of_life(health)
    reached = False
    while (status := await _status(health.client, health.health_timeout_s)) != 200:
        now = time.monotonic()
        reached = reached or status is not None
        if (seen := _signs_of_life(health)) != signs:
            alive_at, signs = now, seen
        if now - alive_at > STALL_S:
            what = f"it stalled while loading: no progress for {STALL_S:g} s"
            raise TimeoutError(_with_cure(health, what, reached=reached))
        if now > deadline:
            what = (
                f"it did not become ready within {health.load_timeout_s:g} s; "
                "a large model may need a higher MODEL_LOAD_TIMEOUT"
            )
            raise TimeoutError(_with_cure(health, what, reached=reached))
        await asyncio.sleep(pause_s(now - begun))
    return await _facts(health)


def pause_s(waited_s: float) -> float:
    """Seconds until the next probe: short loads are noticed at once, long ones cost no processor."""
    return min(max(SHORTEST_INTERVAL_S, waited_s * LATE_SHARE), LONGEST_INTERVAL_S)


def _with_cure(health: Health, what: str, *, reached: bool) -> str:
    """llama-server answers from its first moment on, also while it loads: silence means that nobody gets there."""
    if health.in_container and not reached:
        return f"{what}; llamaman never reached it. {WRONG_PLACE} {STUCK}"
    return f"{what}. {STUCK}"


async def probe(client: EngineClient, timeout_s: float) -> bool:
    """Whether ``/health`` answers 200 now."""
    return await _status(client, timeout_s) == 200


async def _status(client: EngineClient, timeout_s: float) -> int | None:
    """What ``/health`` answers now, None when nothing does."""
    try:
        async with asyncio.timeout(timeout_s):
            response = await client.request("GET", b"/health", (), silence_s=timeout_s)
            await response.read_all(65536)
    except (OSError, TimeoutError, EngineUnreachable):
        return None
    return response.status


async def _facts(health: Health) -> Facts:
    headers = ((b"authorization", b"Bearer " + health.api_key),)
    try:
        async with asyncio.timeout(max(health.health_timeout_s, 10.0)):
            response = await health.client.request(
                "GET", b"/props", headers, silence_s=max(health.health_timeout_s, 10.0)
            )
            body = json.loads(await response.read_all(_PROPS_LIMIT))
        settings = body.get("default_generation_settings") or {}
        return Facts(_count(body.get("total_slots")), _count(settings.get("n_ctx")), _engine(body))
    except (OSError, TimeoutError, ValueError, AttributeError, EngineUnreachable):
        return Facts()


def _engine(props: Mapping[str, Any]) -> EngineFacts:
    modalities, caps, marker = (props.get(n) for n in ("modalities", "chat_template_caps", "media_marker"))
    return EngineFacts(
        frozenset(str(name) for name, can in modalities.items() if can is True)
        if isinstance(modalities, dict)
        else None,
        marker if isinstance(marker, str) else None,
        {str(name): can for name, can in caps.items() if isinstance(can, bool)}
        if isinstance(caps, dict)
        else {},
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _signs_of_life(health: Health) -> tuple[object, ...]:
    """What changes while an engine makes progress: log bytes, page faults, CPU ticks, what its runtime measures.

    A large model on a slow disk loads for minutes without a log line; its page faults and its CPU time
    (fields 12, 14 and 15 of ``/proc/<pid>/stat``) still move.
    """
    try:
        log_bytes = os.stat(health.log_path).st_size
    except OSError:
        log_bytes = None
    if health.pid is None:
        return (log_bytes, health.use())
    try:
        fields = Path(f"/proc/{health.pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return (log_bytes,)
    return (log_bytes, fields[9], fields[11], fields[12])
