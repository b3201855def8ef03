"""A file system and network sandbox for engine processes, by the kernel's Landlock.

For the process runtime: a model file is data from strangers, parsed by a large C++ program with our rights. In
the sandbox the engine reads the system's libraries, its own program and its model's files, writes to devices
and the log it was given, listens on its one port, connects to nothing and signals nobody outside. Source: the
kernel's documentation of Landlock; a kernel that knows an older version enforces the part it knows.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from llamaman.records import LaunchPlan

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_GET_VERSION = 1
_PATH_RULE, _PORT_RULE = 1, 2

_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_SOCKET, _TRUNCATE, _IOCTL = 1 << 5, 1 << 9, 1 << 14, 1 << 15
_ON_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_RIGHTS_OF_VERSION: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ALL_RIGHTS: Final = (1 << 16) - 1
_BIND, _CONNECT = 1, 2
_NO_ABSTRACT_SOCKETS, _NO_SIGNALS = 1, 2

_RUN = _READ | _LIST | _EXECUTE
_LOOK = _READ | _LIST
_USE = _READ | _LIST | _WRITE | _IOCTL

#: Readable on every machine. Of /etc what every program reads, of /dev what holds nobody's data.
_SYSTEM: Final[tuple[tuple[str, int], ...]] = (
    *((folder, _RUN) for folder in ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store")),
    ("/sys", _LOOK),
    # Not all of /proc: it shows other processes' environments, where secrets are.
    *((f"/proc/{name}", _LOOK) for name in ("cpuinfo", "meminfo", "stat", "version", "filesystems", "sys")),
    *(
        (f"/etc/{name}", _LOOK)
        for name in (
            "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload", "nsswitch.conf", "hosts", "host.conf",
            "resolv.conf", "localtime", "passwd", "group", "alternatives", "OpenCL",
        )
    ),
    *((f"/dev/{name}", _USE) for name in ("null", "zero", "full", "random", "urandom")),
)  # fmt: skip

#: Present where a GPU driver is in use. The drivers keep caches and sockets in many places, and this sandbox
#: has not been proven with them, so it stays off there and :func:`why_not` says so.
_GPU_FILES: Final = ("/dev/nvidiactl", "/dev/kfd", "/dev/dri", "/dev/dxg")

_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What an engine may do. ``paths`` maps a path to rights; ``port`` is None for a unix socket."""

    paths: tuple[tuple[str, int], ...]
    port: int | None


def gpu_present() -> bool:
    """Whether this machine shows a GPU driver's device."""
    return any(os.path.exists(file) for file in _GPU_FILES)


def why_not(program: Path) -> str | None:
    """Why an engine started as ``program`` runs without this sandbox, or None when it runs in it."""
    if version() == 0:
        return "the kernel has no Landlock"
    if gpu_present():
        return "the sandbox is not yet proven with GPU drivers"
    if is_script(program):
        return "the engine's program is a script, which may start anything"
    return None


def for_plan(plan: LaunchPlan, program: Path, *, private: Path, code: Iterable[Path] = ()) -> Sandbox:
    """The sandbox of one launch.

    :param program: the executable; its folder may hold its libraries.
    :param private: a folder with our own data; no folder that contains it is opened for its libraries' sake.
    :param code: further files and folders with code that it runs.
    """
    program, private = program.resolve(), private.resolve()
    libraries = [Path("/opt"), program.parent]
    libraries += [Path(folder) for folder in plan.env.get("LD_LIBRARY_PATH", "").split(":") if folder]
    run = [program, *code]
    for folder in libraries:
        run += [folder] if not private.is_relative_to(folder.resolve()) else folder.glob("*.so*")
    paths = [*_SYSTEM, *((str(path), _RUN) for path in run)]
    paths += [(str(path), _READ) for path in (*shards(plan.model_path), *_named_files(plan.flags))]
    if plan.host.startswith("/"):
        paths.append((os.path.dirname(plan.host), _MAKE_SOCKET | _REMOVE_FILE))
        return Sandbox(tuple(paths), None)
    return Sandbox(tuple(paths), plan.port)


def shards(model: Path) -> list[Path]:
    """The files of a model, given the first."""
    found = _SHARD.search(model.name)
    if found is None:
        return [model]
    stem, count = model.name[: found.start()], int(found.group(1))
    return [model.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]


def enter(sandbox: Sandbox) -> None:
    """Put this thread, and all that it starts, into the sandbox for good. It must have no_new_privs.

    :raises OSError: the kernel refused; nothing changed.
    """
    known = version()
    rights = _RIGHTS_OF_VERSION.get(known, _ALL_RIGHTS)
    network = _BIND | _CONNECT if known >= 4 else 0
    scopes = _NO_ABSTRACT_SOCKETS | _NO_SIGNALS if known >= 6 else 0
    # Fields an older kernel does not know are zero then, which it accepts.
    ruleset = _call(_CREATE_RULESET, struct.pack("=QQQ", rights, network, scopes), 24, 0)
    try:
        for path, wanted in sandbox.paths:
            _allow_path(ruleset, path, wanted & rights)
        if network and sandbox.port is not None:
            _call(_ADD_RULE, ruleset, _PORT_RULE, struct.pack("=QQ", _BIND, sandbox.port), 0)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


@cache
def version() -> int:
    """The version of Landlock that this kernel enforces; 0 when it has none."""
    if sys.platform != "linux":
        return 0
    try:
        return _call(_CREATE_RULESET, None, 0, _GET_VERSION)
    except OSError:
        return 0


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this machine, so nothing to allow
    try:
        if not os.path.isdir(path):
            rights &= _ON_FILES
        _call(_ADD_RULE, ruleset, _PATH_RULE, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: int | bytes | None) -> int:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def _named_files(flags: Iterable[str]) -> list[Path]:
    """The files that flags name: projector, adapters, draft model (with ``:SCALE`` and commas)."""
    values = (part for flag in flags for part in flag.split(","))
    candidates = (
        Path(value.rpartition(":")[0] if re.search(r":-?[\d.]+$", value) else value) for value in values
    )
    return [path for path in candidates if path.is_absolute() and path.is_file()]


def is_script(path: Path) -> bool:
    """Whether the kernel starts another program to run this file."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False
