"""The last look at a container before it is created: closed to everything that is not named here.

For the Docker runtime, after every plugin had its say. The walls (:mod:`.walls`) must all be there exactly as
they are; a field or value that is not known here is refused, whatever it may mean. Pure, and it never raises:
whatever the body holds, the answer is a list of sentences.

Free within what is said here are: the flags after the first eight words of ``Cmd``, the values of variables and
labels, the numbers of the account and its groups, less memory (with the same ``MemorySwap``), fewer processors,
GPU devices, the places of the files below /models, and the fields of :data:`OPTIONAL`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from llamaman.runtimes.docker import check_fields as field
from llamaman.runtimes.docker.check_fields import Check
from llamaman.runtimes.docker.walls import HOST_WALLS, PORT, WALLS, WHY_NOT

_MIN_MEMORY: Final = 6 << 20  # Docker's own
_UNKNOWN: Final = "it is not among the fields that an engine's container may have"

#: HostConfig fields that a container may have and need not have.
OPTIONAL: Final = (
    "Devices", "DeviceRequests", "GroupAdd", "PortBindings", "ShmSize", "Runtime", "CpusetCpus", "CpusetMems"
)  # fmt: skip


def check_plan(
    body: Mapping[str, Any],
    *,
    image: str,
    files: Collection[str],
    network: str,
    memory: int,
    nano_cpus: int,
    init: bool,
    seccomp_profiles: Collection[str] = (),
) -> list[str]:
    """What is wrong with the body of a ``POST /containers/create``; empty: it may be created.

    :param image: the one reference that was found to be allowed.
    :param files: paths on the daemon's machine of the regular files that may be mounted.
    :param memory: the most bytes it may have.
    :param nano_cpus: the most processors it may have, in billionths; 0: all.
    :param init: whether the daemon has an init program, which is used then.
    :param seccomp_profiles: what an administrator allows behind ``seccomp=`` in SecurityOpt.
    :returns: sentences, each with the name of the field; no values of variables.
    """
    checks: dict[str, Check] = {
        **{name: field.exactly(value) for name, value in WALLS.items()},
        "Image": field.image(image),
        "Cmd": field.command(_targets(body)),
        "User": field.user,
        "Env": field.environment,
        "Labels": field.labels,
        "HostConfig": lambda _: iter(()),
    }
    host_checks: dict[str, Check] = {
        **{name: field.exactly(value) for name, value in HOST_WALLS.items()},
        "SecurityOpt": field.security(seccomp_profiles),
        "Memory": field.whole_number(_MIN_MEMORY, memory, "bytes"),
        "MemorySwap": field.exactly(_host(body).get("Memory")),
        "NanoCpus": field.whole_number(
            1 if nano_cpus else 0, nano_cpus or 1 << 62, "billionths of a processor"
        ),
        "Init": field.exactly(init),
        "NetworkMode": field.network(network),
        "Mounts": field.mounts(frozenset(files)),
    }
    if "PortBindings" in _host(body):
        checks["ExposedPorts"] = field.exactly({f"{PORT}/tcp": {}})
    return [
        *_fields("", body, checks, {}),
        *_fields("HostConfig.", body.get("HostConfig"), host_checks, _host_optional(body)),
    ]


def _host_optional(body: Mapping[str, Any]) -> dict[str, Check]:
    memory = _host(body).get("Memory")
    checks: tuple[Check, ...] = (
        field.devices,
        field.device_requests,
        field.groups,
        field.ports,
        field.whole_number(1, memory if field.is_whole(memory) else 0, "bytes"),
        field.one_of("runc", "nvidia"),
        field.text_like(field.CPU_SET, "a list of processors such as 0-3,8"),
        field.text_like(field.CPU_SET, "a list of memory nodes such as 0,1"),
    )
    return dict(zip(OPTIONAL, checks, strict=True))


def _fields(
    prefix: str, given: Any, needed: Mapping[str, Check], optional: Mapping[str, Check]
) -> Iterator[str]:
    if not isinstance(given, Mapping):
        yield f"{prefix.rstrip('.') or 'the container'} is refused: it must be an object"
        return
    for name in needed:
        if name not in given:
            yield f"{prefix}{name} is missing: an engine is not started without it"
    for name, value in given.items():
        check = needed.get(name) or optional.get(name) if isinstance(name, str) else None
        if check is None:
            yield f"{prefix}{field.short(name)} is refused: {WHY_NOT.get(name, _UNKNOWN)}"
        else:
            yield from (f"{prefix}{name}{wrong}" for wrong in check(value))


def _host(body: Mapping[str, Any]) -> Mapping[str, Any]:
    host = body.get("HostConfig")
    return host if isinstance(host, Mapping) else {}


def _targets(body: Mapping[str, Any]) -> frozenset[str]:
    mounts = _host(body).get("Mounts")
    found = (mount.get("Target") for mount in field.items(mounts) if isinstance(mount, Mapping))
    return frozenset(target for target in found if isinstance(target, str))
