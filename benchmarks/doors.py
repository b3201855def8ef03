"""What the locks cost: authentication per call, passwords under a storm of logins, revoking.

Read by :mod:`benchmarks.__main__`. Guarantees that both sides of a comparison run in one session on one manager,
interleaved and in an order that alternates, and that a figure which could not be taken is null.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import columns, llamaman_proc, load, storm
from benchmarks.llamaman_proc import MODEL, Manager
from llamaman.testing import processes
from llamaman.testing.visitor import Visitor
from llamaman.testing.wire import Request

USER, PASSWORD = "bench", "a long enough bench password"
WRONG = "a long and wrong bench password"
LOGINS = 1000
STREAMS = 16
PROBE_S = 0.005


@dataclass(frozen=True, slots=True)
class Locked:
    """Small calls with ``require_auth`` on (with a key) and off (without), 16 connections."""

    on: float
    off: float
    ratio: float
    """The median of the rounds' ratios."""
    processor: float
    """The same of the calls that a second of the manager's processor time is enough for: neighbours who take the
    processor away make no difference to it."""
    errors: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Answers:
    """What all storms of a run were told: answers by status, failures by cause."""

    statuses: Mapping[str, int]
    errors: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Stormy:
    """1,000 logins at once; medians of the rounds.

    Memory is MB (10^6 bytes) above the idle manager's, hashing processes included. Lag is the milliseconds until
    /health is answered on a connection that is kept, asked every 5 ms, while nothing streams; ``lag_max`` the longest
    of a round.
    """

    memory_mb: float | None
    chunks_before: float
    chunks_during: float
    loss: float
    """Share of the chunks that 16 streams do not get meanwhile; from the rounds' own ratios."""
    lag_p99: float | None
    lag_max: float | None
    idle_lag_p99: float | None
    idle_lag_max: float | None
    answered_s: float
    """Until the last of a storm was answered."""
    weather: Answers
    streaming_weather: Answers


@dataclass(frozen=True, slots=True)
class Logins:
    """Medians of a refused login, milliseconds."""

    known: float
    unknown: float

    @property
    def apart(self) -> float:
        """How far apart, as a share of the lesser."""
        return abs(self.known - self.unknown) / min(self.known, self.unknown)


@dataclass(frozen=True, slots=True)
class Revoked:
    """Seconds from the answer to a revocation to the end of a stream; the longest."""

    key: float
    user: float


@contextlib.contextmanager
def locked_manager() -> Iterator[Manager]:
    """A manager with a user and an instance of the stand-in."""
    with tempfile.TemporaryDirectory(prefix="llamaman-bench-") as folder:
        manager = llamaman_proc.prepare(Path(folder) / "manager")
        manager.env |= {"LLAMAMAN_ADMIN_USER": USER, "LLAMAMAN_ADMIN_PASSWORD": PASSWORD}
        with manager:
            llamaman_proc.launch(manager, 4 * STREAMS)
            yield manager


def auth(rounds: int, seconds: float, progress: Callable[[str], None]) -> Locked:
    """Small calls with and without a key, round by round.

    :raises llamaman_proc.ManagerError, load.LoadError: it could not be measured.
    """
    calls = next(each for each in columns.SCENARIOS if each.name == "calls16")
    on, off = list[load.Result](), list[load.Result]()
    work: dict[bool, list[float]] = {True: [], False: []}
    with locked_manager() as manager:
        key = {"Authorization": f"Bearer {manager.inference_key}"}
        for number in range(rounds):
            sides = [(True, key, on), (False, {}, off)]
            for require_auth, headers, into in sides if number % 2 else reversed(sides):
                progress(f"round {number + 1}/{rounds}: require_auth {'on' if require_auth else 'off'}")
                manager.setting(require_auth=require_auth)
                column = columns.Column(columns.LLAMAMAN, manager.proxy_port, headers)
                before = processes.cpu_seconds(manager.running.pid)
                result = load.run(calls.job(column, seconds))
                after = processes.cpu_seconds(manager.running.pid)
                into.append(result)
                work[require_auth].append((after - before) / max(1, result.answers))
    errors: dict[str, int] = {}
    for each in (*on, *off):
        for what, times in each.errors.items():
            errors[what] = errors.get(what, 0) + times
    pairs = zip(on, off, strict=True)
    return Locked(
        on=statistics.median(each.answers_per_second for each in on),
        off=statistics.median(each.answers_per_second for each in off),
        ratio=statistics.median(a.answers_per_second / b.answers_per_second for a, b in pairs),
        processor=statistics.median(b / a for a, b in zip(work[True], work[False], strict=True)),
        errors=errors,
    )


# --- the storm --------------------------------------------------------------------------------------------


def logins_at_once(rounds: int, seconds: float, progress: Callable[[str], None]) -> Stormy:
    """1,000 logins while nothing else happens, for memory and lag; then the same beside 16 streams. Round by round.

    :raises llamaman_proc.ManagerError, load.LoadError: it could not be measured.
    """
    full = next(each for each in columns.SCENARIOS if each.name == "streams16")
    idle, calm, before, during = list[_Probed](), list[_Probed](), list[float](), list[float]()
    memory, beside = list[float | None](), list[storm.Weather]()
    with locked_manager() as manager:
        Visitor(manager.port).log_in(USER, PASSWORD)  # the first one loads code
        headers = {"Authorization": f"Bearer {manager.inference_key}"}
        column = columns.Column(columns.LLAMAMAN, manager.proxy_port, headers)
        for number in range(rounds):
            progress(f"round {number + 1}/{rounds}: {LOGINS} logins at once")
            idle.append(_lag(manager, seconds, None))
            with _Memory(manager) as watched:
                at_rest = watched.peak
                calm.append(_lag(manager, seconds, _storm(manager, time.monotonic() + 1.5)))
            memory.append(None if watched.peak is None or at_rest is None else watched.peak - at_rest)
            progress(f"round {number + 1}/{rounds}: {STREAMS} streams, and {LOGINS} logins beside them")
            before.append(load.run(full.job(column, seconds)).events_per_second)
            with ThreadPoolExecutor(1) as pool:
                process = storm.start(_storm(manager, time.monotonic() + 2.0))
                time.sleep(1.5)  # the storm is ready by now, and the streams have 0.3 s to begin
                streaming = pool.submit(load.run, full.job(column, seconds))
                beside.append(storm.result(process))
                during.append(streaming.result().events_per_second)
    return Stormy(
        memory_mb=_median(memory),
        chunks_before=statistics.median(before),
        chunks_during=statistics.median(during),
        loss=1 - statistics.median(b / a for a, b in zip(before, during, strict=True)),
        lag_p99=_median([load.percentile(each.lags, 0.99) for each in calm]),
        lag_max=_median([max(each.lags, default=None) for each in calm]),
        idle_lag_p99=_median([load.percentile(each.lags, 0.99) for each in idle]),
        idle_lag_max=_median([max(each.lags, default=None) for each in idle]),
        answered_s=statistics.median(each.weather.seconds for each in calm if each.weather),
        weather=_together([each.weather for each in calm if each.weather]),
        streaming_weather=_together(beside),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _together(many: Sequence[storm.Weather]) -> Answers:
    statuses, errors = Counter[str](), Counter[str]()
    for each in many:
        statuses.update(each.statuses)
        errors.update(each.errors)
    return Answers(dict(statuses), dict(errors))


def _storm(manager: Manager, at: float) -> storm.Storm:
    visitor = Visitor(manager.port)
    token = visitor.token("/login")
    forms = [
        {"csrf_token": token, "username": name, "password": password}
        for name, password in ((USER, PASSWORD), (USER, WRONG), ("nobody", WRONG), ("somebody", PASSWORD))
    ]
    cookie = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
    return storm.Storm(manager.port, LOGINS, cookie, forms, at)


@dataclass(frozen=True, slots=True)
class _Probed:
    lags: list[float]
    weather: storm.Weather | None


def _lag(manager: Manager, seconds: float, wind: storm.Storm | None) -> _Probed:
    """Ask /health every 5 ms on one connection, from the storm's beginning until it is over and ``seconds`` passed."""
    process = storm.start(wind) if wind else None
    weather: list[storm.Weather] = []
    over = threading.Event()

    def wait() -> None:
        if process:
            weather.append(storm.result(process))
        over.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(max(0.0, wind.at - 0.05 - time.monotonic()) if wind else 0.0)
    begun = time.monotonic()
    lags = lag(manager, lambda: over.is_set() and time.monotonic() - begun >= seconds)
    waiting.join()
    return _Probed(lags, weather[0] if weather else None)


def lag(manager: Manager, over: Callable[[], bool]) -> list[float]:
    """Milliseconds until /health is answered, asked every 5 ms on one connection until it is over."""
    lags: list[float] = []
    request = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{manager.port}\r\n\r\n".encode()
    with contextlib.closing(
        Request(manager.port, "GET", "/health", headers={"Connection": "keep-alive"}).sock
    ) as line:
        line.recv(65536)
        while not over():
            asked = time.perf_counter()
            line.sendall(request)
            line.recv(65536)
            took = time.perf_counter() - asked
            lags.append(took * 1000)
            time.sleep(max(0.0, PROBE_S - took))
    return lags


class _Memory:
    """The memory (VmRSS) of the manager and what it started, engines left out, looked at every 10 ms.

    :ivar peak: the most there was, MB; None where it could not be read.
    """

    def __init__(self, manager: Manager) -> None:
        self._root = manager.running.pid
        self._engines = frozenset(manager.engines())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak = self.now()

    def now(self) -> float | None:
        """Right now."""
        parts = [processes.rss_mb(pid) for pid in _tree(self._root) if pid not in self._engines]
        known = [part for part in parts if part is not None]
        return sum(known) if known else None

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            now = self.now()
            if now is not None and (self.peak is None or now > self.peak):
                self.peak = now


def _tree(root: int) -> set[int]:
    """A process and its descendants."""
    found: set[int] = set()
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it ended while we looked
                waiting += [int(child) for child in children.read_text().split()]
    return found


# --- one login, one revocation ----------------------------------------------------------------------------


def refused_logins(pairs: int, progress: Callable[[str], None]) -> Logins:
    """A wrong password for a user that is there and for one that is not, in turn, each from a new address.

    :raises llamaman_proc.ManagerError: it could not be measured.
    """
    progress(f"logins: {pairs} pairs of a known and an unknown user")
    took: dict[str, list[float]] = {USER: [], "absent": []}
    with locked_manager() as manager:
        visitor = Visitor(manager.port)
        token = visitor.token("/login")
        cookie = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
        for number in range(pairs + 1):
            names = list(took) if number % 2 else list(reversed(took))
            for name in names:
                forms = [{"csrf_token": token, "username": name, "password": WRONG}]
                weather = _one(
                    storm.Storm(manager.port, 1, cookie, forms, 0.0), 2 * number + names.index(name)
                )
                if set(weather.statuses) != {"401"}:
                    raise llamaman_proc.ManagerError(
                        f"a wrong login answered {weather.statuses or weather.errors}"
                    )
                if number and weather.latency_p50 is not None:  # the first pair loads code
                    took[name].append(weather.latency_p50)
    return Logins(statistics.median(took[USER]), statistics.median(took["absent"]))


def _one(wind: storm.Storm, number: int) -> storm.Weather:
    """In this process: a new one for each login would be most of what is measured."""
    return storm.run(wind, first=number)


def revoking(times: int, progress: Callable[[str], None]) -> Revoked:
    """Cut streams off by revoking their key and by disabling their user.

    :raises llamaman_proc.ManagerError: it could not be measured.
    """
    progress(f"revoking: {times} times")
    keys, users = list[float](), list[float]()
    with locked_manager() as manager:
        for number in range(times):
            key = manager.key("inference")
            stream = manager.ask(
                MODEL, key=key.secret, stream=True, max_tokens=100_000, standin={"pace_ms": 20}
            )
            keys.append(_seconds_to_end(stream, partial(manager.revoke, key)))
            name = f"user-{number}"
            manager.manage("POST", "/api/users", {"name": name, "password": PASSWORD, "role": "manager"})
            visitor = Visitor(manager.port)
            visitor.log_in(name, PASSWORD)
            token = visitor.call("GET", "/api/me").json()["csrf_token"]
            body = {"model": MODEL, "stream": True, "max_tokens": 100_000, "standin": {"pace_ms": 20}}
            body["messages"] = [{"role": "user", "content": "hello"}]
            own = visitor.send("POST", llamaman_proc.CHAT, body, headers={"X-CSRF-Token": token})
            disable = partial(manager.manage, "PATCH", f"/api/users/{name}", {"disabled": True})
            users.append(_seconds_to_end(own, disable))
    return Revoked(max(keys), max(users))


def _seconds_to_end(stream: Request, end: Callable[[], object]) -> float:
    with stream:
        events = stream.events()
        next(events)
        begun = time.perf_counter()
        end()
        with contextlib.suppress(OSError, ValueError):
            for _ in events:
                pass
        return time.perf_counter() - begun
