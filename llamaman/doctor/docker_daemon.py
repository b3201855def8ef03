"""Whether a Docker daemon is there for us: its socket, our rights, an answer, its age. Read by `docker.py`.

What can be seen of a socket is looked at before it is used: that says more than a failed connection does.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from pathlib import Path

from llamaman.core.config import Config
from llamaman.doctor.finding import Finding, fail, ok, warn
from llamaman.runtimes.docker import faults
from llamaman.runtimes.docker.daemon import Json
from llamaman.runtimes.docker.engine_facts import is_podman
from llamaman.runtimes.docker.sayings import MOUNT_SOCKET

CHECK = "docker"
#: What LlamaMan uses of the API came with this version, in Docker 20.10.
OLDEST_API = (1, 41)
_OTHERWISE = "or set LLAMAMAN_RUNTIME=process to run engines as processes"
_START = "systemctl start docker; 'journalctl -u docker' says why it ended"


def check_socket(socket: Path, config: Config, *, contained: bool) -> Finding | None:
    """What keeps us from using the daemon's socket; None: nothing that can be seen.

    :param contained: LlamaMan itself runs in a container.
    """
    try:
        status = socket.stat()
    except FileNotFoundError:
        return fail(CHECK, f"there is no Docker socket {socket}", _missing_cure(config, contained=contained))
    except PermissionError:
        what = f"this account may not look into the folder of the Docker socket {socket}"
        return fail(CHECK, what, "let it enter that folder (chmod o+x), or set DOCKER_HOST to another socket")
    except OSError as error:
        return fail(
            CHECK, f"the Docker socket {socket}: {error.strerror}", "set DOCKER_HOST to the right path"
        )
    if stat.S_ISDIR(status.st_mode):
        what = f"{socket} is a folder, which Docker made because the socket was not there when it was mounted"
        return fail(
            CHECK, what, f"remove the container and the folder, start Docker, create it again. {MOUNT_SOCKET}"
        )
    if not stat.S_ISSOCK(status.st_mode):
        return fail(CHECK, f"{socket} is not a socket", "set DOCKER_HOST to the socket of Docker")
    if os.access(socket, os.R_OK | os.W_OK, effective_ids=True):
        return None
    return _no_rights(socket, status, contained=contained)


def check_answer(address: str, reason: str, config: Config, *, local: bool) -> Finding:
    """Why a daemon does not answer.

    :param reason: of ``DaemonGone``.
    """
    what = f"Docker cannot be reached at {address}: {reason}"
    if reason == faults.REFUSED:
        start = _START if local else "start Docker there, and let it listen on that address"
        return fail(CHECK, f"{what}: no daemon listens there", start)
    if reason == faults.TIMED_OUT:
        cure = "systemctl restart docker, if 'docker version' does not answer either"
        return fail(CHECK, f"{what}: the daemon hangs, or is overloaded", cure)
    if reason == faults.UNKNOWN_HOST:
        return fail(CHECK, what, "correct the name in DOCKER_HOST")
    if reason == faults.MISSING:
        return fail(CHECK, what, _missing_cure(config, contained=False))
    if reason == faults.DENIED:
        return fail(
            CHECK, what, "let this account use it: usermod -aG docker ACCOUNT, then start LlamaMan anew"
        )
    if reason == faults.BROKEN and not local and not config.docker_tls_verify:
        cure = "set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH, if the daemon wants TLS; or correct DOCKER_HOST"
        return fail(CHECK, what, cure)
    return fail(CHECK, what, f"set DOCKER_HOST to the address of a Docker daemon, {_OTHERWISE}")


def check_version(address: str, version: Json) -> tuple[Finding, bool]:
    """What answers there, and whether it is new enough for anything further."""
    name = describe(version)
    api = str(version.get("ApiVersion") or "")
    found = re.fullmatch(r"(\d+)\.(\d+)", api)
    if found is None:
        what = f"what answers at {address} names no version of Docker's API ({api[:40]!r})"
        return fail(CHECK, what, "set DOCKER_HOST to the address of a Docker daemon"), False
    oldest = ".".join(map(str, OLDEST_API))
    if tuple(map(int, found.groups())) < OLDEST_API:
        what = (
            f"{name} speaks version {api} of Docker's API and LlamaMan needs {oldest}: older ones can neither sample "
            "what a container uses without waiting nor give it a cgroup namespace of its own"
        )
        return fail(CHECK, what, "update Docker to 20.10 or newer (Podman: to 3.0)"), False
    return ok(CHECK, f"{name} answers at {address} (API {api})"), True


def describe(version: Json) -> str:
    """What a daemon calls itself, with its version."""
    name = "Podman" if is_podman(version) else "Docker"
    return f"{name} {str(version.get('Version') or '(unknown version)')[:60]}"


def check_encryption(config: Config) -> list[Finding]:
    """Whether somebody on the way to a daemon of another machine can take it over."""
    host = config.docker_host or ""
    if not host.startswith(("tcp://", "http://")) or config.docker_tls_verify:
        return []
    what = f"DOCKER_HOST is {host} without TLS: whoever reaches that port is root there"
    return [
        warn(CHECK, what, "give the daemon certificates and set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH")
    ]


def _missing_cure(config: Config, *, contained: bool) -> str:
    if contained:
        return MOUNT_SOCKET
    if config.docker_host is not None:
        return f"start Docker there (systemctl start docker), correct DOCKER_HOST, {_OTHERWISE}"
    return f"install and start Docker (systemctl start docker), set DOCKER_HOST to the socket it uses, {_OTHERWISE}"


def _no_rights(socket: Path, status: os.stat_result, *, contained: bool) -> Finding:
    account, group = _account(), _group(status.st_gid)
    what = f"this account ({account}) may not use the Docker socket {socket}"
    if contained:
        cure = f"start LlamaMan's container with --group-add {status.st_gid} (group_add: in Compose)"
        return fail(CHECK, f"{what}, which belongs to group {status.st_gid} of the host", cure)
    if not status.st_mode & stat.S_IWGRP or status.st_gid == 0:
        cure = (
            f"run LlamaMan as {_user(status.st_uid)}, or give the socket to a group (dockerd --group docker)"
        )
        return fail(CHECK, f"{what}, which only {_user(status.st_uid)} may", cure)
    if _is_member(account, group):
        cure = "restart LlamaMan (a systemd service: systemctl restart; a shell: log in again)"
        return fail(CHECK, f"{what}: it was added to the group {group} after this was started", cure)
    return fail(
        CHECK,
        f"{what}: it is not in the group {group}",
        f"usermod -aG {group} {account}, then start LlamaMan anew",
    )


def _is_member(account: str, group: str) -> bool:
    try:
        return account in grp.getgrnam(group).gr_mem
    except KeyError:
        return False


def _account() -> str:
    return _user(os.geteuid())


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
