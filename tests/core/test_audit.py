"""The audit log: appended to, private, bounded, never in anybody's way, and honest about what is missing."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamaman.core import audit_file
from llamaman.core.audit import LOST, REPEATERS, Audit
from llamaman.errors import ConfigError

KEY = "llm-" + "A1b2C3d4" * 6
NOON = 1_750_000_000.0  # 2025-06-15 15:06 UTC


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Audit]]:
    made: list[Audit] = []

    def new(**options: Any) -> Audit:
        made.append(Audit(tmp_path / "audit", clock=clock, **options))
        return made[-1]

    yield new
    for audit in made:
        audit.close()


def note(audit: Audit, action: str = "users.create", **facts: Any) -> None:
    facts.setdefault("actor", "session:ann")
    facts.setdefault("address", "10.0.0.1")
    audit.record(action, **facts)


def actions(audit: Audit, **wanted: Any) -> list[str]:
    assert audit.flush(60)
    return [entry["action"] for entry in audit.read(**wanted)]


def test_an_entry_says_who_what_where_and_how_it_went(make: Callable[..., Audit], tmp_path: Path) -> None:
    audit = make()
    note(audit, object="bob", changes={"role": {"old": "viewer", "new": "admin"}}, detail="by hand")
    assert audit.flush(60)
    (entry,) = audit.read()
    assert entry.pop("id") > 0
    assert entry == {
        "at": NOON,
        "actor": "session:ann",
        "address": "10.0.0.1",
        "action": "users.create",
        "object": "bob",
        "changes": {"role": {"old": "viewer", "new": "admin"}},
        "outcome": "ok",
        "detail": "by hand",
    }
    line = (tmp_path / "audit" / "audit-20250615.jsonl").read_text()
    assert line.endswith("}\n")
    assert json.loads(line)["object"] == "bob"


def test_folder_and_files_are_for_us_alone(make: Callable[..., Audit], tmp_path: Path) -> None:
    audit = make()
    note(audit)
    assert audit.flush(60)
    folder = tmp_path / "audit"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]


def test_a_folder_that_is_a_link_ends_the_boot(make: Callable[..., Audit], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "audit").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not a folder of this account"):
        make()


def test_a_file_that_is_a_link_is_not_written_through(make: Callable[..., Audit], tmp_path: Path) -> None:
    audit = make()
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (tmp_path / "audit" / "audit-20250615.jsonl").symlink_to(victim)
    note(audit)
    assert audit.flush(60)
    assert victim.read_text() == "precious\n"


def test_no_secret_and_no_control_character_gets_in(make: Callable[..., Audit], tmp_path: Path) -> None:
    audit = make()
    note(
        audit,
        f"x.{KEY}",
        actor=f"key:{KEY}",
        object=f"Bearer {KEY}",
        changes={"argv": ["--api-key", "hunter2hunter2", KEY], "password": "hunter2hunter2"},
        detail="\x1b[2J \u202e evil",
    )
    assert audit.flush(60)
    raw = (tmp_path / "audit" / "audit-20250615.jsonl").read_bytes()
    assert KEY.encode() not in raw
    assert b"hunter2" not in raw
    assert all(32 <= byte < 127 for byte in raw.rstrip(b"\n"))


def test_the_newest_comes_first_and_pages_go_back_over_days(make: Callable[..., Audit], clock: Clock) -> None:
    audit = make()
    for day in range(3):
        for number in range(4):
            note(audit, f"day{day}.n{number}")
        assert audit.flush(60)
        clock.now += 86400
    seen: list[str] = []
    before = None
    while page := audit.read(before=before, limit=5):
        seen += [entry["action"] for entry in page]
        before = page[-1]["id"]
    assert seen == [f"day{day}.n{number}" for day in (2, 1, 0) for number in (3, 2, 1, 0)]


def test_entries_are_chosen_by_actor_action_and_outcome(make: Callable[..., Audit]) -> None:
    audit = make()
    note(audit, "users.create")
    note(audit, "users.delete", actor="key:ci")
    note(audit, "userspace.create", outcome="failed")
    assert actions(audit, actor="key:ci") == ["users.delete"]
    assert actions(audit, action="users") == ["users.delete", "users.create"]
    assert actions(audit, action="users.create") == ["users.create"]
    assert actions(audit, outcome="failed") == ["userspace.create"]


def test_ids_grow_over_restarts_even_if_the_clock_goes_back(make: Callable[..., Audit], clock: Clock) -> None:
    first = make()
    note(first)
    assert first.flush()
    last = first.read()[0]["id"]
    first.close()
    clock.now -= 3 * 86400
    second = make()
    note(second, "later")
    assert second.flush()
    assert second.read()[0]["action"] == "later"
    assert second.read()[0]["id"] > last


@pytest.mark.parametrize("size", [1, 70_000])
def test_a_torn_last_line_is_cut_and_the_rest_is_kept(
    make: Callable[..., Audit], tmp_path: Path, size: int
) -> None:
    first = make()
    note(first, "whole")
    first.close()
    path = tmp_path / "audit" / "audit-20250615.jsonl"
    with path.open("ab") as file:
        file.write(b'{"id": 1, "acti' + b"x" * size)
    second = make()
    assert actions(second) == ["whole"]
    note(second, "after")
    assert actions(second) == ["after", "whole"]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_file_that_holds_nothing_but_a_torn_line_is_emptied(
    make: Callable[..., Audit], tmp_path: Path
) -> None:
    (tmp_path / "audit").mkdir(mode=0o700)
    (tmp_path / "audit" / "audit-20250615.jsonl").write_bytes(b'{"id": 1')
    audit = make()
    note(audit)
    assert actions(audit) == ["users.create"]


def test_lines_longer_than_a_block_are_read_back(make: Callable[..., Audit]) -> None:
    audit = make()
    for number in range(20):
        note(audit, f"n{number}", changes={"names": "\u00e9" * 2000})
    assert actions(audit, limit=100) == [f"n{number}" for number in reversed(range(20))]


def test_a_full_queue_blocks_nobody_and_what_is_lost_is_counted(
    make: Callable[..., Audit], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    real = os.write

    def slow(descriptor: int, data: bytes) -> int:
        if threading.current_thread().name == "audit":
            assert may_write.wait(120)
        return real(descriptor, data)

    monkeypatch.setattr(audit_file.os, "write", slow)
    audit = make(queue_size=5)
    begun = time.monotonic()
    for _ in range(500):
        note(audit)
    assert time.monotonic() - begun < 60, "somebody waited for the disk"
    may_write.set()
    assert audit.flush(60)
    entries = audit.read(limit=500)
    lost = sum(entry["changes"]["lost"] for entry in entries if entry["action"] == LOST)
    assert lost > 400
    assert lost + sum(entry["action"] != LOST for entry in entries) == 500


def test_a_full_disk_stops_nothing_and_is_logged_once(
    make: Callable[..., Audit],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    full = True
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        if full and threading.current_thread().name == "audit":
            if len(data) % 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data[:10])
        return real(descriptor, data)

    monkeypatch.setattr(audit_file.os, "write", half)
    audit = make()
    with caplog.at_level(logging.INFO, "llamaman.audit"):
        for number in range(10):
            note(audit, detail="x" * number)
        assert audit.flush(60)
        assert audit.read() == []
        full = False
        note(audit, "again")
        assert audit.flush(60)
    assert [entry["action"] for entry in audit.read()] == [LOST, "again"]
    assert audit.read()[0]["changes"] == {"lost": 10}
    lines = (tmp_path / "audit" / "audit-20250615.jsonl").read_text().splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["again", LOST], "no part of a line is left"
    assert sum("cannot be written" in record.message for record in caplog.records) == 1
    assert sum("can be written again" in record.message for record in caplog.records) == 1


def test_a_flood_of_the_same_refusal_is_written_once_and_once_as_a_count(
    make: Callable[..., Audit], clock: Clock
) -> None:
    audit = make()
    for _ in range(100):
        note(audit, "door.refused", actor="none", outcome="refused", detail="Invalid API key")
    note(audit, "door.refused", actor="none", address="10.0.0.2", outcome="refused")
    assert audit.flush(60)
    assert [entry["address"] for entry in audit.read()] == ["10.0.0.2", "10.0.0.1"]
    clock.now += 61
    assert audit.flush(60)
    newest = audit.read()[0]
    assert newest["changes"] == {"repeated": 99}
    assert (newest["action"], newest["address"], newest["outcome"]) == ("door.refused", "10.0.0.1", "refused")
    clock.now += 61
    assert audit.flush(60)
    assert len(audit.read()) == 3, "a refusal that did not come again needs no count"


def test_refusals_from_very_many_addresses_are_counted_together(
    make: Callable[..., Audit], clock: Clock
) -> None:
    audit = make()
    for number in range(REPEATERS + 300):
        note(audit, "door.refused", actor="none", address=f"fe80::{number:x}", outcome="refused")
    assert audit.flush(60)
    assert len(audit.read(limit=1000)) == REPEATERS + 1
    clock.now += 61
    assert audit.flush(60)
    assert audit.read()[0]["changes"] == {"repeated": 299}


def test_what_succeeds_is_written_each_time(make: Callable[..., Audit]) -> None:
    audit = make()
    for _ in range(5):
        note(audit)
    assert len(actions(audit)) == 5


def test_counts_are_written_when_the_log_is_closed(make: Callable[..., Audit]) -> None:
    audit = make()
    for _ in range(3):
        note(audit, outcome="refused")
    audit.close()
    assert audit.read()[0]["changes"] == {"repeated": 2}


def test_days_beyond_retention_go_and_the_rest_stays(make: Callable[..., Audit], clock: Clock) -> None:
    audit = make(days=2)
    for day in range(5):
        note(audit, f"day{day}")
        assert audit.flush(60)
        clock.now += 86400
    clock.now -= 86400
    audit.prune()
    assert actions(audit) == ["day4", "day3", "day2"]


def test_the_log_is_bounded_in_bytes_also_within_a_day(make: Callable[..., Audit], tmp_path: Path) -> None:
    audit = make(most_bytes=20_000)
    for number in range(400):
        note(audit, f"n{number}")
    assert audit.flush(60)
    audit.prune()
    size = sum(path.stat().st_size for path in (tmp_path / "audit").iterdir())
    assert size <= 20_000
    seen = actions(audit, limit=1000)
    assert seen == [f"n{number}" for number in range(399, 399 - len(seen), -1)], (
        "the newest are kept, in order"
    )
    assert len(seen) > 50


def test_other_files_in_the_folder_are_left_alone(make: Callable[..., Audit], tmp_path: Path) -> None:
    audit = make(days=0)
    other = tmp_path / "audit" / "audit-notes.txt"
    other.write_text("mine")
    note(audit)
    assert audit.flush(60)
    audit.prune()
    assert other.read_text() == "mine"
    assert len(actions(audit)) == 1


def test_a_line_that_is_no_entry_is_left_out(make: Callable[..., Audit], tmp_path: Path) -> None:
    first = make()
    note(first, "good")
    first.close()
    path = tmp_path / "audit" / "audit-20250615.jsonl"
    path.write_bytes(b"garbage\n[1]\n" + path.read_bytes())
    assert actions(make()) == ["good"]
