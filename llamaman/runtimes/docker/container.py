"""From a plan to the exact body of Docker's ``POST /containers/create``.

For the Docker runtime; pure. What is built here says what is wanted; :mod:`.check` says what is allowed, and
:func:`checked` asks it after every plugin had its say.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from llamaman.errors import LaunchError
from llamaman.records import ContainerSpec, LaunchPlan, Mount, SpecPatch
from llamaman.runtimes.ceiling import memory_ceiling
from llamaman.runtimes.docker.account import Account
from llamaman.runtimes.docker.check import check_plan
from llamaman.runtimes.docker.files import model_target
from llamaman.runtimes.docker.labels import container_name, labels
from llamaman.runtimes.docker.walls import HOST_WALLS, NO_NEW_PRIVILEGES, PORT, WALLS
from llamaman.runtimes.own_flags import own_flags

_NANO: Final = 1_000_000_000

#: HostConfig fields by which a GPU comes into a container.
_GPU_FIELDS: Final = frozenset({"Devices", "DeviceRequests", "DeviceCgroupRules", "GroupAdd", "Runtime"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine may really use on the daemon's machine.

    :ivar memory_bytes: the limit in force.
    :ivar cpus: processors it is limited to; None: all.
    :ivar notes: what was lowered, in words.
    """

    memory_bytes: int
    cpus: float | None
    notes: tuple[str, ...] = ()

    @property
    def nano_cpus(self) -> int:
        """Docker's way to say it; 0: no limit."""
        return 0 if self.cpus is None else max(_NANO // 100, round(self.cpus * _NANO))


@dataclass(frozen=True, slots=True)
class Facts:
    """What a launch needs to know besides its plan.

    :ivar cpus: processors of the daemon's machine.
    :ivar memory_total: bytes of memory of the daemon's machine.
    :ivar image_id: the daemon's id of the plan's image.
    :ivar publish: a loopback address and a port there, where the container's own address cannot be reached.
    :ivar init: whether the daemon has an init program.
    :ivar key: this node's key, for the proof.
    :ivar mounts: the model's files by their paths on the daemon's machine, the model's first file first.
    :ivar flags: the plan's flags with paths as they are in the container.
    :ivar known_flags: see ``Engine.flags``.
    """

    cpus: int
    memory_total: int
    image_id: str
    network: str
    publish: tuple[str, int] | None
    init: bool
    key: bytes = field(repr=False)
    account: Account
    mounts: tuple[Mount, ...]
    flags: tuple[str, ...]
    patch: SpecPatch = field(default_factory=SpecPatch)
    known_flags: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Container:
    """What is to be created.

    :ivar body: JSON; it holds the engine's key.
    :ivar notes: what was lowered, in words for whoever launched it.
    """

    name: str
    body: dict[str, Any] = field(repr=False)
    limits: Limits

    @property
    def notes(self) -> tuple[str, ...]:
        return self.limits.notes


def effective_limits(plan: LaunchPlan, *, cpus: int, memory_total: int) -> Limits:
    """The limits that a launch really gets on a machine with ``cpus`` processors and ``memory_total`` bytes.

    :raises LaunchError: the machine's memory is not known, so no limit could be trusted.
    """
    if memory_total <= 0:
        raise LaunchError(
            "the Docker engine does not say how much memory its machine has, so a model could take all of it; "
            "look at `docker info`, and update the engine"
        )
    notes = []
    ceiling = memory_ceiling(memory_total)
    memory = ceiling if plan.memory_bytes is None else min(plan.memory_bytes, ceiling)
    if plan.memory_bytes is not None and plan.memory_bytes > ceiling:
        notes.append(
            f"memory_limit lowered from {_gib(plan.memory_bytes)} to {_gib(ceiling)}, the most that an engine "
            f"may have of this machine's {_gib(memory_total)}"
        )
    quota = plan.cpus
    if quota is not None and 0 < cpus < quota:
        notes.append(f"processors lowered from {quota:g} to {cpus}, the number of processors there")
        quota = float(cpus)
    return Limits(memory, quota, tuple(notes))


def spec_of(
    plan: LaunchPlan,
    *,
    mounts: tuple[Mount, ...],
    flags: Sequence[str],
    account: Account,
    known_flags: frozenset[str] | None = None,
) -> ContainerSpec:
    """What ``container_spec`` hooks see: the container without their additions and without the engine's key."""
    return ContainerSpec(
        image=plan.engine.path,
        argv=tuple(_command(plan, flags, known_flags)),
        env={**plan.env, "HOME": "/tmp"},  # noqa: S108 - the container's own
        mounts=mounts,
        groups=tuple(map(str, account.groups)),
    )


def build(plan: LaunchPlan, prefix: str, facts: Facts) -> Container:
    """The container of one start, with the plugins' patch in it. Nothing is refused here but what cannot be said.

    :param prefix: of the container's name.
    :raises LaunchError: the engine is no image, or a plugin sets the engine's key.
    """
    if plan.engine.kind != "image":
        raise LaunchError(
            f"the Docker runtime runs images, and the engine '{plan.engine.name}' is of kind {plan.engine.kind}"
        )
    if "LLAMA_API_KEY" in facts.patch.env:
        raise LaunchError("a plugin sets the container's LLAMA_API_KEY, which is LlamaMan's own; disable it")
    limits = effective_limits(plan, cpus=facts.cpus, memory_total=facts.memory_total)
    body: dict[str, Any] = {
        **copy.deepcopy(dict(WALLS)),
        "Image": facts.patch.image or plan.engine.path,
        "Cmd": _command(plan, facts.flags, facts.known_flags),
        "User": f"{facts.account.uid}:{facts.account.gid}",
        "Env": [f"{name}={value}" for name, value in _environment(plan, facts.patch).items()],
        "Labels": labels(plan, facts.image_id, facts.key),
        "HostConfig": _host_config(plan, facts, limits),
    }
    if facts.publish is not None:
        body["ExposedPorts"] = {f"{PORT}/tcp": {}}
    return Container(container_name(prefix, plan.instance_id), body, limits)


def checked(
    plan: LaunchPlan, prefix: str, facts: Facts, *, seccomp_profiles: Collection[str] = ()
) -> Container:
    """The same, after the last look at it.

    :raises LaunchError: also where the patch would take one of the container's walls down; names each field.
    """
    container = build(plan, prefix, facts)
    refusals = check_plan(
        container.body,
        image=plan.engine.path,
        files={mount.source for mount in facts.mounts},
        network=facts.network,
        memory=container.limits.memory_bytes,
        nano_cpus=container.limits.nano_cpus,
        init=facts.init,
        seccomp_profiles=seccomp_profiles,
    )
    if refusals:
        raise LaunchError(
            "the container is not started: " + "; ".join(refusals) + ". Disable the plugin that asks for it, "
            "or correct the setting",
        )
    return container


def _command(plan: LaunchPlan, flags: Sequence[str], known: frozenset[str] | None) -> list[str]:
    return [
        *("--model", model_target(plan), "--host", "0.0.0.0", "--port", str(PORT), "--alias", plan.alias),
        *flags,
        *own_flags(known or frozenset(), flags),
    ]


def _environment(plan: LaunchPlan, patch: SpecPatch) -> dict[str, str]:
    env = {"HOME": "/tmp", **plan.env, **patch.env}  # noqa: S108 - the container's own
    if not _wants_gpu(plan):
        # CUDA images ask for all GPUs themselves, and a daemon may hand them out by default.
        env["NVIDIA_VISIBLE_DEVICES"] = "void"
    env["LLAMA_API_KEY"] = plan.api_key
    return env


def _host_config(plan: LaunchPlan, facts: Facts, limits: Limits) -> dict[str, Any]:
    patch, gpu = facts.patch, _wants_gpu(plan)
    host: dict[str, Any] = {
        **copy.deepcopy(dict(HOST_WALLS)),
        "SecurityOpt": [NO_NEW_PRIVILEGES],
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes,  # no swap: a model that swaps is worse than one that is refused
        "NanoCpus": limits.nano_cpus,
        "Init": facts.init,
        "NetworkMode": facts.network,
        "Mounts": [_mount(mount) for mount in dict.fromkeys((*facts.mounts, *patch.mounts))],
    }
    if facts.publish is not None:
        address, port = facts.publish
        host["PortBindings"] = {f"{PORT}/tcp": [{"HostIp": address, "HostPort": str(port)}]}
    groups = [*map(str, facts.account.groups), *(patch.groups if gpu else ())]
    if groups:
        host["GroupAdd"] = list(dict.fromkeys(groups))
    if gpu and patch.devices:
        host["Devices"] = [_device(path) for path in patch.devices]
    if gpu and patch.device_requests:
        host["DeviceRequests"] = [copy.deepcopy(dict(request)) for request in patch.device_requests]
    for name, value in patch.host_config.items():
        if gpu or name not in _GPU_FIELDS:
            host[name] = copy.deepcopy(value)
    return host


def _wants_gpu(plan: LaunchPlan) -> bool:
    return bool(plan.options.get("n_gpu_layers") != 0)


def _mount(mount: Mount) -> Mapping[str, Any]:
    return {"Type": "bind", "Source": mount.source, "Target": mount.target, "ReadOnly": mount.read_only}


def _device(path: str) -> Mapping[str, str]:
    # Without "m": nobody makes device nodes in there.
    return {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"}


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
