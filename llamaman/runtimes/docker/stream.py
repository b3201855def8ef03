"""Long answers of a daemon: decoding them, and ending them from another thread.

Read by daemon.py, which opens them, and by whoever follows events, logs and pulls. Guarantees that an answer that
ends orderly and one that breaks off are told apart, and that `close` ends a reader that waits.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from llamaman.runtimes.docker.faults import BROKEN, DaemonError, DaemonGone, reason_of, transport_errors

T = TypeVar("T")

_SECOND: Final = 1_000_000_000
_LONGEST_LINE: Final = 16 << 20  # of JSON; a daemon sends some hundred bytes
_SOURCES: Final[dict[int, Literal["stdout", "stderr"]]] = {0: "stdout", 1: "stdout", 2: "stderr"}
_SYSTEM_ERROR: Final = 3  # the daemon's own words in the middle of a log


class Piece(NamedTuple):
    """A piece of a container's output: a line with its end, or a part of one longer than 16 KiB.

    :ivar since: given as ``since`` to another call, goes on right after this piece: nothing lost, nothing twice.
    """

    source: Literal["stdout", "stderr"]
    data: bytes
    since: str


class Stream(Generic[T], Iterator[T]):
    """What a daemon sends, one by one, for as long as it goes on.

    StopIteration: it ended orderly, or :meth:`close` was called. One thread reads; any may close.

    :raises DaemonGone: from ``next``, the connection broke.
    :raises DaemonError: from ``next``, the daemon reported an error in the midst of its answer.
    """

    def __init__(
        self,
        answer: Any,
        decode: Callable[[Iterator[bytes]], Iterator[T]],
        *,
        release: Callable[[], None] = lambda: None,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        """
        :param answer: a ``requests`` answer whose body was not read.
        :param release: frees what the stream has for itself; called once.
        :param on_gone: called when the connection breaks.
        """
        self._answer = answer
        self._socket = _socket_below(answer)
        # Silence may last for hours; a peer that vanished is found out by the kernel.
        self._socket.settimeout(None)
        if self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        raw = answer.raw
        self._items = decode(raw.stream((64 << 10) if raw.chunked else 1))
        self._free, self._on_gone = release, on_gone
        self._reading = threading.Lock()
        self._closed = False
        self._freed = False

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        with self._reading:
            if self._freed:
                raise StopIteration
            try:
                return next(self._items)
            except StopIteration:
                self._release()
                raise
            except DaemonError:
                self._release()
                raise
            except (DaemonGone, ValueError) as error:  # ValueError: reading what was closed meanwhile
                raise self._broken(error) from None
            except transport_errors() as error:
                raise self._broken(error) from None

    def _broken(self, error: Exception) -> Exception:
        """What the reader is told after the connection ended in the midst."""
        self._release()
        if self._closed:
            return StopIteration()
        self._on_gone()
        return error if isinstance(error, DaemonGone) else DaemonGone(reason_of(error))

    def close(self) -> None:
        """End it; a thread that waits in ``next`` gets StopIteration at once."""
        self._closed = True
        with contextlib.suppress(OSError):  # not connected any more: that is what is wanted
            # The plain socket's method: TLS would first take apart what the reader uses.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        if self._reading.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._reading.release()

    def _release(self) -> None:
        """Free the descriptor. Only the reader may: under a waiting reader its number could be given to another."""
        if not self._freed:
            self._freed = True
            self._answer.close()
            self._free()


def _socket_below(answer: Any) -> socket.socket:
    """The socket of an answer that is still being read; the SDK finds it in the same way."""
    below = answer.raw._fp.fp.raw._sock
    assert isinstance(below, socket.socket)
    return below


# --- decoding ----------------------------------------------------------------------------------------


def json_lines(chunks: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Objects, one a line.

    :raises DaemonGone: it ends in the middle of one.
    :raises DaemonError: a line is no JSON object, or an object is the report of an error.
    """
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield _object(line)
        if len(rest) > _LONGEST_LINE:
            raise DaemonError(None, "the daemon sends a line without end")
    if rest.strip():
        try:
            yield _object(rest)
        except DaemonError as error:
            if error.__cause__ is None:
                raise
            raise DaemonGone(BROKEN) from error


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DaemonError(None, "the daemon sent something that is no JSON") from error
    if not isinstance(found, dict):
        raise DaemonError(None, "the daemon sent something that is no JSON object")
    if "error" in found:
        raise DaemonError(None, str(found["error"]))
    return found


def log_pieces(since: str | None, *, tty: bool) -> Callable[[Iterator[bytes]], Iterator[Piece]]:
    """A decoder of a log with time stamps that was asked for from ``log_start(since)`` on."""

    def decode(chunks: Iterator[bytes]) -> Iterator[Piece]:
        place = _LogPlace(since)
        for source, payload in _tty_lines(chunks) if tty else log_frames(chunks):
            if source == _SYSTEM_ERROR:
                raise DaemonError(None, payload.decode("utf-8", errors="replace"))
            stamp, _, data = payload.partition(b" ")
            resume = place.passed(_nanoseconds(stamp))
            if resume is not None:
                yield Piece(_SOURCES.get(source, "stderr"), data, resume)

    return decode


def log_frames(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Frames of the Docker API: number of the stream, three zeros, length (big endian, 4 bytes), payload.

    :raises DaemonGone: it ends in the middle of one.
    """
    rest = bytearray()
    for chunk in chunks:
        rest += chunk
        at = 0
        while len(rest) - at >= 8:
            end = at + 8 + int.from_bytes(rest[at + 4 : at + 8], "big")
            if len(rest) < end:
                break
            yield rest[at], bytes(rest[at + 8 : end])
            at = end
        del rest[:at]
    if rest:
        raise DaemonGone(BROKEN)


def _tty_lines(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """A terminal's output has no frames; each line begins with its time stamp."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield 1, line + b"\n"
    if rest:
        yield 1, rest


def log_start(since: str | None) -> str | None:
    """What to ask the daemon for: ``<seconds>.<nanoseconds>``, or None for everything."""
    if since is None:
        return None
    anchor = int(since.partition("+")[0])
    return f"{anchor // _SECOND}.{anchor % _SECOND:09d}"


def since_moment(nanoseconds: int) -> str:
    """The ``since`` of everything from a moment (since 1970) on."""
    return f"{max(nanoseconds, 0)}+0"


def newest(since: str) -> int:
    """Nanoseconds since 1970: the newest time stamp up to the piece with this ``since``.

    Too high by at most a second for what is older than a second after the moment from which reading began.
    """
    return int(since.partition("+")[0]) + _SECOND


class _LogPlace:
    """Where a reader is in a log, so that another can go on there.

    A daemon finds lines by their time, from a moment on. Parts of one long line share a time stamp, and the two
    streams of a container are stamped before they are put in order. So a place is a moment one second back, and
    how many pieces of that moment or later have been read: the order of a log never changes.
    """

    def __init__(self, since: str | None) -> None:
        anchor, _, count = (since or "0+0").partition("+")
        self._first = self._anchor = int(anchor)
        self._to_skip = int(count)
        self._stamps: list[int] = []  # a heap: those at or after the anchor

    def passed(self, stamp: int) -> str | None:
        """Take note of a piece; None: it was read before."""
        if stamp < self._first:  # a daemon that understands whole seconds alone sends some more
            return None
        if stamp >= self._anchor:  # else somebody set the clock back: it is new, but cannot be counted
            heapq.heappush(self._stamps, stamp)
        if self._to_skip:
            self._to_skip -= 1
            return None
        self._anchor = max(self._anchor, stamp - _SECOND)
        while self._stamps and self._stamps[0] < self._anchor:
            heapq.heappop(self._stamps)
        return f"{self._anchor}+{len(self._stamps)}"


def _nanoseconds(stamp: bytes) -> int:
    """Since 1970, of a time such as ``2026-01-31T12:00:00.123456789Z`` or with an offset; digits may lack.

    :raises DaemonError: it is no time.
    """
    text = stamp.decode("ascii", errors="replace")
    zone = "Z" if text.endswith("Z") else text[-6:]
    moment, _, fraction = text.removesuffix(zone).partition(".")
    try:
        seconds = int(datetime.fromisoformat(moment + zone).timestamp())
        return seconds * _SECOND + int(fraction.ljust(9, "0")[:9])
    except ValueError as error:
        raise DaemonError(None, f"a line of the log has no time stamp but {text[:40]!r}") from error
