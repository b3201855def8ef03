"""A container before it is started, and what plugins add to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Mount:
    """A bind mount of a container."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What a container would be started with before the plugins had their say."""

    image: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    mounts: tuple[Mount, ...] = ()
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpecPatch:
    """A plugin's additions to a container.

    Additive fields are united; a scalar that two plugins set to different values is an error naming both. The
    whole container is checked after all patches, so that no plugin can take a container's walls down.

    :ivar image: for a plugin that insists on the one it knows: any but the launch's own is refused.
    :ivar host_config: further fields of Docker's HostConfig by its own names, such as ``ShmSize``.
    """

    image: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    device_requests: tuple[Mapping[str, Any], ...] = ()
    mounts: tuple[Mount, ...] = ()
    host_config: Mapping[str, Any] = field(default_factory=dict)
