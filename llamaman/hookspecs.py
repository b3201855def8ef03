# Specifications have docstrings and nothing else:
# mypy: disable-error-code="empty-body"
"""Every hook, typed and documented, without logic.

Plugin authors read this file. Each hook's first sentence says when it is called, and its last lines are the
same five for every hook. An implementation may leave out arguments it does not need, must not give any a
default, and is an ordinary function marked with :data:`hookimpl`; wrappers are refused, so that what runs is a
flat list. No hook is async and none is called while the kernel holds a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import pluggy

from llamaman.records import (
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
    ProbeContext,
    Reject,
    RouteSet,
    SpecPatch,
    StorageConfig,
    StreamRoute,
    Target,
)
from llamaman.runtime import Runtime

if TYPE_CHECKING:
    import click

    from llamaman.core.facade import PluginKernel
    from llamaman.core.setting import Setting
    from llamaman.core.store import Store

PROJECT: Final = "llamaman"

#: Marks a function of a plugin as the implementation of the hook of its name.
hookimpl = pluggy.HookimplMarker(PROJECT)

Policy = Literal["collect", "merge", "fold", "first", "notify"]

_F = TypeVar("_F", bound=Callable[..., object])

NONBLOCKING: Final = "__llamaman_nonblocking__"


def nonblocking(function: _F) -> _F:
    """Promise that an implementation of ``pre_forward`` only computes, so it may run on the event loop."""
    setattr(function, NONBLOCKING, True)
    return function


@runtime_checkable
class InferenceDialect(Protocol):
    """What ``route_register`` recognises a dialect by; the whole contract is ``llamaman.gateway.dialect``."""

    name: str
    routes: Sequence[Any]

    def open(self, request: Any) -> Any: ...
    def check(self, intent: Any, model: Any) -> None: ...
    def serve(self, intent: Any, model: Any, lease: Any) -> Any: ...
    def error(self, error: Any, *, started: bool) -> Any: ...
    def waiting(self, phase: Any, seconds: float) -> Any: ...


Route: TypeAlias = RouteSet | StreamRoute | InferenceDialect


@dataclass(frozen=True, slots=True)
class HookInfo:
    """How a hook is called.

    :ivar arguments: names, in the order of the specification.
    :ivar budget_s: seconds after which a call is logged as too slow, or None.
    """

    name: str
    policy: Policy
    arguments: tuple[str, ...]
    budget_s: float | None = None


_HOOKS: dict[str, HookInfo] = {}
_spec = pluggy.HookspecMarker(PROJECT)


def _hook(policy: Policy, budget_s: float | None = None) -> Callable[[_F], _F]:
    """Mark a specification and enter it in :data:`HOOKS`."""

    def mark(function: _F) -> _F:
        code = function.__code__
        name = function.__name__
        _HOOKS[name] = HookInfo(name, policy, code.co_varnames[: code.co_argcount], budget_s)
        _spec(function)
        return function

    return mark


# --- hardware and launches ------------------------------------------------------------------------------


@_hook("collect", budget_s=2.0)
def gpu_probe(context: ProbeContext) -> GpuInventory | None:
    """Called every few seconds to see the GPUs of one vendor.

    None means that this vendor has none here. Raise when they cannot be read: an empty inventory would say
    that they are gone.

    Policy: collect
    Thread: the sampler's thread for this plugin
    Budget: 2 s
    On error: the last good inventory is kept and marked stale; five failures in a row back off
    Implemented by: gpu_nvidia, gpu_rocm, gpu_intel
    """


@_hook("merge", budget_s=5.0)
def container_spec(request: LaunchRequest, spec: ContainerSpec) -> SpecPatch | None:
    """Called once per launch in a container, to add what a vendor needs: devices, groups, environment.

    Additions are united. A scalar or an environment variable that two plugins set to different values ends
    the launch with an error naming both.

    Policy: merge
    Thread: a launch worker
    Budget: 5 s
    On error: the launch fails and names the plugin
    Implemented by: gpu_nvidia, gpu_rocm, gpu_intel
    """


@_hook("collect", budget_s=5.0)
def runtime_register() -> Sequence[Runtime]:
    """Called once at boot for further ways to run an engine.

    Policy: collect
    Thread: main, at boot
    Budget: 5 s
    On error: the plugin's runtimes do not exist
    Implemented by: the kernel (containers, processes)
    """


# --- storage --------------------------------------------------------------------------------------------


@_hook("first")
def storage(config: StorageConfig) -> Store:
    """Called once at boot, before every other hook but ``setting_declare``, to open the store.

    Only the driver that LLAMAMAN_STORAGE selects is registered; its entry point is in the group
    ``llamaman.storage``.

    Policy: first
    Thread: main, at boot
    Budget: none
    On error: the boot stops; nothing else is opened instead
    Implemented by: store_json, store_sql
    """


# --- requests -------------------------------------------------------------------------------------------


@_hook("fold")
def admit(call: ForwardCall) -> Reject | None:
    """Called for each inference request after its model is known and before anything is loaded or evicted.

    Works on what is in memory: budgets, limits, opening hours. The first refusal is the answer.

    Policy: fold
    Thread: event loop
    Budget: none; must not block
    On error: the request fails with 503 naming the plugin
    Implemented by: cluster
    """


@_hook("fold", budget_s=0.005)
def pre_forward(call: ForwardCall) -> Patch | Reject | None:
    """Called for each inference request just before it is sent to the engine, to change or refuse it.

    A patch maps dotted paths of object keys to new values. Each implementation sees the body as the ones
    before it left it.

    Once more for a request that is sent again: because its engine broke off before anything was said, or had no context
    left beside others. So count requests in ``admit``.

    Policy: fold
    Thread: event loop if marked ``@nonblocking``, else a small pool
    Budget: 5 ms; three overruns move a nonblocking one to the pool
    On error: the request fails with 503 naming the plugin
    Implemented by: cluster
    """


@_hook("notify", budget_s=1.0)
def post_forward(record: ForwardRecord) -> None:
    """Called for each finished inference request, with what it cost.

    Policy: notify
    Thread: the record writer, fed by a bounded queue; what does not fit is dropped and counted
    Budget: 1 s
    On error: logged and counted
    Implemented by: recording
    """


@_hook("collect")
def candidates(call: ForwardCall) -> Sequence[Target]:
    """Called for each inference request that could run elsewhere too.

    Policy: collect
    Thread: event loop
    Budget: none; must not block
    On error: logged and counted; the request runs here
    Implemented by: cluster
    """


@_hook("notify", budget_s=1.0)
def instance_event(event: InstanceEvent) -> None:
    """Called for each transition of each instance, in order per instance.

    Policy: notify
    Thread: the event thread
    Budget: 1 s
    On error: logged and counted
    Implemented by: cluster
    """


# --- what a plugin declares at boot ---------------------------------------------------------------------


@_hook("collect")
def setting_declare() -> Sequence[Setting]:
    """Called once at boot for the plugin's settings, after the store was opened and before it is used.

    Names are prefixed with the plugin's name; the environment variable is ``LLAMAMAN_<PLUGIN>_<NAME>``.

    Policy: collect
    Thread: main, at boot
    Budget: none
    On error: the plugin is not loaded
    Implemented by: api_openai, gpu_nvidia, cluster, recording
    """


@_hook("collect")
def collection_declare() -> Sequence[Collection]:
    """Called once at boot, when the store is open, for the collections that the plugin owns.

    Policy: collect
    Thread: main, at boot
    Budget: none
    On error: the plugin is not loaded
    Implemented by: cluster, recording
    """


@_hook("collect")
def route_register(kernel: PluginKernel) -> Sequence[Route]:
    """Called once at boot for everything the plugin serves: dialects, streams, management routes.

    A plugin never gets the Flask application: the kernel mounts what is returned, behind its access levels.

    Policy: collect
    Thread: main, at boot
    Budget: none
    On error: the plugin has no routes and is shown as broken
    Implemented by: api_anthropic, api_ollama, api_openai, cluster, recording
    """


@_hook("collect")
def panel_declare() -> Sequence[Panel]:
    """Called once at boot for what the plugin shows on the dashboard; a panel's data is asked per page.

    Policy: collect
    Thread: main, at boot
    Budget: none
    On error: the plugin shows nothing
    Implemented by: the dashboard, recording, cluster
    """


@_hook("collect")
def job_declare() -> Sequence[Job]:
    """Called once at boot for the plugin's periodic work.

    Policy: collect
    Thread: main, at boot; jobs run on the scheduler's pool
    Budget: none
    On error: the plugin has no jobs
    Implemented by: cluster, recording
    """


@_hook("collect")
def command_declare() -> Sequence[click.Command]:
    """Called when the command line starts, for further commands.

    Policy: collect
    Thread: main, of the command line only
    Budget: none
    On error: a warning on standard error
    Implemented by: cluster, recording
    """


@_hook("notify")
def startup(kernel: PluginKernel) -> None:
    """Called once at the end of the boot, when everything is declared and the ports are open.

    Policy: notify
    Thread: main, at boot
    Budget: none
    On error: the plugin is shown as broken
    Implemented by: cluster
    """


@_hook("notify", budget_s=5.0)
def shutdown(kernel: PluginKernel) -> None:
    """Called once when the program ends, in the reverse order of ``startup``.

    Policy: notify
    Thread: a thread of its own, so that a plugin that hangs cannot keep the program from ending
    Budget: 5 s for all plugins together
    On error: logged
    Implemented by: cluster
    """


#: Every hook by name.
HOOKS: Final[Mapping[str, HookInfo]] = _HOOKS
