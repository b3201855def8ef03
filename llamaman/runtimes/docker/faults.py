"""What can go wrong with a daemon, as two exceptions. Read by everything that calls one.

Guarantees that no exception of the HTTP client or of the Docker SDK is needed to tell the cases apart: either the
daemon cannot be reached (:class:`DaemonGone`), or it answered that it will not (:class:`DaemonError`).
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from typing import Final

from llamaman.runtimes.logfiles import escape

#: Why a daemon cannot be reached; `sayings.unreachable` has a cure for each.
MISSING: Final = "there is no such socket"
NOT_A_SOCKET: Final = "it is a folder, not a socket"
DENIED: Final = "permission denied"
REFUSED: Final = "connection refused"
TIMED_OUT: Final = "no answer in time"
BROKEN: Final = "the connection broke"
UNKNOWN_HOST: Final = "its host name is not known"
CLOSED: Final = "LlamaMan is ending"

_LONGEST = 1000  # of a daemon's words: one line for people, not a page


class DaemonGone(Exception):
    """The daemon cannot be reached now.

    :ivar reason: a short clause; one of the constants above, or words of its own for a rare cause.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DaemonError(Exception):
    """The daemon answered with an error.

    :ivar status: its HTTP status, None for an error inside an answer that had begun.
    :ivar text: its own words, on one line.
    """

    def __init__(self, status: int | None, text: str) -> None:
        self.status = status
        self.text = one_line(text)
        super().__init__(f"{self.text} (HTTP {status})" if status else self.text)


def one_line(text: str) -> str:
    """``text`` without line breaks and what a terminal would obey, and not longer than people read."""
    line = escape(" ".join(text[: 4 * _LONGEST].split()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def transport_errors() -> tuple[type[Exception], ...]:
    """Everything that the HTTP client below the SDK raises when a connection fails, also in the middle."""
    import docker.errors
    import requests
    import urllib3

    return (
        OSError,
        http.client.HTTPException,
        urllib3.exceptions.HTTPError,
        requests.exceptions.RequestException,
        docker.errors.DockerException,
    )


def reason_of(error: BaseException) -> str:
    """The clause for what lies at the bottom of a transport error."""
    causes = list(_causes(error))
    for kind, reason in (
        (FileNotFoundError, MISSING),
        (PermissionError, DENIED),
        (ConnectionRefusedError, REFUSED),
    ):
        if any(isinstance(cause, kind) for cause in causes):
            return reason
    names = {type(cause).__name__ for cause in causes}
    if any(isinstance(cause, TimeoutError) for cause in causes) or names & {
        "ReadTimeout",  # of requests and urllib3, by name: this module works without them
        "ReadTimeoutError",
        "ConnectTimeout",
        "ConnectTimeoutError",
    }:
        return TIMED_OUT
    if "gaierror" in names:
        return UNKNOWN_HOST
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return one_line(f"TLS fails: {cause}")
    if "DockerException" in names or "TLSParameterError" in names:
        return one_line(str(error))
    return BROKEN


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that it wraps: as cause, as context or as an argument (requests, urllib3)."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        wrapped = (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args)
        waiting.extend(inner for inner in wrapped if isinstance(inner, BaseException))
