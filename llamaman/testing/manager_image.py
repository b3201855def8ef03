"""The manager's image, built from this checkout through the real Dockerfile.

For tests that run the manager in a container. Guarantees that the build sees exactly what ``.dockerignore`` leaves of
the checkout, plus the wheels it needs, and has no network; that the same content is built once per engine (the tag is
its hash) and leaves no other image; and that images of this kind older than a day are removed where no container uses
them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from llamaman.testing.base_image import base_image

if TYPE_CHECKING:
    from docker import DockerClient

ROOT = Path(__file__).parents[2]
REPOSITORY = "llamaman-test/manager"
_KEPT_FOR = timedelta(days=1)
_GLIBC_TAGS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_5", "manylinux1")


class BuildFailed(Exception):
    """The image could not be built; the text ends with the builder's last words."""


def connect(host: str) -> DockerClient:
    """A client of the engine at ``host``, as in DOCKER_HOST; the caller closes it."""
    import docker

    return docker.DockerClient(base_url=host, timeout=120)


def manager_image(client: DockerClient) -> str:
    """The reference of an image of this checkout that the engine has, built now where it has none.

    :raises BuildFailed: the Dockerfile does not build.
    :raises base_image.NoBase: there is nothing to build it on.
    """
    base = base_image(client)
    files = context_files()
    digest = hashlib.sha256(str(client.images.get(base).id).encode())
    for name, data in files.items():
        digest.update(f"\0{name}\0{len(data)}\0".encode() + data)
    tag = f"{REPOSITORY}:{digest.hexdigest()[:16]}"
    with _nobody_else():
        if not client.images.list(name=tag):
            with tempfile.TemporaryDirectory(prefix="llamaman-wheels-") as folder:
                _fetch_wheels(Path(folder), _python_of(client, base))
                wheels = {f"wheels/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}
            _build(client, {**files, **wheels}, tag, base)
            _remove_old(client, keep=tag)
    return tag


@contextlib.contextmanager
def _nobody_else() -> Iterator[None]:
    """Let one process build at a time: another one's tidying up removes the layers that a build goes on from."""
    with open(Path(tempfile.gettempdir()) / f"llamaman-manager-image-{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def context_files() -> dict[str, bytes]:
    """What of this checkout goes into a build, by path, as Docker's own client
    chooses it."""
    from docker.utils import exclude_paths

    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    names = exclude_paths(str(ROOT), [line for line in patterns if line and not line.startswith("#")])
    return {name: (ROOT / name).read_bytes() for name in sorted(names) if (ROOT / name).is_file()}


def requirements() -> list[str]:
    """What a build of the extra ``standard`` gets from an index: all but what lies in this checkout."""
    needed: set[str] = set()
    for folder in [ROOT, *(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]:
        declared = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        needed.update(declared["build-system"]["requires"], declared["project"].get("dependencies", ()))
    return sorted(each for each in needed if not each.startswith("llamaman"))


def _python_of(client: DockerClient, base: str) -> str:
    """The minor version of an image's Python, such as 3.12."""
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    said = client.containers.run(base, ["python3", "-c", ask], remove=True, network_mode="none")
    return bytes(said).decode().strip()


def _fetch_wheels(folder: Path, python: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
    ]
    command += ["--implementation", "cp", "--python-version", python]
    for tag in _GLIBC_TAGS:
        command += ["--platform", f"{tag}_{platform.machine()}"]
    done = subprocess.run([*command, *requirements()], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildFailed(f"pip cannot download the requirements: {done.stderr[-800:]}")


def _build(client: DockerClient, files: dict[str, bytes], tag: str, base: str) -> None:
    arguments = {"BASE": base, "PIP_NO_INDEX": "1"}
    said: list[str] = []
    with _archive(files) as context:
        for step in client.api.build(
            fileobj=context,
            custom_context=True,
            tag=tag,
            buildargs=arguments,
            network_mode="none",
            rm=True,
            forcerm=True,
            decode=True,
        ):
            said.append(str(step.get("stream") or step.get("error") or ""))
            if "error" in step:
                raise BuildFailed("the image cannot be built:\n" + "".join(said)[-3000:])
    _remove_stages(client, re.findall(r"^ ---> ([0-9a-f]{12})$", "".join(said), re.MULTILINE))


def _remove_stages(client: DockerClient, steps: list[str]) -> None:
    """Remove what the stages before the last one left; images below the one that was built cannot be removed."""
    from docker.errors import APIError

    for step in reversed(steps):
        with contextlib.suppress(APIError):
            if not client.images.get(step).tags:
                client.images.remove(step)


@contextlib.contextmanager
def _archive(files: dict[str, bytes]) -> Iterator[io.BytesIO]:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as packed:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o644
            packed.addfile(entry, io.BytesIO(data))
    held.seek(0)
    yield held


def _remove_old(client: DockerClient, *, keep: str) -> None:
    from docker.errors import APIError

    for image in client.images.list(name=REPOSITORY):
        made = datetime.fromisoformat(str(image.attrs["Created"])[:19]).replace(tzinfo=UTC)
        if keep in image.tags or datetime.now(UTC) - made < _KEPT_FOR:
            continue
        for tag in image.tags:
            with contextlib.suppress(APIError):  # in use, or removed by another run just now
                client.images.remove(tag)
