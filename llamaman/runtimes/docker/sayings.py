"""A daemon's words, and its silence, as sentences that say what to do, and as the errors that carry them. Pure.

Read by whatever shows a failed call. The texts of the documented troubles stand here word for word. The sentences are
for everybody who may ask a model: they hold no path and no address of the host; those are an error's detail, which is
for callers who may manage.
Source of the words: Docker 20.10, each produced by a real daemon in the tests where one can be made to say it; those
about GPUs from newer engines' sources.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from llamaman.errors import LaunchError, RuntimeLost
from llamaman.runtimes.docker.faults import (
    BROKEN,
    CLOSED,
    DENIED,
    MISSING,
    NOT_A_SOCKET,
    REFUSED,
    TIMED_OUT,
    UNKNOWN_HOST,
    DaemonError,
    DaemonGone,
)

#: Seconds after which a lost daemon may be asked again.
RETRY_S: Final = 5

# The documented answers, word for word.
PULL_IMAGE: Final = (
    "Pull the matching image: docker pull ghcr.io/ggml-org/llama.cpp:server-cuda (NVIDIA), server-rocm (AMD), "
    "server-sycl (Intel Arc), or server (CPU)."
)
MOUNT_SOCKET: Final = (
    "Ensure /var/run/docker.sock is mounted into the LlamaMan container "
    "(it is by default in docker-compose.yml)."
)
CUDA: Final = "Ensure the NVIDIA Container Toolkit is installed and docker run --gpus all works on the host."
ROCM: Final = "Ensure /dev/kfd and /dev/dri exist on the host and your user is in the video/render groups."
INTEL: Final = "Ensure /dev/dri is accessible and your user is in the video/render groups."
NO_PASSTHROUGH: Final = (
    "Set GPU Layers to 0 to launch CPU-only with no GPU device attached, or fix the GPU runtime "
    "(e.g. install the NVIDIA Container Toolkit)."
)
PORT_CONFLICT: Final = "The form auto-suggests an unused port; adjust if needed."

#: What an error's words contain -> the sentence. `{}` is what the group found, `{image}` the image. First match wins,
#: so a cause stands before what merely contains its words.
_ERRORS: Final[tuple[tuple[str, str], ...]] = (
    (
        r"no such image|pull access denied|manifest unknown|repository does not exist",
        f"Docker image not found: '{{image}}'. {PULL_IMAGE}",
    ),
    # GPUs
    (
        r"nvidia-container-cli|nvidia-container-runtime|libnvidia|nvml error",
        f"the container cannot have the NVIDIA GPU. {CUDA} {NO_PASSTHROUGH}",
    ),
    (
        r"could not select device driver|CDI device|unknown or invalid runtime name: nvidia"
        r"|unknown runtime specified nvidia",
        f"Docker cannot give containers a GPU on this host. {NO_PASSTHROUGH}",
    ),
    (r"custom device \"/dev/kfd", f"the container cannot have the AMD GPU. {ROCM} {NO_PASSTHROUGH}"),
    (r"custom device \"/dev/dri", f"the container cannot have the GPU. {INTEL} {NO_PASSTHROUGH}"),
    (
        r"custom device \"(/dev/[\w/.-]{1,80})\"",
        "the Docker host has no device {}; load its driver, or launch without it",
    ),
    (
        r"unable to find group ([\w.-]{1,60})",
        "the image knows no group '{}'; give the group's number on the Docker host (getent group) instead",
    ),
    # ports, names, networks
    (
        r"(?:listen tcp\d? |bind for )(\S{1,60}?):? (?:failed: port is already allocated|bind: address already in use)"
        r"|port is already allocated|address already in use",
        f"Port conflict: another program on the Docker host uses {{}}. {PORT_CONFLICT}",
    ),
    (
        r"container name \"/?([\w.-]{1,128})\" is already in use|name \"?([\w.-]{1,128})\"? is already in use",
        "there is a container named '{}' that LlamaMan did not make: remove it with 'docker rm', "
        "or set LLAMA_CONTAINER_PREFIX to something else",
    ),
    (
        r"network ([\w.-]{1,128}) not found|network ([\w.-]{1,128}) is ambiguous",
        "the Docker network '{}' was removed or exists twice meanwhile; launch again and LlamaMan puts it right",
    ),
    (
        r"non-overlapping ipv4 address pool|no available (?:network|ipv4|address)|address pools have been fully",
        "Docker has no address left for another container or network: remove networks that nobody uses "
        "('docker network prune'), or give the daemon more with default-address-pools",
    ),
    # the disk and files
    (
        r"no space left on device",
        "no space left on device: free some on the disk of the Docker host ('docker system df' shows what lies there)",
    ),
    (
        r"read-only file system",
        "the disk of the Docker host that holds its data is read-only; look at its system log",
    ),
    (
        r"bind source path does not exist",
        "the Docker host has no such model file: set HOST_MODELS_DIR to the folder that holds the models "
        "as the Docker host sees it",
    ),
    (
        r"mounts denied|path .{1,300} is not shared|not shared from (?:the host|OS X)",
        "Docker Desktop does not share the folder of the models: add it under Settings > Resources > File sharing",
    ),
    # limits
    (
        r"minimum memory limit (?:allowed )?is ([\w ]{1,20})",
        "the memory limit is too small: Docker allows no less than {}",
    ),
    (r"minimum memoryswap limit", "the memory limit is larger than the limit of memory and swap together"),
    (
        r"range of CPUs is from [\d.]+ to ([\d.]+)",
        "more processors asked for than the Docker host has, which are {}: use fewer CPU threads",
    ),
    (
        r"kernel does not support|cgroup.{0,40}(?:not mounted|not supported)"
        r"|controllers?.{0,40}(?:not available|not delegated)",
        "the Docker host cannot limit containers as asked (its kernel or cgroups lack that); "
        "'docker info' names what is missing at its end",
    ),
    (
        r"wrong rlimit value|error setting rlimit",
        "the Docker host refuses one of the container's resource limits (ulimits)",
    ),
    # the container itself
    (
        r"(?:docker-init|/sbin/init|tini).{0,80}(?:not found|no such file)",
        "Docker's small init program (docker-init) is missing on the Docker host: install the engine's package anew",
    ),
    (
        r"unable to find user ([\w.:-]{1,60})|no matching entries in passwd file",
        "the image '{image}' knows no account of the name that the container shall run under",
    ),
    (
        r"exec: \"?([^\":]{1,120})\"?.{0,200}(?:no such file or directory|not found)",
        "the image '{image}' has no program {}: it is not a llama.cpp server image. " + PULL_IMAGE,
    ),
    (
        r"exec format error|does not match the (?:specified|detected host) platform",
        "the image '{image}' was made for another kind of processor than that of the Docker host",
    ),
    (
        r"seccomp",
        "the Docker host refuses the container's system call filter (seccomp); a newer Docker engine understands it",
    ),
    (r"apparmor", "the Docker host refuses the container's AppArmor profile; is AppArmor running there?"),
    (
        r"permission denied|operation not permitted",
        "the Docker host forbids what the container needs (permission denied); a rootless engine, SELinux or AppArmor "
        "can be why: the host's system log tells",
    ),
    # somebody between us and the daemon
    (
        r"administrative rules|authorization denied|403 Forbidden",
        "what guards the Docker socket (a proxy or a plug-in) forbids this call; allow LlamaMan to create, start, "
        "stop and remove containers there",
    ),
    (
        r"client version .{1,20} is too (?:old|new)",
        "the Docker engine does not speak the version of the API that LlamaMan knows; update whichever is older",
    ),
)
#: In quotes a path goes on to their end, for it may hold spaces.
_PATH = re.compile(r"""(?<=")/[^"]+(?=")|(?<=')/[^']+(?=')|(?<![\w./:-])/[^\s"',;:)]+""")
_ADDRESS = re.compile(
    r"""[a-z]{2,8}://[^\s"',;)]*[^\s"',;):]|(?<![\w.])(?:\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-f:.]{2,45}\])(?![\w.]\w)(?::\d{1,5})?"""
)
_PATTERNS: Final = tuple((re.compile(words, re.IGNORECASE), saying) for words, saying in _ERRORS)


def explain(error: DaemonError, image: str) -> str:
    """What a refused call means and what to do, for somebody who wanted to launch ``image``."""
    for pattern, saying in _PATTERNS:
        if found := pattern.search(error.text):
            named = next((group for group in found.groups() if group), "what was asked for")
            return saying.replace("{image}", image).replace("{}", named)
    return f"Docker API error: {without_places(error.text)}"


def without_places(words: str) -> str:
    """A daemon's words with the last name of each path alone, and without the addresses of machines."""
    return _PATH.sub(lambda found: _last_name(found.group()), _ADDRESS.sub("(an address)", words))


def _last_name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def unreachable(reason: str) -> str:
    """That the daemon cannot be reached, and the cure for ``reason`` (of ``DaemonGone``)."""
    told = f"Docker API error: Docker cannot be reached: {reason}."
    return f"{told} {_CURES[reason]}" if reason in _CURES else told


def lost(address: str, gone: DaemonGone) -> RuntimeLost:
    """The error for whoever needs a daemon that cannot be reached."""
    return RuntimeLost(unreachable(gone.reason), detail=address, retry_after=RETRY_S)


@contextmanager
def told(address: str, image: str = "") -> Iterator[None]:
    """A daemon's troubles inside as errors that say what to do.

    :param image: what was to be launched or had, for the sentences that name it.
    :raises RuntimeLost: the daemon cannot be reached.
    :raises LaunchError: it refuses; its own words are the detail.
    """
    try:
        yield
    except DaemonGone as gone:
        raise lost(address, gone) from gone
    except DaemonError as error:
        raise LaunchError(explain(error, image), detail=error.text) from error


_CURES: Final = {
    MISSING: (
        f"{MOUNT_SOCKET} Where LlamaMan runs on the host itself, start Docker ('systemctl start docker'), "
        "or set DOCKER_HOST to the socket that it uses."
    ),
    NOT_A_SOCKET: (
        f"{MOUNT_SOCKET} Docker made the folder because the socket was not there when the container was created: "
        "remove the container and the folder, start Docker, create the container again."
    ),
    DENIED: (
        "Let the account that runs LlamaMan use the socket: 'usermod -aG docker ACCOUNT' and log in again; for a "
        "container, group_add with the number that 'stat -c %g /var/run/docker.sock' prints on the host."
    ),
    REFUSED: (
        "The Docker daemon is not running: start it ('systemctl start docker') and look at its log "
        "('journalctl -u docker')."
    ),
    TIMED_OUT: (
        "The Docker daemon hangs or is overloaded: does 'docker version' answer? Else restart it "
        "('systemctl restart docker')."
    ),
    BROKEN: (
        "The Docker daemon ended or was restarted; LlamaMan tries again all the time. If that lasts, look at its log "
        "('journalctl -u docker')."
    ),
    UNKNOWN_HOST: "Check the name in DOCKER_HOST.",
    CLOSED: "Nothing is wrong with Docker.",
}
