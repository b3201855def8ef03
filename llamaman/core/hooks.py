"""The call policies, and one typed method per hook. Nothing else in the program calls a plugin's hook.

collect  every result; a failing implementation is logged, counted and left out.
merge    every result; the first failure ends the operation and names the plugin.
fold     in order, each sees what the ones before it made; a failure or refusal ends it (fail closed).
first    exactly one provider.
notify   no result; failures are logged and counted.

While an implementation runs, :data:`current_plugin` holds its plugin's name. What it returns is checked: a
record of the wrong type is a failure of the plugin, not a surprise three rooms away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from llamaman.core.hook_results import (
    Check,
    Contribution,
    anything,
    error_text,
    having,
    is_store,
    many,
    optional,
    patch_or_reject,
    patched,
    united,
)
from llamaman.core.plugin_manager import Impl, Registry, invoke
from llamaman.core.store import Store
from llamaman.errors import LaunchError, LlamaManError, PluginError
from llamaman.hookspecs import InferenceDialect, Route
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

log = logging.getLogger("llamaman.hooks")
trace_log = logging.getLogger("llamaman.hooks.trace")

#: The plugin whose hook runs in this context, or None.
current_plugin: ContextVar[str | None] = ContextVar("current_plugin", default=None)

#: What all plugins together may take to shut down.
SHUTDOWN_S = 5.0

_T = TypeVar("_T")


class FacadeSource(Protocol):
    """Gives each plugin its own façade; see ``core.facade.Facades``."""

    def for_plugin(self, plugin: str) -> PluginKernel: ...


@dataclass(frozen=True, slots=True)
class HookReport:
    """How one plugin's implementation of one hook is doing."""

    plugin: str
    hook: str
    calls: int
    failures: int
    failures_in_a_row: int
    overruns: int
    degraded: bool
    last_error: str | None


class Hooks:
    """See the module's docstring.

    :param trace: log every call with its duration (``LLAMAMAN_TRACE_PLUGINS``).
    :param strict: a failing boot hook raises instead of leaving its plugin out (``LLAMAMAN_STRICT``).
    """

    def __init__(
        self, *, trace: bool = False, strict: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = Registry()
        self._trace = trace
        self._strict = strict
        self._clock = clock
        self._broken: dict[str, str] = {}

    # --- who --------------------------------------------------------------------------------------------

    def register(
        self, name: str, plugin: object, *, own: bool = False, storage: bool = False
    ) -> tuple[str, ...]:
        """Take in a plugin; returns its hooks.

        :param own: one of the kernel's own, called after all plugins.
        :param storage: it is the selected storage driver, so it may implement ``storage``.
        :raises PluginError: it is not as a plugin must be.
        """
        return self._registry.register(name, plugin, own=own, storage=storage)

    def unregister(self, name: str) -> None:
        """Forget a plugin."""
        self._registry.unregister(name)

    def has(self, hook: str) -> bool:
        """Whether anybody implements a hook: one dictionary look-up, so the hot path may skip it."""
        return hook in self._registry.active

    def order(self, hook: str) -> tuple[str, ...]:
        """The plugins that implement a hook, in calling order."""
        return tuple(impl.plugin for impl in self._registry.active.get(hook, ()))

    def report(self) -> tuple[HookReport, ...]:
        """Every implementation, by plugin and hook."""
        impls = (impl for impls in self._registry.active.values() for impl in impls)
        return tuple(
            HookReport(
                impl.plugin,
                impl.hook,
                impl.calls,
                impl.failures,
                impl.in_a_row,
                impl.overruns,
                impl.degraded,
                impl.last_error,
            )
            for impl in sorted(impls, key=lambda impl: (impl.plugin, impl.hook))
        )

    def mark_broken(self, plugin: str, reason: str) -> None:
        """Record that a plugin failed at boot (its routes were refused, say); raises when strict."""
        if self._strict:
            raise PluginError(plugin, reason)
        log.error("plugin '%s' is broken: %s", plugin, reason)
        self._broken.setdefault(plugin, reason)

    def broken(self) -> Mapping[str, str]:
        """Plugins that failed after they were registered, with the reason of each."""
        return dict(self._broken)

    # --- hardware and launches --------------------------------------------------------------------------

    def gpu_probe(self, context: ProbeContext) -> list[GpuInventory]:
        """The inventories of all vendors that could be read. A probe that keeps failing rests for a while."""
        found = self._collect("gpu_probe", {"context": context}, optional(GpuInventory), rest=True)
        return [contribution.value for contribution in found if contribution.value is not None]

    def container_spec(self, request: LaunchRequest, spec: ContainerSpec) -> SpecPatch:
        """All plugins' additions to a container, united.

        :raises LaunchError: a plugin failed, or two of them disagree (both are named).
        """
        patches = []
        for impl in self._registry.active.get("container_spec", ()):
            try:
                patch = self._run(impl, {"request": request, "spec": spec}, optional(SpecPatch))
            except (Exception, SystemExit) as error:  # a plugin's failure ends this launch, whatever it is
                detail = error.detail if isinstance(error, LlamaManError) else None
                raise LaunchError(
                    f"plugin '{impl.plugin}' could not prepare the container: {error}", detail=detail
                ) from error
            if patch is not None:
                patches.append(Contribution(impl.plugin, patch))
        return united(patches)

    def runtime_register(self) -> list[Contribution[Runtime]]:
        """Further runtimes."""
        return self._declared(
            "runtime_register", {}, having("name", "engines", "start", "stop", "watch", "inspect", "find")
        )

    # --- storage ----------------------------------------------------------------------------------------

    def storage(self, config: StorageConfig) -> Store:
        """Open the store through the one registered driver; its errors pass unchanged.

        :raises PluginError: there is not exactly one driver, or it did not return a store.
        """
        impls = self._registry.active.get("storage", ())
        if len(impls) != 1:
            names = ", ".join(impl.plugin for impl in impls) or "none"
            raise PluginError("storage", f"exactly one driver must be registered, not {names}")
        try:
            return self._run(impls[0], {"config": config}, is_store)
        except LlamaManError:
            raise
        except (Exception, SystemExit) as error:  # the boot stops, naming the driver
            raise PluginError(impls[0].plugin, f"the store could not be opened: {error}") from error

    # --- requests ---------------------------------------------------------------------------------------

    def admit(self, call: ForwardCall) -> Reject | None:
        """The first refusal, or None.

        :raises PluginError: status 503; an implementation failed, so the request must not go on.
        """
        for impl in self._registry.active.get("admit", ()):
            refusal = self._closed(impl, call, optional(Reject))
            if refusal is not None:
                return refusal
        return None

    def pre_forward(self, call: ForwardCall) -> Patch | Reject | None:
        """The first refusal, or all patches as one, or None.

        :raises PluginError: status 503; an implementation failed, so the request must not go on.
        """
        patch: dict[str, Any] = {}
        for impl in self._registry.active.get("pre_forward", ()):
            result = self._closed(impl, call, patch_or_reject)
            if isinstance(result, Reject):
                return result
            if result:
                patch.update(result)
                call = replace(call, body=patched(call.body, result))
        return patch or None

    def pre_forward_blocks(self) -> bool:
        """Whether ``pre_forward`` must not be called on the event loop."""
        return any(impl.may_block for impl in self._registry.active.get("pre_forward", ()))

    def post_forward(self, record: ForwardRecord) -> None:
        """Tell everybody about a finished request."""
        self._notify("post_forward", {"record": record})

    def candidates(self, call: ForwardCall) -> list[Target]:
        """Where else this call could run."""
        found = self._collect("candidates", {"call": call}, many(Target))
        return [target for contribution in found for target in contribution.value]

    def instance_event(self, event: InstanceEvent) -> None:
        """Tell everybody about a transition of an instance."""
        self._notify("instance_event", {"event": event})

    # --- boot -------------------------------------------------------------------------------------------

    def setting_declare(self) -> list[Contribution[Setting]]:
        """All plugins' settings, names as the plugins gave them; a plugin that fails is dropped."""
        from llamaman.core.setting import Setting

        return self._declared("setting_declare", {}, many(Setting), drop=True)

    def collection_declare(self) -> list[Contribution[Collection]]:
        """All plugins' collections; a plugin that fails is dropped."""
        return self._declared("collection_declare", {}, many(Collection), drop=True)

    def route_register(self, facades: FacadeSource) -> list[Contribution[Route]]:
        """Everything that plugins serve."""
        return self._declared("route_register", facades, many(RouteSet, StreamRoute, InferenceDialect))

    def panel_declare(self) -> list[Contribution[Panel]]:
        """All plugins' panels, in their own order."""
        panels: list[Contribution[Panel]] = self._declared("panel_declare", {}, many(Panel))
        return sorted(panels, key=lambda panel: panel.value.order)

    def job_declare(self) -> list[Contribution[Job]]:
        """All plugins' periodic work."""
        return self._declared("job_declare", {}, many(Job))

    def command_declare(self) -> list[Contribution[click.Command]]:
        """All plugins' commands."""
        import click

        return self._declared("command_declare", {}, many(click.Command))

    def startup(self, facades: FacadeSource) -> None:
        """Tell every plugin that serving begins; one that fails is marked broken."""
        for impl in self._registry.active.get("startup", ()):
            try:
                self._run(impl, {"kernel": facades.for_plugin(impl.plugin)}, anything)
            except (Exception, SystemExit) as error:  # noqa: BLE001 # the program starts without it
                self._log_failure(impl)
                self.mark_broken(impl.plugin, f"startup failed: {error_text(error)}")

    def shutdown(self, facades: FacadeSource, budget_s: float = SHUTDOWN_S) -> None:
        """Tell every plugin that the program ends, last started first; each has its share of the time."""
        impls = self._registry.active.get("shutdown", ())
        for impl in reversed(impls):
            arguments = {"kernel": facades.for_plugin(impl.plugin)}
            thread = threading.Thread(
                target=self._quietly, args=(impl, arguments), name=f"shutdown-{impl.plugin}", daemon=True
            )
            thread.start()
            thread.join(budget_s / len(impls))
            if thread.is_alive():
                log.warning("plugin '%s' did not shut down in time and is left behind", impl.plugin)

    # --- policies ---------------------------------------------------------------------------------------

    def _collect(
        self, hook: str, arguments: Mapping[str, Any], check: Check[_T], *, rest: bool = False
    ) -> list[Contribution[_T]]:
        found = []
        for impl in self._registry.active.get(hook, ()):
            if rest and impl.degraded and self._clock() < impl.rest_until:
                continue
            try:
                found.append(Contribution(impl.plugin, self._run(impl, arguments, check)))
            except (Exception, SystemExit):  # noqa: BLE001 # one plugin's failure must not cost the others' results
                self._log_failure(impl)
        return found

    def _declared(
        self,
        hook: str,
        arguments: Mapping[str, Any] | FacadeSource,
        check: Check[Sequence[_T]],
        *,
        drop: bool = False,
    ) -> list[Contribution[_T]]:
        """Collect at boot: what each plugin returned, one by one; a failing plugin is marked broken."""
        found: list[Contribution[_T]] = []
        for impl in self._registry.active.get(hook, ()):
            given = (
                arguments if isinstance(arguments, Mapping) else {"kernel": arguments.for_plugin(impl.plugin)}
            )
            try:
                found += [Contribution(impl.plugin, value) for value in self._run(impl, given, check)]
            except (Exception, SystemExit) as error:  # noqa: BLE001 # the program runs on without what it declares
                self._log_failure(impl)
                if drop:
                    self.unregister(impl.plugin)
                self.mark_broken(impl.plugin, f"{hook} failed: {error_text(error)}")
        return found

    def _notify(self, hook: str, arguments: Mapping[str, Any]) -> None:
        for impl in self._registry.active.get(hook, ()):
            self._quietly(impl, arguments)

    def _quietly(self, impl: Impl, arguments: Mapping[str, Any]) -> None:
        try:
            self._run(impl, arguments, anything)
        except (Exception, SystemExit):  # noqa: BLE001 # nobody waits for a result
            self._log_failure(impl)

    def _closed(self, impl: Impl, call: ForwardCall, check: Check[_T]) -> _T:
        try:
            return self._run(impl, {"call": call}, check)
        except (Exception, SystemExit) as error:  # fail closed: a limit that cannot be checked holds
            self._log_failure(impl)
            raise PluginError(
                impl.plugin, f"{impl.hook} failed; the request was not sent", status=503
            ) from error

    def _run(self, impl: Impl, arguments: Mapping[str, Any], check: Check[_T]) -> _T:
        token = current_plugin.set(impl.plugin)
        try:
            result, seconds = invoke(impl, arguments)
            checked = check(result)
        except (Exception, SystemExit) as error:
            impl.failed(error, self._clock())
            raise
        finally:
            current_plugin.reset(token)
        impl.succeeded()
        if impl.budget_s is not None and seconds > impl.budget_s:
            impl.overruns += 1
            log.warning(
                "plugin '%s': %s took %.3f s, its budget is %.3f s",
                impl.plugin,
                impl.hook,
                seconds,
                impl.budget_s,
            )
        if self._trace:
            trace_log.info("%s.%s -> %s in %.6f s", impl.plugin, impl.hook, type(result).__name__, seconds)
        return checked

    def _log_failure(self, impl: Impl) -> None:
        degraded = "; it is degraded now" if impl.degraded else ""
        log.exception(
            "plugin '%s': %s failed (%d in a row)%s", impl.plugin, impl.hook, impl.in_a_row, degraded
        )
