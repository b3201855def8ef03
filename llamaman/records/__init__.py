"""Frozen records that cross a hook, runtime or dialect boundary, to be imported from here.

Sizes are bytes, times are seconds, points in time are epoch seconds (UTC) unless a name says otherwise.
None means unknown; 0 means zero. Each file holds the words of one subject; which one it is may change.
"""

from __future__ import annotations

from llamaman.records.callers import NOBODY, Identity
from llamaman.records.containers import ContainerSpec, Mount, SpecPatch
from llamaman.records.declared import (
    Collection,
    Job,
    Panel,
    PluginRecord,
    RouteSet,
    StorageConfig,
    StreamRoute,
)
from llamaman.records.engines import (
    Address,
    Engine,
    EngineFacts,
    Exit,
    Handle,
    LaunchPlan,
    ResourceUse,
    WorkDone,
)
from llamaman.records.hardware import GpuDevice, GpuInventory, ProbeContext
from llamaman.records.instances import REST_STATUS, UNKNOWN, InstanceEvent, InstanceView, LaunchRequest, State
from llamaman.records.models import ModelDetails, ModelView
from llamaman.records.requests import ForwardCall, ForwardRecord, Patch, Reject, Target, Usage

__all__ = [
    "NOBODY",
    "REST_STATUS",
    "UNKNOWN",
    "Address",
    "Collection",
    "ContainerSpec",
    "Engine",
    "EngineFacts",
    "Exit",
    "ForwardCall",
    "ForwardRecord",
    "GpuDevice",
    "GpuInventory",
    "Handle",
    "Identity",
    "InstanceEvent",
    "InstanceView",
    "Job",
    "LaunchPlan",
    "LaunchRequest",
    "ModelDetails",
    "ModelView",
    "Mount",
    "Panel",
    "Patch",
    "PluginRecord",
    "ProbeContext",
    "Reject",
    "ResourceUse",
    "RouteSet",
    "SpecPatch",
    "State",
    "StorageConfig",
    "StreamRoute",
    "Target",
    "Usage",
    "WorkDone",
]
