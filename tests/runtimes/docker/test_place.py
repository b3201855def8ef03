"""Where the manager is: told from marks of engines, and from what a real daemon knows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from llamaman.errors import LaunchError
from llamaman.runtimes.docker.daemon import Daemon, DaemonGone
from llamaman.runtimes.docker.place import Bind, Place, find_place, host_path

real = pytest.mark.real("docker")

NO_DAEMON = Daemon("unix:///no/such.sock")
MOUNTINFO = "571 559 254:1 {root} {at} rw,relatime - ext4 /dev/vda rw\n"


class Root:
    """A file system with the marks of a container."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        for below in ("proc/self", "proc/1", "etc", "run"):
            (folder / below).mkdir(parents=True)

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def dockerenv(self) -> None:
        self.write(".dockerenv", "")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


@pytest.fixture
def running(containers: Any) -> str:
    return containers.run("me", containers.shell("sleep 60"))


def test_without_marks_we_are_on_the_host_and_no_daemon_is_asked(root: Root) -> None:
    nowhere = Place(False, None, (), None)
    assert find_place(NO_DAEMON, None, root=root.path) == nowhere
    assert find_place(NO_DAEMON, False, root=root.path) == nowhere


def test_a_daemon_that_is_away_is_no_answer(root: Root) -> None:
    root.dockerenv()
    root.write("etc/hostname", "0123456789ab\n")
    for given in (None, True):
        with pytest.raises(DaemonGone):
            find_place(NO_DAEMON, given, root=root.path)


@real
def test_a_real_container_is_found_by_what_it_sees_of_itself(
    daemon: Daemon, containers: Any, root: Root, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    script = "cat /proc/self/mountinfo >/o/m; cat /proc/self/cgroup >/o/c; cat /etc/hostname >/o/h; sleep 60"
    container = containers.run(
        "me",
        containers.shell(
            f"({script}) || cat /o/*",
            Binds=[f"{shared}:/o"],
            Mounts=[{"Type": "volume", "Target": "/volume"}],
            Tmpfs={"/t": ""},
        )
        | {"Tty": False},
    )
    until_written(shared / "h")
    root.write("proc/self/mountinfo", (shared / "m").read_text())
    place = find_place(daemon, None, root=root.path)
    assert (place.in_container, place.own_id, place.note) == (True, container, None)
    assert Bind(str(shared), "/o") in place.binds
    (volume,) = [bind.source for bind in place.binds if bind.destination == "/volume"]
    assert volume.endswith("/_data")
    assert "/t" not in [bind.destination for bind in place.binds]
    assert host_path(Path("/o/a/b.gguf"), place, []) == f"{shared}/a/b.gguf"
    # Each of the other marks is enough as well.
    (root.path / "proc/self/mountinfo").unlink()
    root.dockerenv()
    for name, text in (("proc/self/cgroup", shared / "c"), ("etc/hostname", shared / "h")):
        root.write(name, text.read_text())
        assert find_place(daemon, None, root=root.path).own_id == container
        (root.path / name).unlink()


def until_written(path: Path) -> None:
    import time

    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@real
@pytest.mark.parametrize(
    ("mark", "text"),
    [
        (
            "proc/self/mountinfo",
            MOUNTINFO.format(root="/docker/containers/{id}/hostname", at="/etc/hostname"),
        ),
        ("proc/self/mountinfo", MOUNTINFO.format(root="/containers/{id}/resolv.conf", at="/etc/resolv.conf")),
        (
            "proc/self/mountinfo",
            MOUNTINFO.format(
                root="/containers/storage/overlay-containers/{id}/userdata/hosts", at="/etc/hosts"
            ),
        ),
        ("proc/self/cgroup", "0::/system.slice/docker-{id}.scope\n"),
        ("proc/self/cgroup", "0::/machine.slice/libpod-{id}.scope/container\n"),
        ("proc/self/cgroup", "12:memory:/docker/{id}\n"),
        ("run/.containerenv", 'engine="podman-4.3.1"\nname="me"\nid="{id}"\n'),
        ("etc/hostname", "{short}\n"),
    ],
)
def test_marks_of_docker_and_podman(daemon: Daemon, root: Root, running: str, mark: str, text: str) -> None:
    root.dockerenv()
    root.write(mark, text.format(id=running, short=running[:12]))
    for given, inside in ((None, True), (True, True), (False, False)):
        place = find_place(daemon, given, root=root.path)
        assert (place.in_container, place.own_id, place.note) == (inside, running, None)


@real
def test_a_docker_host_is_not_taken_for_one_of_its_containers(
    daemon: Daemon, root: Root, running: str
) -> None:
    """Its mounts show the folders of containers, and it may have `/.dockerenv` itself."""
    root.dockerenv()
    at = f"/var/lib/docker/containers/{running}/mounts/shm"
    root.write("proc/self/mountinfo", MOUNTINFO.format(root="/", at=at) + MOUNTINFO.format(root=at, at=at))
    root.write("etc/hostname", "server1\n")
    place = find_place(daemon, None, root=root.path)
    assert (place.in_container, place.own_id) == (False, None)
    assert "LLAMAMAN_IN_DOCKER" in (place.note or "")
    assert host_path(Path("/models/m.gguf"), place, []) == "/models/m.gguf"


@real
def test_only_a_running_container_that_has_the_id_is_ours(
    daemon: Daemon, containers: Any, root: Root, scratch_names: Any
) -> None:
    root.dockerenv()
    stopped = containers.create("stopped")
    root.write("etc/hostname", stopped[:12])
    assert find_place(daemon, None, root=root.path).own_id is None
    # A container may be named like an id.
    name = scratch_names.token.ljust(12, "0")
    misled = daemon.create(name, containers.shell("sleep 60"))
    daemon.start(misled)
    root.write("etc/hostname", name)
    assert find_place(daemon, None, root=root.path).own_id is None


@real
def test_in_a_container_that_the_daemon_does_not_know(daemon: Daemon, root: Root) -> None:
    root.write("proc/1/cgroup", f"0::/docker/{'0' * 64}\n")
    root.write("proc/self/cgroup", f"0::/docker/{'0' * 64}\n")
    assert find_place(daemon, None, root=root.path).in_container is False
    told = find_place(daemon, True, root=root.path)
    assert (told.in_container, told.own_id) == (True, None)
    assert "HOST_MODELS_DIR" in (told.note or "")
    assert find_place(daemon, False, root=root.path) == Place(False, None, (), None)


# --- paths ---------------------------------------------------------------------------------------------

INSIDE = Place(
    True,
    "0" * 64,
    (
        Bind("/srv/models", "/models"),
        Bind("/mnt/big/", "/models/big"),
        Bind("/var/lib/docker/volumes/v/_data", "/volume"),
        Bind("/srv/one.gguf", "/one.gguf"),
    ),
    None,
)
ON_HOST = Place(False, None, (), None)
SAME = [(Path("/models"), Path("/models"))]


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("/models/a/m.gguf", "/srv/models/a/m.gguf"),
        ("/models/big/m.gguf", "/mnt/big/m.gguf"),
        ("/models/bigger/m.gguf", "/srv/models/bigger/m.gguf"),
        ("/volume/m.gguf", "/var/lib/docker/volumes/v/_data/m.gguf"),
        ("/one.gguf", "/srv/one.gguf"),
    ],
)
def test_the_longest_mount_that_leads_to_a_file_names_it(path: str, there: str) -> None:
    assert host_path(Path(path), INSIDE, []) == there
    assert host_path(Path(path), INSIDE, SAME) == there, "an unset HOST_MODELS_DIR says nothing"


def test_what_host_models_dir_says_wins_over_mounts_folder_by_folder() -> None:
    given = [(Path("/models"), Path("/elsewhere")), (Path("/models/big"), Path("/huge"))]
    for place in (INSIDE, ON_HOST, Place(True, None, (), "unknown")):
        assert host_path(Path("/models/m.gguf"), place, given) == "/elsewhere/m.gguf"
        assert host_path(Path("/models/big/m.gguf"), place, given) == "/huge/m.gguf"
    assert host_path(Path("/volume/m.gguf"), INSIDE, given).startswith("/var/lib/docker")


def test_a_models_dir_that_is_a_link_is_meant_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    given = [(tmp_path / "link", Path("/host"))]
    assert host_path(tmp_path / "real/m.gguf", ON_HOST, given) == "/host/m.gguf"


def test_on_the_host_paths_are_the_same() -> None:
    assert host_path(Path("/any/m.gguf"), ON_HOST, SAME) == "/any/m.gguf"


def test_a_file_that_no_mount_leads_to_names_the_cure_and_no_path() -> None:
    for place, path in ((INSIDE, "/home/m.gguf"), (dataclasses.replace(INSIDE, own_id=None), "/x/m.gguf")):
        with pytest.raises(LaunchError, match="HOST_MODELS_DIR") as told:
            host_path(Path(path), place, SAME)
        assert path not in told.value.message
        assert path in (told.value.detail or "")


def test_told_to_be_in_a_container_and_that_both_names_are_one() -> None:
    assert host_path(Path("/models/m.gguf"), Place(True, None, (), "unknown"), SAME) == "/models/m.gguf"
