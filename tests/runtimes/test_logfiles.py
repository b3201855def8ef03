"""Log files: bounded, private, and harmless to show."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llamaman.errors import LaunchError
from llamaman.runtimes.logfiles import (
    Follower,
    bound_total,
    escape,
    older,
    open_log,
    remove,
    rotate_if_large,
    tail,
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "engine.log"


def append(path: Path, text: str) -> None:
    descriptor = open_log(path)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def test_the_folder_and_the_file_are_for_us_alone(log: Path) -> None:
    append(log, "one\n")
    append(log, "two\n")
    assert log.read_text() == "one\ntwo\n"
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(LaunchError, match="symbolic link"):
        open_log(tmp_path / "link" / "x.log")


def test_a_folder_that_others_can_fill_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(LaunchError, match="chmod go-w"):
        open_log(folder / "x.log")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    with pytest.raises(LaunchError, match="another user") as caught:
        open_log(folder / "x.log")
    assert str(folder) not in caught.value.message


def test_a_file_that_is_a_link_or_a_pipe_is_refused(log: Path, tmp_path: Path) -> None:
    append(log, "")
    log.unlink()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    log.symlink_to(victim)
    with pytest.raises(LaunchError):
        open_log(log)
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(LaunchError):
        open_log(log)
    assert victim.read_text() == "precious"


def test_rotation_keeps_three_files_and_the_writer_goes_on(log: Path) -> None:
    descriptor = open_log(log)  # as an engine holds it
    for number in range(5):
        os.write(descriptor, f"{number}\n".encode() * 60)
        assert rotate_if_large(log, at_bytes=100, keep=3)
    os.write(descriptor, b"last\n")
    os.close(descriptor)
    assert log.read_text() == "last\n"
    assert older(log, 1).read_text() == "4\n" * 60
    assert older(log, 2).read_text() == "3\n" * 60
    assert sorted(path.name for path in log.parent.iterdir()) == [
        "engine.log",
        "engine.log.1",
        "engine.log.2",
    ]
    assert stat.S_IMODE(older(log, 1).stat().st_mode) == 0o600
    remove(log)
    assert list(log.parent.iterdir()) == []


def test_a_small_or_missing_log_is_left_alone(log: Path) -> None:
    assert not rotate_if_large(log)
    append(log, "x\n")
    assert not rotate_if_large(log)


def test_the_total_is_bounded_by_removing_the_oldest_that_nobody_uses(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / f"{number}.log"
        path.write_bytes(b"x" * 100)
        os.utime(path, (number, number))
    removed = bound_total(tmp_path, keep=[tmp_path / "0.log"], total_bytes=300)
    assert [path.name for path in removed] == ["1.log", "2.log"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.log", "3.log", "4.log"]


def test_tail_gives_the_last_lines_with_their_newlines(log: Path) -> None:
    append(log, "".join(f"{number}\n" for number in range(500)) + "open end")
    assert tail(log, 3) == ["498\n", "499\n", "open end"]
    assert len(tail(log)) == 100
    assert tail(log, 0) == []
    assert tail(log.with_name("none.log")) == []


def test_tail_reads_no_more_than_its_bound_and_begins_with_a_whole_line(log: Path) -> None:
    append(log, "aaaa\n" * 100)
    assert tail(log, 100, max_bytes=12) == ["aaaa\n", "aaaa\n"]
    assert tail(log, 100, max_bytes=10) == ["aaaa\n", "aaaa\n"]


def test_tail_reaches_back_over_a_rotation(log: Path) -> None:
    append(log, "old 1\nold 2\n")
    rotate_if_large(log, at_bytes=1)
    append(log, "new\n")
    assert tail(log, 2) == ["old 2\n", "new\n"]


def test_control_characters_are_shown_and_never_obeyed(log: Path) -> None:
    append(log, "a\x1b[2Jb\x07\u202ec\u200bd\x9be\tf\r\n")
    assert tail(log) == ["a\\x1b[2Jb\\x07\\u202ec\\u200bd\\x9be\tf\n"]
    assert escape("kept: é 漢 🦙\n") == "kept: é 漢 🦙\n"


def test_bytes_that_are_no_text_do_not_stop_a_reader(log: Path) -> None:
    append(log, "")
    log.write_bytes(b"\xff\xfe broken \x00\n")
    assert tail(log) == ["\ufffd\ufffd broken \\x00\n"]


def test_a_follower_gives_each_complete_line_once(log: Path) -> None:
    append(log, "before\n")
    follower = Follower(log)
    assert follower.read() == []
    append(log, "one\ntw")
    assert follower.read() == ["one\n"]
    append(log, "o\nthree\n")
    assert follower.read() == ["two\n", "three\n"]
    assert follower.read() == []
    assert Follower(log, from_start=True).read() == ["before\n", "one\n", "two\n", "three\n"]


def test_a_follower_waits_for_a_file_and_survives_its_rotation(log: Path) -> None:
    follower = Follower(log)
    assert follower.read() == []
    append(log, "first\n" * 10)
    assert follower.read() == ["first\n"] * 10
    rotate_if_large(log, at_bytes=1)
    append(log, "second\n")
    assert follower.read() == ["second\n"]


def test_a_follower_that_falls_behind_says_that_lines_were_lost(log: Path) -> None:
    follower = Follower(log)
    append(log, "x" * 99 + "\n")
    for _ in range(4):
        append(log, ("y" * 999 + "\n") * 100)
    lines = follower.read()
    assert lines[0] == Follower.LOST
    assert 100 < len(lines) < 300
    assert set(lines[1:]) == {"y" * 999 + "\n"}
    assert follower.read() == []


def test_a_line_without_an_end_does_not_gather(log: Path) -> None:
    follower = Follower(log)
    append(log, "z" * 100_000)
    (line,) = follower.read()
    assert len(line) < 17_000
    assert line.endswith("[...]\n")
