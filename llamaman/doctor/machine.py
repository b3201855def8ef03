"""The machine and the account: clock, memory, root, the folder of the admin socket."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from llamaman import version
from llamaman.core.config import Config
from llamaman.core.in_docker import detect_in_docker
from llamaman.doctor.finding import Finding, fail, ok, skip, warn
from llamaman.doctor.folders import trial
from llamaman.gateway.admin_socket import candidates, socket_path, why_unsafe

#: A file may be this much newer than the clock: coarse time stamps, a copy under way.
TOLERATED_S = 60.0
#: How far the clock of a file system, such as a server's, may be off.
SKEW_S = 5.0
LEAST_MEMORY = 1 << 30
_SYNC = "synchronise the clock: timedatectl set-ntp true"


def check_clock(config: Config, now: float | None = None) -> list[Finding]:
    """Sessions, keys and logs depend on the time.

    :param now: epoch seconds; the clock's when None.
    """
    now = time.time() if now is None else now
    newest = max(
        (_modified(path) for path in (*_files(config.data_dir), Path(version.__file__))), default=0.0
    )
    if newest > now + TOLERATED_S:
        what = f"the clock says {_day(now)}, but files of ours are from {_day(newest)}: it is behind"
        return [fail("clock", what, _SYNC)]
    try:
        skew = trial(config.data_dir).modified - time.time()
    except OSError:
        return [ok("clock", f"it is {_day(now)}; nothing of ours is newer")]
    if abs(skew) > SKEW_S:
        what = f"the file system of DATA_DIR has another time than this machine ({skew:+.0f} s)"
        return [warn("clock", what, f"{_SYNC}, here and on the file server")]
    return [ok("clock", f"it is {_day(now)}; nothing of ours is newer, and the file system agrees")]


def check_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> list[Finding]:
    """What is left for models."""
    figures = _meminfo(proc / "meminfo")
    total, available = figures.get("MemTotal"), figures.get("MemAvailable")
    if total is None or available is None:
        return [skip("memory", "this system does not say how much there is")]
    limit = _number(cgroup / "memory.max") or _number(cgroup / "memory" / "memory.limit_in_bytes")
    within = ""
    if limit is not None and limit < total:
        within = f"; this container may use {_gib(limit)}"
    what = f"{_gib(available)} of {_gib(total)} memory are available{within}"
    if min(available, limit or available) < LEAST_MEMORY:
        return [warn("memory", what, "end other programs, or run small models only")]
    return [ok("memory", what)]


def check_account(config: Config) -> list[Finding]:
    """Who we are."""
    if os.geteuid() != 0:
        return [ok("account", f"LlamaMan runs as uid {os.geteuid()}, not as root")]
    contained = config.in_docker if config.in_docker is not None else detect_in_docker()
    if contained:
        return [ok("account", "LlamaMan runs as root of a container")]
    cure = "run it under an account of its own (User= in a systemd unit) that owns DATA_DIR and LOGS_DIR"
    return [warn("account", "LlamaMan runs as root, so whatever breaks out of it owns this machine", cure)]


def check_admin_socket(config: Config, *, serving: bool) -> list[Finding]:
    """The folder of the local admin socket, and while we serve the socket itself."""
    problems = []
    for folder in candidates(config.runtime_dir):
        problem = _folder_problem(folder)
        if problem is None:
            return (
                [_socket(socket_path(folder, config.node_name))]
                if serving
                else [ok("admin-socket", f"the admin socket can lie in {folder}")]
            )
        problems.append(f"{folder}: {problem}")
    what = f"there is no folder for the admin socket: {'; '.join(problems)}"
    return [fail("admin-socket", what, "set XDG_RUNTIME_DIR to a folder that only this account can write")]


def _folder_problem(folder: Path) -> str | None:
    try:
        return why_unsafe(folder)
    except FileNotFoundError:
        parent = next(above for above in folder.parents if above.exists())
        return None if os.access(parent, os.W_OK | os.X_OK) else f"it cannot be made in {parent}"
    except OSError as error:
        return error.strerror or str(error)


def _socket(path: Path) -> Finding:
    restart = "restart the manager"
    try:
        status = path.lstat()
    except OSError:
        return fail("admin-socket", f"the admin socket {path} is gone, so commands cannot reach us", restart)
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        return fail(
            "admin-socket", f"{path} is not a socket of ours with mode 0600", f"remove it and {restart}"
        )
    return ok("admin-socket", f"{path} serves this account and root alone")


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".doctor-")]
    except OSError:
        return []


def _modified(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _meminfo(file: Path) -> dict[str, int]:
    found = {}
    try:
        for line in file.read_text().splitlines():
            name, _, rest = line.partition(":")
            if rest.strip().endswith(" kB"):
                found[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError):
        return {}
    return found


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # absent, or the word "max"
        return None


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
