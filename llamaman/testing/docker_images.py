"""An image with llama-server for tests, made as the official one is. Read by fixtures and benchmarks.

Guarantees that the image is built once per engine and binary, and that nothing of the build is left behind.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docker import DockerClient

OFFICIAL = "ghcr.io/ggml-org/llama.cpp:server"
REPOSITORY = "llamaman-test/server"
_DOCKERFILE = b"""\
FROM scratch
COPY llama-server /app/llama-server
WORKDIR /app
ENV LLAMA_ARG_HOST=0.0.0.0
ENTRYPOINT ["/app/llama-server"]
"""


class NoImage(Exception):
    """No image with a llama-server can be had; the text says what would help."""


def server_image(host: str, binary: Path | None = None) -> str:
    """The name of an image with llama-server that the engine at ``host`` has.

    :param host: as in DOCKER_HOST.
    :param binary: a static llama-server; None: the one that LLAMA_SERVER_BIN names, else the official image.
    :raises NoImage: there is neither.
    """
    import docker

    named = os.environ.get("LLAMA_SERVER_BIN")
    binary = binary or (Path(named) if named else None)
    client = docker.DockerClient(base_url=host)
    try:
        return _built(client, binary) if binary else _official(client)
    finally:
        client.close()


def build_image(host: str, tag: str, dockerfile: str, files: dict[str, Path] | None = None) -> str:
    """Build a small image; the caller removes it.

    :param files: name beside the Dockerfile -> file on this machine; all become executable.
    :returns: its id.
    """
    import docker

    client = docker.DockerClient(base_url=host)
    try:
        return _build(client, tag, dockerfile.encode(), files or {})
    finally:
        client.close()


def _built(client: DockerClient, binary: Path) -> str:
    import docker.errors

    digest = hashlib.sha256(_DOCKERFILE)
    with binary.open("rb") as source:
        for block in iter(lambda: source.read(1 << 20), b""):
            digest.update(block)
    tag = f"{REPOSITORY}:{digest.hexdigest()[:12]}"
    try:
        client.images.get(tag)
    except docker.errors.ImageNotFound:
        _build(client, tag, _DOCKERFILE, {"llama-server": binary})
    return tag


def _build(client: DockerClient, tag: str, dockerfile: bytes, files: dict[str, Path]) -> str:
    with tempfile.TemporaryFile() as context:
        with tarfile.open(fileobj=context, mode="w") as archive:
            entry = tarfile.TarInfo("Dockerfile")
            entry.size = len(dockerfile)
            archive.addfile(entry, io.BytesIO(dockerfile))
            for name, path in files.items():
                entry = archive.gettarinfo(str(path.resolve()), arcname=name)
                entry.mode = 0o755
                with path.open("rb") as source:
                    archive.addfile(entry, source)
        context.seek(0)
        image, _ = client.images.build(
            fileobj=context, custom_context=True, tag=tag, rm=True, forcerm=True, pull=False
        )
    return str(image.id)


def _official(client: DockerClient) -> str:
    import docker.errors
    import requests

    try:
        client.images.get(OFFICIAL)
    except docker.errors.ImageNotFound:
        repository, _, tag = OFFICIAL.partition(":")
        try:
            client.images.pull(repository, tag=tag)
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise NoImage(
                "set LLAMA_SERVER_BIN to a static llama-server, or pull "
                f"{OFFICIAL} to run this test; pulling it failed: {error}"
            ) from error
    return OFFICIAL
