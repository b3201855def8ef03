"""What is said when an image is not here or cannot be had. Pure; read by :mod:`images`.

The documented answer to "Docker image not found" comes first, word for word; it names the official images alone, so
the command for the image that was asked for follows. A daemon's own words hold host names and addresses, so they are
told in full to those who may manage (the error's ``detail``) alone.
"""

from __future__ import annotations

import re
from typing import Final

from llamaman.errors import LaunchError
from llamaman.runtimes.docker.image_names import OFFICIAL, ImageName
from llamaman.runtimes.docker.sayings import PULL_IMAGE, without_places

#: What Docker's words contain -> the cause, and what helps. The first that fits counts.
_CAUSES: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(words, re.IGNORECASE), cause)
    for words, cause in (
        (
            r"no space left on device",
            "no space left on device: free some on the disk of the Docker host (docker system df)",
        ),
        (r"no matching manifest", "there is no image of that name for the processor of the Docker host"),
        (r"toomanyrequests|rate limit", "the registry allows no more pulls for now: try again later"),
        (
            r"manifest(?: for \S+)? (?:unknown|not found)|not found: manifest|name unknown",
            "the registry has no image of that name and tag (manifest unknown)",
        ),
        (
            r"denied|unauthorized|authentication required|no basic auth",
            "access denied: there is no such repository, or it needs a login on the Docker host",
        ),
        (
            r"no such host|name resolution|server misbehaving",
            "no such host: the Docker host cannot find the registry; check the name and its DNS",
        ),
        (
            r"connection refused|i/o timeout|handshake timeout|network is unreachable|no route to host"
            r"|request canceled|deadline exceeded",
            "the Docker host cannot reach the registry; check its network and proxy",
        ),
    )
)


def not_here(name: ImageName) -> LaunchError:
    """The daemon does not have it."""
    return LaunchError(_first(name))


def cannot_be_had(name: ImageName, words: str) -> LaunchError:
    """A pull failed, in the daemon's words."""
    cause = next((cause for pattern, cause in _CAUSES if pattern.search(words)), without_places(words))
    hint = ""
    if name.repository == OFFICIAL and (name.tag or "").startswith("server-sycl"):
        hint = f" For Intel Arc the tag is server-intel: docker pull {OFFICIAL}:server-intel."
    return LaunchError(f"{_first(name)}.{hint} Docker: {cause}", detail=f"Docker: {words}")


def no_server(name: ImageName, reason: str) -> str:
    """The image is here, and no llama-server starts in it."""
    text = f"image '{name}' does not start llama-server ({reason})"
    if name.repository == OFFICIAL:
        return f"{text}; use one of the tags that begin with 'server', such as {OFFICIAL}:server"
    return f"{text}; its entrypoint must be llama-server, or a program that hands its arguments on to it"


def _first(name: ImageName) -> str:
    return f"Docker image not found: '{name}'. {PULL_IMAGE} Here: docker pull {name}"
