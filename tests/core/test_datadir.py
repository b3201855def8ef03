"""DATA_DIR is private, serves one manager, and belongs to one node."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llamaman.core import datadir
from llamaman.core.datadir import DataDir, open_data_dir, rename_node, write_private
from llamaman.errors import ConfigError, StoreCorrupt

HOLDER = """
import sys
from pathlib import Path
from llamaman.core.datadir import open_data_dir
open_data_dir(Path(sys.argv[1]), "n1")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


def opened(path: Path, node: str = "n1") -> DataDir:
    return open_data_dir(path, node)


def test_a_new_directory_is_private_and_marked(path: Path) -> None:
    data_dir = opened(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert len(bytes.fromhex(data_dir.install_id)) == 16
    assert {stat.S_IMODE((path / name).stat().st_mode) for name in os.listdir(path)} == {0o600}
    data_dir.close()
    data_dir.close()


def test_the_install_id_is_random_and_stays(path: Path, tmp_path: Path) -> None:
    first = opened(path)
    first.close()
    again = opened(path)
    other = opened(tmp_path / "other")
    assert again.install_id == first.install_id != other.install_id
    again.close()
    other.close()


def test_everything_written_later_is_private_too(path: Path) -> None:
    opened(path).close()
    (path / "x").write_text("")
    assert stat.S_IMODE((path / "x").stat().st_mode) == 0o600


def test_a_directory_that_others_can_read_is_made_private(path: Path) -> None:
    path.mkdir(mode=0o755)
    opened(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_directory_that_others_can_write_is_refused_with_the_cure(path: Path, mode: int) -> None:
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 700") as refusal:
        opened(path)
    assert refusal.value.exit_status == 78
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert os.listdir(path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_foreign_directory_is_refused_with_the_cure(path: Path) -> None:
    path.mkdir(mode=0o700)
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigError, match=r"uid 12345.*chown -R 0"):
        opened(path)


def test_a_file_system_without_modes_is_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stands in for FAT and Windows mounts, which cannot be made without privileges."""
    path.mkdir()
    path.chmod(0o777)
    monkeypatch.setattr(datadir, "_keeps_modes", lambda _path: False)
    opened(path).close()
    assert "keeps no owners and modes" in caplog.text


def test_a_local_file_system_keeps_modes(tmp_path: Path) -> None:
    assert datadir._keeps_modes(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_directory_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be created"):
        opened(tmp_path / "file" / "data")


def test_a_second_manager_is_told_who_holds_it(path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError) as refusal:
            opened(path)
        assert f"is in use by pid {holder.pid} on host {socket.gethostname()}" in refusal.value.message
        assert json.loads((path / ".lock").read_text())["pid"] == holder.pid
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        opened(path).close()
    finally:
        holder.kill()
        holder.communicate()


def test_a_child_process_does_not_keep_the_lock(path: Path) -> None:
    data_dir = opened(path)
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        data_dir.close()
        opened(path).close()
    finally:
        child.communicate()


def test_a_link_in_place_of_the_lock_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.mkdir(mode=0o700)
    (path / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ConfigError):
        opened(path)
    assert not (tmp_path / "victim").exists()


def test_locks_that_do_nothing_are_found_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for a network file system whose flock always says yes."""
    monkeypatch.setattr(fcntl, "flock", lambda _descriptor, _how: None)
    with pytest.raises(ConfigError, match="locks do nothing"):
        opened(path)


def test_another_node_name_stops_the_start_with_both_names_and_the_command(path: Path) -> None:
    opened(path, "n1").close()
    with pytest.raises(ConfigError, match=r"'n1'.*'n 2'.*llamaman node rename n1 'n 2'"):
        opened(path, "n 2")
    opened(path, "n1").close()


def test_a_renamed_node_keeps_its_install_id(path: Path) -> None:
    first = opened(path, "n1")
    with pytest.raises(ConfigError, match="in use"):
        rename_node(path, "n1", "n2")
    first.close()
    with pytest.raises(ConfigError, match="belongs to node 'n1'"):
        rename_node(path, "wrong", "n2")
    rename_node(path, "n1", "n2")
    again = opened(path, "n2")
    assert again.install_id == first.install_id
    again.close()


@pytest.mark.parametrize("text", ["", "{}", '{"install_id": "xy", "node": "n1"}', "[]", '{"install_id": 1}'])
def test_a_broken_mark_stops_the_start_and_frees_the_lock(path: Path, text: str) -> None:
    opened(path).close()
    (path / "install.json").write_text(text)
    with pytest.raises(StoreCorrupt, match=r"install\.json"):
        opened(path)
    with pytest.raises(StoreCorrupt, match=r"install\.json"):
        opened(path)


def test_private_files_are_replaced_whole_and_never_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "secret"
    (tmp_path / "secret.tmp").symlink_to(tmp_path / "victim")
    write_private(target, b"one")
    write_private(target, b"two")
    assert target.read_bytes() == b"two"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["secret"]
