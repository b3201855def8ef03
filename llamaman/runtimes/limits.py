"""Memory and CPU ceilings for engine processes through control groups, where this machine lets us.

For the process runtime. Both generations of the kernel's interface are used; a group is made per start,
beside or below our own, and removed when the engine has ended. Nothing here raises: what cannot be enforced
is reported by :func:`enforceable`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000
_CONTROLLERS: Final = {"memory": "memory", "cpus": "cpu"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Parent:
    """A folder in which groups with one controller can be made."""

    folder: Path
    unified: bool


def enforceable() -> frozenset[str]:
    """Which of ``memory`` and ``cpus`` can be limited here."""
    return frozenset(limit for limit, controller in _CONTROLLERS.items() if _parent(controller))


def apply(name: str, pid: int, *, memory_bytes: int | None, cpus: float | None) -> frozenset[str]:
    """Put a process that has just started under the given ceilings.

    :param name: the name of its group, unique among running engines.
    :returns: the limits now in force, of those that were asked for.
    """
    done = set()
    if memory_bytes is not None and _limit("memory", name, pid, _memory_files(memory_bytes)):
        done.add("memory")
    if cpus is not None and _limit("cpu", name, pid, _cpu_files(cpus)):
        done.add("cpus")
    return frozenset(done)


def killed_for_memory(name: str) -> bool | None:
    """Whether the kernel killed a process of that group for lack of memory; None without a group."""
    parent = _parent("memory")
    if parent is None:
        return None
    file = "memory.events" if parent.unified else "memory.oom_control"
    try:
        counters = dict(line.split() for line in (parent.folder / name / file).read_text().splitlines())
    except (OSError, ValueError):
        return None
    return counters.get("oom_kill", "0") != "0"


def remove(name: str) -> None:
    """Remove the groups of that name, if there are any; their processes have ended."""
    for controller in _CONTROLLERS.values():
        parent = _parent(controller)
        if parent is not None:
            with contextlib.suppress(
                OSError
            ):  # none was made, or a straggler is in it: the next start tries again
                (parent.folder / name).rmdir()


def _memory_files(limit: int) -> Mapping[bool, Mapping[str, str]]:
    # Swap counts as memory: a model that swaps is worse than one that is refused.
    return {
        True: {"memory.max": str(limit), "memory.swap.max": "0"},
        False: {"memory.limit_in_bytes": str(limit), "memory.memsw.limit_in_bytes": str(limit)},
    }


def _cpu_files(cpus: float) -> Mapping[bool, Mapping[str, str]]:
    quota = max(1_000, round(cpus * _PERIOD_US))
    return {
        True: {"cpu.max": f"{quota} {_PERIOD_US}"},
        False: {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": str(quota)},
    }


def _limit(controller: str, name: str, pid: int, files: Mapping[bool, Mapping[str, str]]) -> bool:
    parent = _parent(controller)
    if parent is None:
        return False
    group = parent.folder / name
    try:
        group.mkdir(exist_ok=True)
        for number, (file, value) in enumerate(files[parent.unified].items()):
            if number == 0 or (group / file).exists():  # kernels without swap accounting lack the second
                (group / file).write_text(value)
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        _log.warning("the %s limit of an engine is not enforced: %s", controller, error)
        with contextlib.suppress(OSError):
            group.rmdir()
        return False
    return True


@cache
def _parent(controller: str) -> _Parent | None:
    """Where groups with this controller can be made: our own group or the one above it. Found once."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            own, unified = _ROOT / controller / path.lstrip("/"), False
        elif not names:
            own, unified = _ROOT / path.lstrip("/"), True
        else:
            continue
        # Below us in the unified hierarchy is allowed only for a root group, hence also beside us.
        for folder in (own, own.parent) if unified else (own,):
            if folder.is_relative_to(_ROOT) and _usable(folder, controller, unified=unified):
                return _Parent(folder, unified)
    return None


def _usable(folder: Path, controller: str, *, unified: bool) -> bool:
    """Whether a group made there really has the controller's files and takes our processes."""
    if unified:
        try:
            handed_down = (folder / "cgroup.subtree_control").read_text().split()
        except OSError:
            return False
        if controller not in handed_down:
            return False
    if not os.access(folder / "cgroup.procs", os.W_OK):
        return False
    trial = folder / f"llamaman-trial-{os.getpid()}"
    try:
        trial.mkdir()
    except OSError:
        return False
    wanted = {"memory": ("memory.max", "memory.limit_in_bytes"), "cpu": ("cpu.max", "cpu.cfs_quota_us")}
    usable = os.access(trial / wanted[controller][0 if unified else 1], os.W_OK)
    with contextlib.suppress(OSError):
        trial.rmdir()
    return usable
