"""The process that reads headers: whatever a file does to it, the scan goes on and no other file suffers."""

from __future__ import annotations

import logging
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamaman.library import gguf_worker, header_reader
from llamaman.library.gguf import BrokenHeader, Header
from llamaman.library.header_reader import HeaderReader
from llamaman.testing import write_tiny_model

MOST_GROWTH = 20 << 20


@pytest.fixture
def reader() -> Iterator[HeaderReader]:
    with HeaderReader() as reader:
        yield reader


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


def broken(found: Header | BrokenHeader) -> BrokenHeader:
    assert isinstance(found, BrokenHeader)
    return found


def status(pid: int | None, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{name}:"))


def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def endless(path: Path) -> Path:
    """A file that takes a second, or as many bytes as any file may: 60 lists of 2 Mi empty strings, mostly holes."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 60))
        for index in range(60):
            key = f"k{index}".encode()
            file.write(struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 8, 2 << 20))
            file.seek(16 << 20, os.SEEK_CUR)
        file.truncate()
    return path


def one_value(key: bytes, kind: int, value: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<I", kind) + value


def while_it_reads(reader: HeaderReader, path: Path, act: Callable[[int], None]) -> Header | BrokenHeader:
    """Read a file and meanwhile do something to every process that reads it."""
    done = threading.Event()

    def watch() -> None:
        acted = set[int]()
        while not done.is_set():
            pid = reader.pid
            if pid is not None and pid not in acted and str(path) in open_files(pid):
                acted.add(pid)
                act(pid)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return reader.read(path)
    finally:
        done.set()
        watcher.join()


def open_files(pid: int) -> list[str]:
    try:
        return [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []


def signals(number: signal.Signals) -> Callable[[int], None]:
    def send(pid: int) -> None:
        os.kill(pid, number)

    return send


def test_a_good_file_gives_its_header(reader: HeaderReader, tiny: Path) -> None:
    header = reader.read(tiny)
    assert isinstance(header, Header)
    assert (header.architecture, header.block_count, header.context_length) == ("llama", 2, 16_384)
    assert 0 < header.header_bytes < tiny.stat().st_size


def test_hostile_files_cost_little_and_the_next_file_is_read(
    reader: HeaderReader, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path
    (folder / "counts.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 1 << 63))
    (folder / "array.gguf").write_bytes(one_value(b"k", 9, struct.pack("<IQ", 8, 1 << 62)))
    (folder / "string.gguf").write_bytes(one_value(b"k", 8, struct.pack("<Q", 1 << 62)))
    (folder / "nested.gguf").write_bytes(one_value(b"k", 9, struct.pack("<IQ", 9, 1)))
    (folder / "shadow.gguf").symlink_to("/etc/shadow")
    (folder / "zero.gguf").symlink_to("/dev/zero")
    (folder / "terminal.gguf").symlink_to("/dev/tty")
    (folder / "itself.gguf").symlink_to(folder / "itself.gguf")
    os.mkfifo(folder / "fifo.gguf")
    (folder / "folder.gguf").mkdir()
    endless(folder / "endless.gguf")
    reader.read(tiny)
    first, idle = reader.pid, int(status(reader.pid, "VmHWM").split()[0]) << 10
    for path in sorted(folder.iterdir()):
        begun = time.monotonic()
        assert not broken(reader.read(path)).passing, path.name
        assert time.monotonic() - begun < header_reader.PATIENCE_S, path.name
    assert isinstance(reader.read(tiny), Header)
    assert reader.pid == first  # none of them even harmed the process
    assert (int(status(first, "VmHWM").split()[0]) << 10) - idle < MOST_GROWTH


def test_a_file_that_takes_too_much_time_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, less = (
        "MAX_CPU_SECONDS = 1.0\n",
        "MAX_CPU_SECONDS = 0.05\n",
    )  # some machines read it all in a second
    worker = tmp_path / "worker.py"
    worker.write_text(Path(gguf_worker.__file__).read_text().replace(given, less))
    monkeypatch.setattr(gguf_worker, "__file__", str(worker))
    with HeaderReader() as reader:
        found = broken(reader.read(endless(tmp_path / "x.gguf")))
    assert "takes more than 0.05 s" in found.reason


def test_a_file_cut_while_it_is_read_is_broken(reader: HeaderReader, tiny: Path, tmp_path: Path) -> None:
    path = endless(tmp_path / "x.gguf")
    found = broken(while_it_reads(reader, path, lambda _: os.truncate(path, 2 << 20)))
    assert "ends within its header" in found.reason
    assert isinstance(reader.read(tiny), Header)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_file_that_crashes_its_reader_is_broken_and_the_next_one_is_read(
    reader: HeaderReader, tiny: Path, tmp_path: Path, number: signal.Signals
) -> None:
    found = broken(while_it_reads(reader, endless(tmp_path / "x.gguf"), signals(number)))
    assert found == BrokenHeader(f"reading its header killed the reader ({number.name})")
    assert isinstance(reader.read(tiny), Header)


def test_a_kill_from_outside_is_no_verdict_for_good(reader: HeaderReader, tmp_path: Path) -> None:
    assert broken(while_it_reads(reader, endless(tmp_path / "x.gguf"), signals(signal.SIGKILL))).passing


def test_a_death_between_two_files_is_held_against_neither(reader: HeaderReader, tiny: Path) -> None:
    reader.read(tiny)
    first = reader.pid
    assert first is not None
    os.kill(first, signal.SIGSEGV)
    assert isinstance(reader.read(tiny), Header)
    assert reader.pid != first


def test_stuck_storage_is_given_up_file_by_file_and_then_for_the_scan(
    reader: HeaderReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header_reader, "PATIENCE_S", 0.2)
    path = endless(tmp_path / "x.gguf")
    for _ in range(header_reader.MOST_STALLS):
        found = broken(while_it_reads(reader, path, signals(signal.SIGSTOP)))
        assert found == BrokenHeader("reading its header was given up after 0.2 s", passing=True)
        assert reader.pid is None
    assert broken(reader.read(path)).passing
    assert reader.pid is None


STRANGE: dict[str, tuple[str, str]] = {
    "no JSON": ("os.write(1, b'hello\\n')", "nonsense"),
    "other JSON": ("os.write(1, b'[1, 2]\\n')", "nonsense"),
    "deep JSON": ("os.write(1, b'[' * 60000 + b'\\n')", "nonsense"),
    "endless": ("\nwhile True: os.write(1, b'x' * 65536)", "nonsense"),
    "an end": ("os._exit(3)", "ended the reader with status 3"),
}


@pytest.mark.parametrize(("code", "words"), STRANGE.values(), ids=STRANGE.keys())
def test_a_reader_that_was_taken_over_can_only_break_the_file(
    reader: HeaderReader, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(f"import os\nos.write(1, b'{{}}\\n')\nos.read(0, 9999)\n{code}\n")
    with monkeypatch.context() as patch:
        patch.setattr(gguf_worker, "__file__", str(script))
        assert words in broken(reader.read(tiny)).reason
    assert isinstance(reader.read(tiny), Header)


def test_where_no_process_can_be_started_files_are_unread_and_not_condemned(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with HeaderReader() as reader, caplog.at_level(logging.WARNING):
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        assert broken(reader.read(tiny)).passing
        assert "no process can be started" in caplog.text
        monkeypatch.setattr(sys, "executable", "/bin/true")
        assert broken(reader.read(tiny)).passing


def test_the_process_has_nothing_of_ours_and_can_gain_nothing(reader: HeaderReader, tiny: Path) -> None:
    ours = status(threading.get_native_id(), "NoNewPrivs")
    leak = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        reader.read(tiny)
    finally:
        os.close(leak)
    pid = reader.pid
    assert pid is not None
    assert status(pid, "NoNewPrivs") == "1"
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
    assert os.readlink(f"/proc/{pid}/fd/2") == "/dev/null"
    assert os.getsid(pid) == pid
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    most = {line[:26].strip(): line[26:].split()[1] for line in lines[1:]}
    for name in ("Max core file size", "Max file size", "Max processes"):
        assert most[name] == "0", name
    for name in ("Max data size", "Max address space"):
        assert int(most[name]) <= 512 << 20, name
    # It was a thread of its own that took the vow; we did not.
    assert status(threading.get_native_id(), "NoNewPrivs") == ours


def test_no_process_runs_before_the_first_file_and_none_is_left(tiny: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with HeaderReader() as reader:
        assert reader.pid is None
        reader.read(tiny)
        pid = reader.pid
    assert reader.pid is None
    assert not Path(f"/proc/{pid}").exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_process_ends_with_a_manager_that_is_killed(tiny: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from llamaman.library.header_reader import HeaderReader\n"
        "reader = HeaderReader(); reader.read(Path(sys.argv[1])); print(reader.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tiny)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as manager:
        assert manager.stdout is not None
        pid = int(manager.stdout.readline())
        assert open_files(pid)
        manager.kill()
    until(lambda: not open_files(pid))
