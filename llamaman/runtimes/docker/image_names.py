"""Names of container images: read, written in one form, and held against the list of allowed ones. Pure.

Read by :mod:`images`. A name is read by the rules of Docker's own reference grammar (``distribution/reference``),
so that what was checked here is what the daemon looks for: no name here can turn into an image id there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

#: The official images of llama.cpp.
OFFICIAL: Final = "ghcr.io/ggml-org/llama.cpp"
HUB: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
LONGEST_NAME: Final = 255

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_TAG_GLOB = re.compile(r"[A-Za-z0-9_.*?-]{1,128}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_IMAGE_ID = re.compile(r"(?:sha256:)?[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ImageName:
    """One image's name, complete.

    :ivar registry: host and port; ``docker.io`` where none was written.
    :ivar path: the repository within it; ``library/...`` for Docker Hub's own.
    :ivar tag: None only where there is a digest.
    :ivar digest: ``sha256:...``; where it is there, it alone decides which image is meant.
    """

    registry: str
    path: str
    tag: str | None
    digest: str | None = None

    @property
    def repository(self) -> str:
        """Registry and path: what the daemon is asked for, with nothing left to its configuration."""
        return f"{self.registry}/{self.path}"

    @property
    def canonical(self) -> str:
        """The one form that is given to the daemon; a digest stands there alone, since it decides alone."""
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.selector}"

    @property
    def selector(self) -> str:
        """What follows the repository in a pull: the digest if there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def __str__(self) -> str:
        """The name as people write it: without Docker Hub's address."""
        name = self.path.removeprefix("library/") if self.registry == HUB else self.repository
        return name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def looks_like_image(name: str) -> bool:
    """Whether a name of an engine is meant as an image: other engines have plain words for names."""
    return ":" in name or "/" in name


def parse(text: str) -> ImageName:
    """Read a name; a missing tag is ``latest``.

    :raises ValueError: the text says what is wrong with it.
    """
    if _IMAGE_ID.fullmatch(text):
        raise ValueError("it is an image's id, not its name; write the name and tag")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError("after '@' there must be sha256: and 64 hexadecimal digits")
    rest, tag = _split_tag(rest)
    if tag is not None and not _TAG.fullmatch(tag):
        raise ValueError(
            "a tag is 1 to 128 letters, digits, '_', '.' and '-', and does not start with '.' or '-'"
        )
    registry, path = _split_registry(rest)
    if tag is None and not digest:
        tag = DEFAULT_TAG
    return ImageName(registry, path, tag, digest or None)


def same(one: str, other: str) -> bool:
    """Whether two names mean the same image, also where one of them is no name at all."""
    try:
        return parse(one) == parse(other)
    except ValueError:
        return one == other


def is_allowed(ref: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern allows this image. A pattern or a name that cannot be read allows nothing.

    A pattern is ``REPOSITORY:TAG`` with ``*`` and ``?`` in the tag alone, or ``REPOSITORY@sha256:...``. A name with a
    digest means that image whatever its tag says, so only its own digest or ``REPOSITORY:*`` allows it.
    """
    try:
        name = parse(ref)
    except ValueError:
        return False
    return any(_matches(name, pattern) for pattern in patterns)


def check_pattern(pattern: str) -> None:
    """Hold a pattern against the form that :func:`is_allowed` knows. Tests hold ``images.allowed`` to it.

    :raises ValueError: the text says what is wrong with it.
    """
    _read_pattern(pattern)


def default_image(llama_image: str | None, gpu_type: str | None) -> str:
    """The image of instances that name none: LLAMA_IMAGE, else the official one for the vendor of the GPU.

    Intel's tag is ``server-intel``; the ``server-sycl`` of older instructions was never published.

    :param gpu_type: ``cuda``, ``rocm``, ``intel``, or None for the processor alone.
    """
    if llama_image:
        return llama_image
    return f"{OFFICIAL}:server-{gpu_type}" if gpu_type in ("cuda", "rocm", "intel") else f"{OFFICIAL}:server"


def _split_tag(text: str) -> tuple[str, str | None]:
    """A colon after the last slash begins the tag; one before it is a port."""
    before, slash, last = text.rpartition("/")
    last, colon, tag = last.partition(":")
    return f"{before}{slash}{last}", tag if colon else None


def _split_registry(text: str) -> tuple[str, str]:
    if not text or len(text) > LONGEST_NAME:
        raise ValueError(f"a repository's name has 1 to {LONGEST_NAME} characters")
    first, slash, path = text.partition("/")
    if not (slash and ("." in first or ":" in first or first == "localhost")):
        first, path = HUB, text
    if first == "index.docker.io":
        first = HUB
    if not _HOST.fullmatch(first):
        raise ValueError(f"'{first}' is not the host of a registry")
    if not _PATH.fullmatch(path):
        raise ValueError(
            "a repository is lower-case letters and digits, joined by '.', '_', '-' and '/', "
            f"such as {OFFICIAL}:server"
        )
    if first == HUB and "/" not in path:
        path = f"library/{path}"
    return first, path


def _matches(name: ImageName, pattern: str) -> bool:
    try:
        (registry, path), kind, wanted = _read_pattern(pattern)
    except ValueError:
        return False
    if (registry, path) != (name.registry, name.path):
        return False
    if kind == "digest":
        return name.digest == wanted
    if name.digest is not None:
        return wanted == "*"
    return name.tag is not None and fnmatchcase(name.tag, wanted)


def _read_pattern(pattern: str) -> tuple[tuple[str, str], Literal["tag", "digest"], str]:
    rest, at, digest = pattern.partition("@")
    if at:
        if not _DIGEST.fullmatch(digest):
            raise ValueError("after '@' there must be sha256: and 64 hexadecimal digits")
        rest, tag = _split_tag(rest)
        if tag is not None:
            raise ValueError("give a tag or a digest, not both: the digest decides alone")
        return _split_registry(rest), "digest", digest
    rest, tag = _split_tag(rest)
    if tag is None:
        raise ValueError(f"a tag is missing; write {rest}:* for every tag")
    if not _TAG_GLOB.fullmatch(tag):
        raise ValueError("a tag is letters, digits, '_', '.' and '-', with '*' and '?' as wildcards")
    return _split_registry(rest), "tag", tag
