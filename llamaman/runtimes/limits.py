"""Memory and CPU ceilings for engine processes through control groups, where this machine lets us.

For the process runtime. Both generations of the kernel's interface are used; a group is made per start,
beside or below our own, and removed when the engine has ended; what an engine of an earlier manager left is
removed by :func:`sweep`. Nothing here raises: what cannot be enforced is reported by :func:`enforceable`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000
_CONTROLLERS: Final = {"memory": "memory", "cpus": "cpu"}
_PREFIX = "llamaman-"
#: A younger group may belong to a start that is about to move its process there.
_SWEEP_AFTER_S = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Parent:
    """A folder in which groups with one controller can be made."""

    folder: Path
    unified: bool


@dataclass(frozen=True, slots=True)
class InForce:
    """The limits of one group; None where there is none."""

    memory_bytes: int | None = None
    cpus: float | None = None


def group_name(instance_id: str, generation: int) -> str:
    """The name of the group of one start."""
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in instance_id)
    return f"{_PREFIX}{safe[:64]}-{generation}"


def memory_total() -> int:
    """Bytes that all of us may use together: the machine's, or less where our own group has a limit."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for own, unified in _own_groups("memory"):
        if unified:
            folders = [folder for folder in (own, *own.parents) if folder.is_relative_to(_ROOT)]
            given = [_figure(folder / "memory.max") for folder in folders]
        else:
            given = [_figure(own / "memory.stat", "hierarchical_memory_limit")]
        most = min([most, *(limit for limit in given if limit is not None)])
    return most


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


def in_force(name: str) -> InForce:
    """What limits the group of that name now."""
    memory, cpus = _parent("memory"), _parent("cpu")
    limit = quota = period = None
    if memory is not None:
        limit = _figure(memory.folder / name / ("memory.max" if memory.unified else "memory.limit_in_bytes"))
    if cpus is not None and cpus.unified:
        quota, period = _pair(cpus.folder / name / "cpu.max")
    elif cpus is not None:
        quota = _figure(cpus.folder / name / "cpu.cfs_quota_us")
        period = _figure(cpus.folder / name / "cpu.cfs_period_us")
    return InForce(limit, quota / period if quota and quota > 0 and period else None)


def sweep(older_than_s: float = _SWEEP_AFTER_S) -> None:
    """Remove groups without processes, which engines leave that end while no manager watches."""
    for controller in _CONTROLLERS.values():
        parent = _parent(controller)
        if parent is None:
            continue
        for folder in parent.folder.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):  # in use (the kernel says so), or gone already
                if time.time() - folder.stat().st_mtime >= older_than_s:
                    folder.rmdir()


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


def _figure(file: Path, key: str | None = None) -> int | None:
    """A number from a file of a group, by its key where it has several; None: no such file, or no limit."""
    try:
        text = file.read_text()
        if key is not None:
            text = dict(line.split(maxsplit=1) for line in text.splitlines())[key]
        return int(text)
    except (OSError, ValueError, KeyError):
        return None


def _pair(file: Path) -> tuple[int | None, int | None]:
    try:
        first, second = file.read_text().split()
        return int(first), int(second)
    except (OSError, ValueError):
        return None, None


def _own_groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """Our own groups that may have this controller, and whether they are of the unified hierarchy."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            yield _ROOT / controller / path.lstrip("/"), False
        elif not names:
            yield _ROOT / path.lstrip("/"), True


@cache
def _parent(controller: str) -> _Parent | None:
    """Where groups with this controller can be made: our own group or the one above it. Found once."""
    for own, unified in _own_groups(controller):
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
    trial = folder / f"{_PREFIX}trial-{os.getpid()}"
    try:
        trial.mkdir()
    except OSError:
        return False
    wanted = {"memory": ("memory.max", "memory.limit_in_bytes"), "cpu": ("cpu.max", "cpu.cfs_quota_us")}
    usable = os.access(trial / wanted[controller][0 if unified else 1], os.W_OK)
    with contextlib.suppress(OSError):
        trial.rmdir()
    return usable
