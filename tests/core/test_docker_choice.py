"""Whether ``auto`` means Docker: a socket that is there decides, not whether it lets us in."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llamaman.boot import build_kernel
from llamaman.core.config import Config
from llamaman.core.docker_choice import docker_could_be_here, docker_socket
from llamaman.errors import ConfigError

BASE = {"LLAMAMAN_NODE_NAME": "srv1"}


def config(**more: str) -> Config:
    return Config.from_environ(BASE | more)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "var/run").mkdir(parents=True)
    (tmp_path / "run/user/7").mkdir(parents=True)
    return tmp_path


def listen(path: Path) -> None:
    """A socket file; whether anybody answers there does not matter."""
    # Bound by a name relative to its folder: a path of more than 107 bytes does not fit.
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(".", os.O_RDONLY)
        try:
            os.chdir(path.parent)
            made.bind(path.name)
        finally:
            os.fchdir(here)
            os.close(here)


USER = {"XDG_RUNTIME_DIR": "/run/user/7"}


def test_nothing_there_means_no(root: Path) -> None:
    assert not docker_could_be_here(config(), {}, root)
    assert not docker_could_be_here(config(), USER, root)
    assert docker_socket(config(), USER, root) == root / "var/run/docker.sock"


def test_docker_host_means_yes_wherever_it_points(root: Path) -> None:
    for host, path in (("tcp://box:2375", None), ("unix:///no/such", Path("/no/such"))):
        assert docker_could_be_here(config(DOCKER_HOST=host), {}, root)
        assert docker_socket(config(DOCKER_HOST=host), {}, root) == path


def test_the_machines_socket_comes_before_the_users_own(root: Path) -> None:
    listen(root / "run/user/7/docker.sock")
    assert docker_could_be_here(config(), USER, root)
    assert not docker_could_be_here(config(), {}, root)
    assert docker_socket(config(), USER, root) == root / "run/user/7/docker.sock"
    listen(root / "var/run/docker.sock")
    assert docker_could_be_here(config(), {}, root)
    assert docker_socket(config(), USER, root) == root / "var/run/docker.sock"


def test_a_folder_in_its_place_is_no_daemon(root: Path) -> None:
    (root / "var/run/docker.sock").mkdir()
    assert not docker_could_be_here(config(), {}, root)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another account")
def test_a_socket_that_is_closed_to_us_counts(root: Path) -> None:
    listen(root / "var/run/docker.sock")
    (root / "var/run/docker.sock").chmod(0o600)
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from llamaman.core.config import Config\n"
        "from llamaman.core.docker_choice import docker_could_be_here\n"
        "root = Path(sys.argv[1])\n"
        "os.setuid(65534)\n"
        "print(docker_could_be_here(Config.from_environ({'LLAMAMAN_NODE_NAME': 'n'}), {}, root))"
    )
    for folder in (root, *root.parents[:2]):  # pytest's own are closed to other accounts
        folder.chmod(0o755)
    for closed in (False, True):
        if closed:
            (root / "var/run").chmod(0o700)
        found = subprocess.run(
            [sys.executable, "-c", program, str(root)], capture_output=True, text=True, timeout=60, check=True
        )
        assert found.stdout == "True\n"


@pytest.mark.parametrize("image", ["a..b:1", "f" * 64])
def test_what_is_no_name_of_an_image_ends_the_boot(tmp_path: Path, image: str) -> None:
    folders = {"DATA_DIR": str(tmp_path / "data"), "LOGS_DIR": str(tmp_path / "logs")}
    given = config(LLAMA_IMAGE=image, MODELS_DIR=str(tmp_path), **folders)
    with pytest.raises(ConfigError, match=r"LLAMA_IMAGE: .* is not the name of an image: .+"):
        build_kernel(given)
    assert not (tmp_path / "data").exists(), "it is the first thing that is looked at"
