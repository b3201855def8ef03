"""A plugin that implements every hook a plugin may, and writes down each call: hook, thread, what it was about.

KITCHEN_NOTES names the file for the notes; the hook that KITCHEN_FAILS names raises.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamaman import (
    Access,
    Collection,
    ContainerSpec,
    ForwardCall,
    ForwardRecord,
    GpuInventory,
    InstanceEvent,
    Job,
    LaunchRequest,
    Panel,
    Patch,
    PluginKernel,
    ProbeContext,
    Reject,
    Runtime,
    Setting,
    SpecPatch,
    StreamRoute,
    Target,
    hookimpl,
)


def note(hook: str, about: object = "-") -> None:
    """Append one line; one write, so that lines of several threads do not mix."""
    line = f"{hook} {threading.current_thread().name} {about}\n"
    with Path(os.environ["KITCHEN_NOTES"]).open("a", encoding="utf-8") as file:
        file.write(line)
    if os.environ.get("KITCHEN_FAILS") == hook:
        raise RuntimeError(f"{hook} is made to fail")


@hookimpl
def gpu_probe(context: ProbeContext) -> GpuInventory | None:
    note("gpu_probe")
    return None


@hookimpl
def container_spec(request: LaunchRequest, spec: ContainerSpec) -> SpecPatch | None:
    note("container_spec")
    return None


@hookimpl
def runtime_register() -> Sequence[Runtime]:
    note("runtime_register")
    return ()


@hookimpl
def admit(call: ForwardCall) -> Reject | None:
    note("admit", call.model)
    return None


@hookimpl
def pre_forward(call: ForwardCall) -> Patch | Reject | None:
    note("pre_forward", call.model)
    return {"seed": 1}


@hookimpl
def post_forward(record: ForwardRecord) -> None:
    note("post_forward", record.outcome)


@hookimpl
def candidates(call: ForwardCall) -> Sequence[Target]:
    note("candidates")
    return ()


@hookimpl
def instance_event(event: InstanceEvent) -> None:
    note("instance_event", event.state)


@hookimpl
def setting_declare() -> Sequence[Setting]:
    note("setting_declare")
    return (Setting("mode", "text", "on", "A setting."),)


@hookimpl
def collection_declare() -> Sequence[Collection]:
    note("collection_declare")
    return (Collection("kitchen.notes"),)


@hookimpl
def route_register(kernel: PluginKernel) -> Sequence[StreamRoute]:
    note("route_register", kernel.setting("kitchen.mode"))
    return (StreamRoute("GET", "/api/kitchen", Access.VIEW, _stream),)


def _stream(identity: Any, values: Any) -> Any:
    raise NotImplementedError


@hookimpl
def panel_declare() -> Sequence[Panel]:
    note("panel_declare")
    return ()


@hookimpl
def job_declare() -> Sequence[Job]:
    note("job_declare")
    return (Job("kitchen.job", 0.05, lambda: note("job")),)


@hookimpl
def command_declare() -> Sequence[Any]:
    note("command_declare")
    return ()


@hookimpl
def startup(kernel: PluginKernel) -> None:
    kernel.collection("kitchen.notes").put("started", 1)
    note("startup", kernel.node)


@hookimpl
def shutdown(kernel: PluginKernel) -> None:
    kernel.collection("kitchen.notes").put("ended", 1)
    note("shutdown", kernel.node)
