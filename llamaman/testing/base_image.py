"""The image that the manager's image is built on in tests: the official one, or a Debian made here.

Read by ``manager_image``. Guarantees that nothing is fetched which the engine has already, and that the Debian is
made once per engine: it is kept there under a tag that names how it was made.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docker import DockerClient

#: What the Dockerfile names.
OFFICIAL = "python:3.12-slim-bookworm"
REPOSITORY = "llamaman-test/base"
_SUITE = "bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates"
_REGISTRY = "https://registry-1.docker.io/v2/"
#: Left out of the Debian: what only apt and people read.
_LEFT_OUT = re.compile(
    r"(var/cache/apt|var/lib/apt/lists|usr/share/(doc|man|locale|info))/.|dev/.|proc/.|sys/."
)


class NoBase(Exception):
    """No base image can be had here; the text says why and what would help."""


def base_image(client: DockerClient) -> str:
    """A reference of an image with Python and venv that this engine has.

    :raises NoBase: none can be pulled, and debootstrap cannot make one either.
    """
    debian = f"{REPOSITORY}:{hashlib.sha256(f'{_SUITE} {_PACKAGES}'.encode()).hexdigest()[:12]}"
    for known in (OFFICIAL, debian):
        if client.images.list(name=known):
            return known
    if _registry_answers() and _pulled(client):
        return OFFICIAL
    _make_debian(client, debian)
    return debian


def _registry_answers() -> bool:
    import requests

    try:
        requests.get(_REGISTRY, timeout=5)
    except requests.RequestException:
        return False
    return True


def _pulled(client: DockerClient) -> bool:
    from docker.errors import APIError

    try:
        client.images.pull(OFFICIAL)
    except APIError:  # a proxy without that image, or a limit of the registry: then it is made here
        return False
    return True


def _make_debian(client: DockerClient, tag: str) -> None:
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        raise NoBase(
            f"the engine has no {OFFICIAL} and cannot pull it, and debootstrap cannot make a base: it needs root "
            "and the package debootstrap"
        )
    with tempfile.TemporaryDirectory(prefix="llamaman-base-") as folder:
        root = Path(folder, "root")
        command = [
            "debootstrap",
            "--variant=minbase",
            f"--include={_PACKAGES}",
            _SUITE,
            str(root),
            *_mirror(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoBase(f"debootstrap failed: {(done.stdout + done.stderr)[-800:]}")
        archive = Path(folder, "root.tar")
        with tarfile.open(archive, "w") as packed:
            packed.add(root, arcname=".", filter=_kept)
        repository, _, name = tag.partition(":")
        client.api.import_image_from_file(str(archive), repository=repository, tag=name)


def _kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if _LEFT_OUT.match(entry.name.removeprefix("./")) else entry


def _mirror() -> Iterator[str]:
    """Where this machine gets its Debian from, for debootstrap; nothing where it names none of its own."""
    for path in sorted(Path("/etc/apt").glob("sources.list*")) + sorted(
        Path("/etc/apt").glob("*.d/*.sources")
    ):
        if not path.is_file():
            continue
        found = re.search(
            r"^(?:deb (?:\[.*?\] )?|URIs: *)(https?://\S+/debian/?)(?:\s|$)", path.read_text(), re.M
        )
        if found:
            yield found[1]
            return
