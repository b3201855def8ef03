"""How a container ended, from what the daemon says of it and from the events that led there. Pure.

Read by events.py. Sources: Docker Engine API 1.41 (inspect, events), each combination produced by a real engine
in the tests. `docker stop` is a kill event with SIGTERM (and one with SIGKILL after the grace), then die, then
stop; `docker rm -f` one with SIGKILL while the state is "removing"; the kernel's OOM killer sets OOMKilled.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from llamaman.records import Exit
from llamaman.runtimes.causes import (
    CONTAINER_CUT_OFF,
    CONTAINER_KILLED,
    CONTAINER_REMOVED,
    CONTAINER_STOPPED,
    DAEMON_RESTARTED,
    NEVER_STARTED,
    out_of_memory,
)
from llamaman.runtimes.docker.stream import json_lines

#: A container that was created longer ago, and never ran, is not about to be started any more.
_STARTING_S: Final = 60.0
_ALIVE: Final = frozenset({"running", "paused", "restarting", "stopping"})
_NOT_YET: Final = frozenset({"created", "configured", "initialized"})  # the latter two are Podman's
_ASKING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
_KILLED: Final = 128 + signal.SIGKILL
#: What containers end with when their daemon goes away: politely, by signal, or unseen by the next daemon.
_ENDED_WITH_DAEMON: Final = frozenset({0, 128 + signal.SIGTERM, 128 + signal.SIGINT, _KILLED, 255})
_ACTIONS: Final = {"died": "die", "remove": "destroy"}  # Podman's words -> Docker's


@dataclass(slots=True)
class Story:
    """What the events told of one container.

    :ivar signals: that somebody sent to it through the daemon, in order.
    :ivar code: exit code of its last end; None: no end was told of.
    :ivar at: when that was, by the daemon's clock.
    """

    signals: list[int] = field(default_factory=list)
    code: int | None = None
    at: float | None = None
    oom: bool = False
    gone: bool = False

    @property
    def tells_end(self) -> bool:
        """Whether the end of the container was among the events."""
        return self.code is not None or self.gone

    def add(self, action: str, attributes: Mapping[str, str], at: float | None) -> None:
        """Take note of one event."""
        if action == "start":
            self.signals, self.code, self.at, self.oom = [], None, None, False
        elif action == "kill":
            number = _signal(attributes.get("signal", ""))
            if number is not None:
                self.signals.append(number)
        elif action == "oom":
            self.oom = True
        elif action == "die":
            code = attributes.get("exitCode", attributes.get("containerExitCode", ""))
            self.code, self.at = int(code) if code.isdecimal() else -1, at
        elif action == "destroy":
            self.gone = True


def only_of(labels: Sequence[str], network: str) -> Callable[[Iterator[bytes]], Iterator[dict[str, Any]]]:
    """A decoder of events that leaves out those of other containers than the ones with these labels.

    :param labels: ``key`` or ``key=value``, all of which must fit.
    :param network: the name of the network; what is taken off others is left out as well.
    """
    wanted = [label.partition("=") for label in labels]

    def is_wanted(event: Mapping[str, Any]) -> bool:
        attributes = (event.get("Actor") or {}).get("Attributes") or {}
        if event.get("Type") == "network":
            return event.get("Action") == "disconnect" and attributes.get("name") == network
        return all(
            key in attributes and (not equals or attributes[key] == value) for key, equals, value in wanted
        )

    return lambda chunks: (event for event in json_lines(chunks) if is_wanted(event))


def read_event(event: Mapping[str, Any]) -> tuple[str, str, Mapping[str, str], float | None]:
    """Container, action, attributes and time (seconds, by the daemon's clock) of an event."""
    actor = event.get("Actor") or {}
    action = str(event.get("Action") or event.get("status") or "")
    nanoseconds = event.get("timeNano")
    at = nanoseconds / 1e9 if isinstance(nanoseconds, int) else None
    attributes = actor.get("Attributes") or {}
    container = str(actor.get("ID") or event.get("id") or "")
    if event.get("Type") == "network":
        container = str(attributes.get("container") or container)
    return container, _ACTIONS.get(action, action), attributes, at


def has_ended(inspected: Mapping[str, Any], now: float) -> bool:
    """Whether it runs no more; one that never ran counts as ended a minute after it was created."""
    state = inspected["State"]
    if state.get("Running") or state.get("Status") in _ALIVE:
        return False
    if state.get("Status") in _NOT_YET:
        created = moment(inspected.get("Created"))
        return created is not None and now - created > _STARTING_S
    return True


def exit_from(
    inspected: Mapping[str, Any] | None, story: Story, *, expected: bool, restarted: bool, now: float
) -> Exit:
    """The record of an end.

    :param inspected: what the daemon says of the container that has ended; None: it is gone.
    :param story: of the current connection.
    :param expected: we ended it ourselves, so nobody else did.
    :param restarted: the daemon is another one since it was watched. It has ended the containers of the one before,
        or that one did; nobody else could have while there was no daemon.
    """
    if inspected is None or inspected["State"].get("Running"):  # somebody restarted it since
        code, at, oom = _known(story.code), story.at, story.oom
        limit = None
    else:
        state = inspected["State"]
        if state.get("Status") in _NOT_YET:
            return Exit(None, None, now, cause=None if expected else NEVER_STARTED)
        code, at = int(state["ExitCode"]), moment(state.get("FinishedAt"))
        oom = bool(state.get("OOMKilled"))
        limit = (inspected.get("HostConfig") or {}).get("Memory") or None
    oom = oom and code != 0  # else only a child was killed, long ago
    at = now if at is None else at
    known_oom = True if oom else None if code in {None, _KILLED} else False
    if expected:
        return Exit(code, None, at, oom=known_oom)
    return Exit(code, None, at, oom=known_oom, cause=_cause(inspected, story, code, oom, restarted, limit))


def cut_off(now: float) -> Exit:
    """The record of the end of an engine that runs and that nobody must talk to any more."""
    return Exit(None, None, now, cause=CONTAINER_CUT_OFF)


def restarted_since(inspected: Mapping[str, Any], story: Story) -> bool:
    """Whether it ended, as the events tell, and runs again (docker restart)."""
    started = moment(inspected["State"].get("StartedAt"))
    return story.at is not None and started is not None and started > story.at


def moment(text: object) -> float | None:
    """Seconds since 1970 of one of the daemon's times; None for its zero, which means never."""
    if not isinstance(text, str) or text.startswith("0001-"):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _cause(
    inspected: Mapping[str, Any] | None,
    story: Story,
    code: int | None,
    oom: bool,
    restarted: bool,
    limit: int | None,
) -> str | None:
    if oom:
        return out_of_memory(limit)
    if restarted and inspected is not None and code in _ENDED_WITH_DAEMON:
        return DAEMON_RESTARTED
    return _foreign(inspected, story, code)


def _foreign(inspected: Mapping[str, Any] | None, story: Story, code: int | None) -> str | None:
    """What somebody did to it through the daemon."""
    removed = inspected is None or inspected["State"].get("Status") in {"removing", "dead"}
    if removed and (code is None or (code == _KILLED and signal.SIGKILL in story.signals)):
        return CONTAINER_REMOVED
    asked = _ASKING.intersection(story.signals)
    if code == _KILLED and signal.SIGKILL in story.signals:
        return CONTAINER_STOPPED if asked else CONTAINER_KILLED
    if asked and (code in {0, _KILLED} or code in {128 + number for number in asked}):
        return CONTAINER_STOPPED
    if code is not None and code - 128 in story.signals:
        return CONTAINER_KILLED
    return None


def _known(code: int | None) -> int | None:
    return None if code is None or code < 0 else code


def _signal(text: str) -> int | None:
    """Of ``9``, ``KILL`` or ``SIGKILL``."""
    if text.isdecimal():
        return int(text)
    name = text.upper()
    try:
        return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    except KeyError:
        return None
