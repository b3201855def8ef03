"""GPUs, as the plugins of their vendors see them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One GPU as seen now."""

    index: int
    name: str
    vendor: str
    uuid: str | None = None
    memory_total: int | None = None
    memory_used: int | None = None
    utilization: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class GpuInventory:
    """All GPUs one vendor plugin sees."""

    vendor: str
    devices: tuple[GpuDevice, ...]


@dataclass(frozen=True, slots=True)
class ProbeContext:
    """What a GPU probe may know: ``sysfs`` is the root below which drivers show their files."""

    sysfs: Path = Path("/sys")
