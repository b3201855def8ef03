"""Which runtimes may run a launch, which of their engines does, and whether that engine has a GPU. Pure.

Blank means the first engine of the first runtime that has one. A daemon that is away or refuses is never
silently replaced by processes: the launch would run with other limits, devices and walls than were asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llamaman.errors import InvalidField, LaunchError, RuntimeLost
from llamaman.records import Engine
from llamaman.runtime import CanBeLost, FetchesEngines, PlacesEngines, Runtime

PROCESS = "process"
DOCKER = "docker"

#: Seconds after which trying again makes sense while a runtime cannot be reached.
LOST_RETRY_S = 10

#: What the tag of an image with a GPU build names: a vendor or its programming interface.
_VENDOR = re.compile(
    r"(?:^|[-_.])(?:cuda|nvidia|rocm|hip|amd|intel|sycl|oneapi|vulkan|musa|cann|openvino)(?![a-z])"
)


def usable(runtimes: Mapping[str, Runtime], wanted: str, *, binary_given: bool) -> list[Runtime]:
    """The runtimes that launches may use, the preferred one first.

    :param wanted: LLAMAMAN_RUNTIME: a runtime's name for that one alone, or ``auto``.
    :param binary_given: LLAMA_SERVER_BIN is set, so processes are what this machine's owner wants first.
    """
    if wanted != "auto":
        return [runtimes[wanted]]
    order = [PROCESS, DOCKER] if binary_given else [DOCKER, PROCESS]
    others = [name for name in runtimes if name not in order]
    return [runtimes[name] for name in [*order, *others] if name in runtimes]


def choose(wanted: str | None, runtimes: Sequence[Runtime]) -> tuple[Runtime, Engine]:
    """The engine for a launch and the runtime that runs it. May block.

    :param wanted: an engine's name; empty or None for the first one.
    :raises InvalidField: nobody has one of this name, or it may not be used here.
    :raises LaunchError: there is no engine at all. :raises RuntimeLost: nobody knows now whether there is one.
    """
    return _named(wanted, runtimes) if wanted else _first(runtimes)


def is_lost(runtime: Runtime) -> str | None:
    """Why a runtime cannot be reached now, None when it can. Does not block."""
    return runtime.lost() if isinstance(runtime, CanBeLost) else None


def needs_port(runtime: Runtime) -> bool:
    """Whether this runtime's engines listen on a loopback port of this machine that we choose."""
    return runtime.needs_port() if isinstance(runtime, PlacesEngines) else True


def has_gpu(engine: Engine, machine: bool) -> bool:
    """Whether an engine may use a GPU.

    An image does when its tag names a vendor, since it brings its own libraries; every other engine when the
    machine has one.
    """
    if engine.kind != "image":
        return machine
    name, _, _ = (engine.path or engine.name).partition("@")
    _, colon, tag = name.rpartition(":")
    return bool(colon) and "/" not in tag and _VENDOR.search(tag.lower()) is not None


def _named(wanted: str, runtimes: Sequence[Runtime]) -> tuple[Runtime, Engine]:
    found: list[str] = []
    for runtime in runtimes:
        for engine in runtime.engines():
            if engine.name == wanted:
                return runtime, engine
            found.append(engine.name)
    for runtime in runtimes:
        if isinstance(runtime, FetchesEngines) and (named := runtime.engine(wanted)):
            return runtime, named
    known = f"there are: {', '.join(found)}" if found else "there is none"
    raise InvalidField("engine", f"engine '{wanted}' is not available here; {known}")


def _first(runtimes: Sequence[Runtime]) -> tuple[Runtime, Engine]:
    for runtime in runtimes:
        for engine in runtime.engines():
            return runtime, engine
        if reason := is_lost(runtime):
            raise RuntimeLost(reason, retry_after=LOST_RETRY_S)
        if isinstance(runtime, CanBeLost):
            break
    raise LaunchError(
        "no engine is available: install llama-server (or set LLAMA_SERVER_BIN), "
        "or the embedded engine with `pip install 'llamaman[embedded]'`"
    )
