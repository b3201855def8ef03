"""What running instances use, asked of the runtimes that measure. Read by the registry."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

from llamaman.core.instance import Instance
from llamaman.errors import RuntimeLost
from llamaman.records import Handle, ResourceUse
from llamaman.runtime import MeasuresEngines, Runtime

_UNKNOWN = ResourceUse()


def of_running(instances: Iterable[Instance], runtimes: Mapping[str, Runtime]) -> dict[str, ResourceUse]:
    """Instance id -> use, for every instance that has an engine; what nobody measures is unknown.

    Does not block. Safe from any thread: an instance's handle is replaced as a whole.
    """
    return {
        instance.id: _use(runtimes[instance.runtime], handle)
        for instance in instances
        if (handle := instance.handle) is not None and instance.runtime in runtimes
    }


def _use(runtime: Runtime, handle: Handle) -> ResourceUse:
    if isinstance(runtime, MeasuresEngines):
        with contextlib.suppress(RuntimeLost):
            return runtime.usage(handle) or _UNKNOWN
    return _UNKNOWN
