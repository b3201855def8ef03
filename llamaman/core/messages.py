"""What a supervisor can be told. Every message of a start carries its generation; late ones only clean up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llamaman.core.crash import Guest
from llamaman.errors import LlamaManError
from llamaman.records import EngineFacts, Exit, Handle, LaunchPlan

Target = Literal["sleeping", "stopped"]

STOP_GRACE_S = 10.0
#: For a forced stop and for an engine that does not answer anyway.
SHORT_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class Want:
    """Be running."""

    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Fetching:
    """How far the fetch of its engine is; None: it is over."""

    generation: int
    text: str | None


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan exists and its intent is stored."""

    generation: int
    plan: LaunchPlan


@dataclass(frozen=True, slots=True)
class Started:
    """The process exists."""

    generation: int
    handle: Handle


@dataclass(frozen=True, slots=True)
class StartFailed:
    """There is no process."""

    generation: int
    error: LlamaManError


@dataclass(frozen=True, slots=True)
class Adopted:
    """A process of an earlier manager was found."""

    handle: Handle


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine answers. None where it did not say."""

    generation: int
    slots: int | None
    context_length: int | None
    engine: EngineFacts | None = None


@dataclass(frozen=True, slots=True)
class NotReady:
    """The engine took too long, stalled or took too much; ``grace_s`` is left to it to end by itself."""

    generation: int
    reason: str
    grace_s: float = STOP_GRACE_S


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended."""

    generation: int
    exit: Exit


@dataclass(frozen=True, slots=True)
class Diagnosed:
    """Why the process ended, in words."""

    generation: int
    exit: Exit
    cause: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Be gone. ``drain_s`` bounds the wait for running requests; ``give_up`` keeps it running after that.

    :ivar grace_s: seconds that the engine has to end by itself before it is killed.
    """

    target: Target
    actor: str
    reason: str
    drain_s: float
    give_up: bool = False
    done: asyncio.Future[bool] | None = None
    grace_s: float = STOP_GRACE_S


@dataclass(frozen=True, slots=True)
class DrainOver:
    """No request runs any more, or the deadline passed."""

    generation: int
    expired: bool


@dataclass(frozen=True, slots=True)
class Stopped:
    """The runtime has ended the process."""

    generation: int
    exit: Exit | None
    error: LlamaManError | None = None


@dataclass(frozen=True, slots=True)
class Idle:
    """The idle timer fired; the supervisor looks again before it acts."""

    generation: int


@dataclass(frozen=True, slots=True)
class Retry:
    """The back-off is over."""

    generation: int


@dataclass(frozen=True, slots=True)
class Suspect:
    """Requests fail although the process lives."""

    generation: int


@dataclass(frozen=True, slots=True)
class Wedged:
    """It was suspected and did not answer."""

    generation: int


@dataclass(frozen=True, slots=True)
class Frozen:
    """Its loop gets no further, although its process lives and ``/health`` may answer.

    :ivar silent_s: for how long nothing was heard. :ivar suspects: what it worked on when that began.
    """

    generation: int
    silent_s: float
    suspects: tuple[Guest, ...]


Message = (
    Want
    | Fetching
    | Planned
    | Started
    | StartFailed
    | Adopted
    | Ready
    | NotReady
    | Exited
    | Diagnosed
    | Stop
    | DrainOver
    | Stopped
    | Idle
    | Retry
    | Suspect
    | Wedged
    | Frozen
)


def not_weaker(stop: Stop, now: Stop | None) -> Stop:
    """A stop on top of another: what was to stay stopped does not become what a request may wake."""
    if now is None or now.give_up or now.actor == "supervisor" or now.target != "stopped":
        return stop
    return replace(stop, target="stopped", actor=now.actor, reason=now.reason)


def tell(waiters: Sequence[asyncio.Future[bool]], *, done: bool) -> None:
    """Tell those who wait for a stop what became of it."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(done)


def answer(message: Message) -> None:
    """Tell whoever waits for a stop that nobody will carry it out."""
    if isinstance(message, Stop) and message.done:
        tell([message.done], done=False)
