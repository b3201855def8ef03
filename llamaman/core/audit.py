"""Who did what, from where, to which object, and whether it was allowed: the audit log.

Written by the front door, the management gate and the event bus; read by administrators through REST. Guarantees:
:meth:`Audit.record` never blocks and never raises; every text passes the redactor; what could not be written is
counted, and the count is written as soon as anything can be; a flood of refusals costs two lines a minute.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llamaman.core import audit_file
from llamaman.core.redact import redact, redact_value
from llamaman.limits import AUDIT_BYTES, AUDIT_DAYS

log = logging.getLogger("llamaman.audit")

Outcome = Literal["ok", "refused", "failed"]

#: The action of the entry that says how many are missing.
LOST = "audit.lost"

QUEUE = 10_000
REPEAT_S = 60.0
#: Callers whose refusals are told apart at a time; those of more are counted together, whatever their address.
REPEATERS = 100
LONGEST_TEXT = 1000
LONGEST_CHANGES = 16 << 10
_PARTS = 4  # a day outgrows its file at this part of the whole log's size
_TICK_S = 1.0
_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class _Fact:
    """What :meth:`Audit.record` was told."""

    at: float
    actor: str
    address: str | None
    action: str
    object: str
    changes: Mapping[str, Any]
    outcome: Outcome
    detail: str


@dataclass(slots=True)
class _Repeats:
    """A refusal that was written, and how often it came again."""

    fact: _Fact
    since: float
    more: int = 0


_Key = tuple[str, str, str | None]


class Audit:
    """See the module's docstring. One per manager; its thread is the only writer of the folder.

    :param folder: created with mode 0700.
    :raises ConfigError: the folder cannot be made private.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
        most_bytes: int = AUDIT_BYTES,
        days: int = AUDIT_DAYS,
        queue_size: int = QUEUE,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._most_bytes = most_bytes
        self._days = days
        audit_file.prepare(folder)
        self._pruning = threading.Lock()
        self._queue: queue.Queue[_Fact | threading.Event | None] = queue.Queue(queue_size)
        self._dropped = 0  # by record, under the lock; taken over by the writer
        self._drop_lock = threading.Lock()
        # Everything below belongs to the writing thread.
        self._writer = audit_file.Writer(folder, most_bytes // _PARTS)
        self._last_id: int | None = None
        self._lost = 0
        self._failing = False
        self._unpruned = 0
        self._repeats: dict[_Key, _Repeats] = {}
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    # --- for any thread ------------------------------------------------------------------------------

    def record(
        self,
        action: str,
        *,
        actor: str,
        address: str | None,
        object: str = "",
        changes: Mapping[str, Any] | None = None,
        outcome: Outcome = "ok",
        detail: str = "",
    ) -> None:
        """Note that something was done or refused. Never blocks, never raises.

        :param action: noun and verb, such as ``users.create``.
        :param changes: names, or name -> {"old": ..., "new": ...}; no secrets (they would be masked).
        """
        fact = _Fact(self._clock(), actor, address, action, object, dict(changes or {}), outcome, detail)
        try:
            self._queue.put_nowait(fact)
        except queue.Full:
            with self._drop_lock:
                self._dropped += 1

    def read(
        self,
        before: int | None = None,
        limit: int = 100,
        *,
        actor: str | None = None,
        action: str | None = None,
        outcome: str | None = None,
    ) -> list[dict[str, Any]]:
        """The newest ``limit`` entries with an id below ``before``, newest first. Blocks.

        :param action: the whole action, or its noun (``users`` finds ``users.create`` too).
        :raises OSError: the folder cannot be read.
        """
        found: list[dict[str, Any]] = []
        for _, path in reversed(audit_file.files(self._folder)):
            if before is not None and (audit_file.first_id(path) or 0) >= before:
                continue
            for entry in audit_file.entries(path):
                if len(found) >= limit:
                    return found
                if before is not None and entry["id"] >= before:
                    continue
                if actor not in (None, entry.get("actor")) or outcome not in (None, entry.get("outcome")):
                    continue
                if action is None or f"{entry.get('action')}.".startswith(f"{action}."):
                    found.append(entry)
        return found

    def prune(self) -> None:
        """Remove what is older than the log keeps, and the oldest of what is too large. Blocks."""
        oldest = audit_file.day_of(self._clock() - self._days * 86400)
        with self._pruning:
            removed = audit_file.prune(self._folder, oldest_day=oldest, most_bytes=self._most_bytes)
        if removed:
            log.info("audit log: %d old files removed, the last is %s", len(removed), removed[-1])

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything recorded before can be read; False when that took too long."""
        if not self._thread.is_alive():
            return self._queue.empty()
        written = threading.Event()
        deadline = time.monotonic() + timeout_s
        try:
            self._queue.put(written, timeout=timeout_s)
        except queue.Full:
            return False
        return written.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Write what is left, counts of repeated refusals included, and end the thread. Later records are lost."""
        if not self._thread.is_alive():
            return
        try:
            self._queue.put(None, timeout=_CLOSE_S)
        except queue.Full:
            log.error("the audit log could not be completed: its disk does not answer")  # noqa: TRY400 - no cause
            return
        self._thread.join(_CLOSE_S)

    # --- the writing thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=_TICK_S)
            except queue.Empty:
                item = threading.Event()
            try:
                self._settle(everything=item is None)
                if isinstance(item, _Fact):
                    self._take(item)
                self._tell_lost()
            except Exception:  # a defect here must not end the log
                log.exception("the audit log failed on an entry")
                self._lost += 1
            if item is None:
                self._writer.close()
                return
            if isinstance(item, threading.Event):
                item.set()

    def _take(self, fact: _Fact) -> None:
        if fact.outcome == "refused":
            key: _Key = (fact.action, fact.actor, fact.address)
            if key not in self._repeats and len(self._repeats) >= REPEATERS:
                key = ("refusals", "others", None)
                fact = _Fact(
                    fact.at, "", None, "refusals", "", {}, "refused", "of more callers than are told apart"
                )
            known = self._repeats.get(key)
            if known is not None:
                known.more += 1
                return
            self._repeats[key] = _Repeats(fact, self._clock())
        self._write(fact)

    def _settle(self, *, everything: bool = False) -> None:
        """Write how often refusals came again whose minute is over."""
        now = self._clock()
        over = [
            key for key, each in self._repeats.items() if everything or not 0 <= now - each.since < REPEAT_S
        ]
        for key in over:
            each = self._repeats.pop(key)
            if each.more:
                fact = each.fact
                detail = f"{each.more} more like it within {max(now - each.since, 0):.0f} s"
                changes = {"repeated": each.more}
                self._write(_Fact(now, fact.actor, fact.address, fact.action, "", changes, "refused", detail))

    def _tell_lost(self) -> None:
        if self._dropped:
            with self._drop_lock:
                self._lost, self._dropped = self._lost + self._dropped, 0
        if not self._lost or (self._failing and not self._queue.empty()):
            return
        lost, self._lost = self._lost, 0
        detail = f"{lost} entries could not be written"
        if not self._write(
            _Fact(self._clock(), "llamaman", None, LOST, "", {"lost": lost}, "failed", detail), counts=False
        ):
            self._lost += lost

    def _write(self, fact: _Fact, *, counts: bool = True) -> bool:
        """Append one line; one that cannot be written is counted, and the disk's trouble is logged once."""
        day = audit_file.day_of(self._clock())
        try:
            if self._last_id is None:
                self._last_id = self._writer.last_id()
            entry_id = max(int(self._clock() * 1000), self._last_id + 1)
            written = self._writer.append(_document(entry_id, fact), day)
        except OSError as error:
            self._lost += counts
            if not self._failing:
                self._failing = True
                log.error(  # noqa: TRY400 - the disk's word is the cause
                    "the audit log cannot be written (%s); LlamaMan goes on, and what is missing will be counted",
                    error.strerror,
                )
            return False
        self._last_id = entry_id
        if self._failing:
            self._failing = False
            log.info("the audit log can be written again")
        self._unpruned += written
        if self._unpruned > self._most_bytes // (2 * _PARTS):  # more than the daily job foresees
            self._unpruned = 0
            self._prune_now()
        return True

    def _prune_now(self) -> None:
        try:
            self.prune()
        except OSError as error:
            log.warning("the audit log could not be made smaller: %s", error.strerror)


def _document(entry_id: int, fact: _Fact) -> dict[str, Any]:
    """The entry as it is written and as REST shows it. ``at`` is epoch seconds."""
    return {
        "id": entry_id,
        "at": round(fact.at, 3),
        "actor": _bounded(fact.actor),
        "address": fact.address,
        "action": _bounded(fact.action),
        "object": _bounded(fact.object),
        "changes": _bounded_changes(redact_value(fact.changes)),
        "outcome": fact.outcome,
        "detail": _bounded(fact.detail),
    }


def _bounded(text: str) -> str:
    clean = redact(text).encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    return clean if len(clean) <= LONGEST_TEXT else clean[: LONGEST_TEXT - 3] + "..."


def _bounded_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    text = json.dumps(changes, default=str)
    if len(text) <= LONGEST_CHANGES:
        found: dict[str, Any] = json.loads(text)
        return found
    return {"names": sorted(str(name)[:64] for name in changes)[:50], "too_long": len(text)}
