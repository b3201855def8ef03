"""Registration of plugins with pluggy, strict where pluggy is lenient, and the order in which they are called.

A plugin that is refused here leaves no trace: everything is checked before pluggy sees it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pluggy

from llamaman import hookspecs
from llamaman.errors import PluginError
from llamaman.hookspecs import HOOKS, NONBLOCKING, PROJECT

#: Failures in a row after which an implementation counts as degraded.
DEGRADED_AFTER = 5

#: Overruns after which a nonblocking implementation is no longer trusted on the event loop.
OVERRUNS_ALLOWED = 3

#: How long a degraded probe rests: doubled for each further failure, up to the second number, in seconds.
REST_S = (30.0, 600.0)


@dataclass(slots=True)
class Impl:
    """One plugin's implementation of one hook, and how it is doing.

    Counters are changed without a lock: they are shown to people and decide about rest, nothing else.
    """

    plugin: str
    hook: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    budget_s: float | None
    rank: tuple[int, int, str]
    nonblocking: bool
    calls: int = 0
    failures: int = 0
    in_a_row: int = 0
    overruns: int = 0
    last_error: str | None = None
    rest_until: float = field(default=0.0)

    @property
    def degraded(self) -> bool:
        return self.in_a_row >= DEGRADED_AFTER

    @property
    def may_block(self) -> bool:
        return not self.nonblocking or self.overruns >= OVERRUNS_ALLOWED

    def succeeded(self) -> None:
        self.in_a_row = 0

    def failed(self, error: BaseException, now: float) -> None:
        self.failures += 1
        self.in_a_row += 1
        self.last_error = f"{type(error).__name__}: {error}"
        if self.degraded:
            doublings = min(self.in_a_row - DEGRADED_AFTER, 10)
            self.rest_until = now + min(REST_S[0] * 2.0**doublings, REST_S[1])


class Registry:
    """Who implements what, in calling order: tryfirst, then by plugin name, the kernel's own, then trylast."""

    def __init__(self) -> None:
        self._pm = pluggy.PluginManager(PROJECT)
        self._pm.add_hookspecs(hookspecs)
        self._own: set[str] = set()
        self._known: dict[tuple[str, str], Impl] = {}
        #: Hooks that somebody implements; replaced as a whole, so that readers need no lock.
        self.active: Mapping[str, tuple[Impl, ...]] = {}

    def register(self, name: str, plugin: object, *, own: bool, storage: bool) -> tuple[str, ...]:
        """Take a plugin in and return the names of its hooks, sorted.

        :raises PluginError: anything about it is not as a plugin must be; it is not registered then.
        """
        if self._pm.has_plugin(name):
            raise PluginError(name, "a plugin of this name is registered already")
        implementations = implementations_of(name, plugin)
        if "storage" in implementations and not storage:
            raise PluginError(
                name,
                "it implements 'storage', which only a driver in the entry point group llamaman.storage may",
            )
        self._pm.register(plugin, name)
        if own:
            self._own.add(name)
        self._refresh()
        return tuple(sorted(implementations))

    def unregister(self, name: str) -> None:
        """Forget a plugin; a call that runs is not disturbed."""
        if self._pm.has_plugin(name):
            self._pm.unregister(name=name)
            self._refresh()

    def names(self) -> tuple[str, ...]:
        """Every registered plugin, sorted."""
        return tuple(sorted(name for name, plugin in self._pm.list_name_plugin() if plugin is not None))

    def _refresh(self) -> None:
        active: dict[str, tuple[Impl, ...]] = {}
        for hook in HOOKS:
            impls = [self._impl(hook, found) for found in getattr(self._pm.hook, hook).get_hookimpls()]
            if impls:
                active[hook] = tuple(sorted(impls, key=lambda impl: impl.rank))
        self.active = active

    def _impl(self, hook: str, found: pluggy.HookImpl) -> Impl:
        known = self._known.get((found.plugin_name, hook))
        if known is not None and known.function is found.function:
            return known
        place = 0 if found.tryfirst else 2 if found.trylast else 1
        impl = self._known[found.plugin_name, hook] = Impl(
            plugin=found.plugin_name,
            hook=hook,
            function=found.function,
            arguments=tuple(found.argnames),
            budget_s=HOOKS[hook].budget_s,
            rank=(place, found.plugin_name in self._own, found.plugin_name),
            nonblocking=bool(getattr(found.function, NONBLOCKING, False)),
        )
        return impl


def implementations_of(name: str, plugin: object) -> dict[str, Callable[..., Any]]:
    """Find and check every hook implementation of a plugin: hook name -> function.

    :raises PluginError: naming the function and what is wrong with it.
    """
    reader = pluggy.PluginManager(PROJECT)
    found: dict[str, Callable[..., Any]] = {}
    for attribute in dir(plugin):
        options = reader.parse_hookimpl_opts(plugin, attribute)
        if options is None:
            continue
        function = getattr(plugin, attribute)
        hook = options.get("specname") or attribute
        _check(name, hook, function, options)
        if hook in found:
            raise PluginError(name, f"it implements '{hook}' twice")
        found[hook] = function
    return found


def _check(name: str, hook: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    spec = HOOKS.get(hook)
    if spec is None:
        raise PluginError(name, f"there is no hook '{hook}'; the hooks are: {', '.join(sorted(HOOKS))}")
    if options.get("wrapper") or options.get("hookwrapper"):
        raise PluginError(
            name, f"'{hook}' is a wrapper; hooks are plain functions, so that what runs is a flat list"
        )
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise PluginError(name, f"'{hook}' is async or a generator; hooks are plain functions")
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in spec.arguments or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise PluginError(
                name,
                f"'{hook}' takes '{parameter}', but the hook's arguments are: {', '.join(spec.arguments) or 'none'}",
            )
        if parameter.default is not parameter.empty:
            raise PluginError(
                name,
                f"'{hook}' gives '{parameter.name}' a default, and pluggy never passes such an argument: drop it",
            )


def invoke(impl: Impl, arguments: Mapping[str, Any]) -> tuple[Any, float]:
    """Call an implementation with the arguments it wants; returns its result and the seconds it took."""
    started = time.perf_counter()
    impl.calls += 1
    result = impl.function(*[arguments[name] for name in impl.arguments])
    return result, time.perf_counter() - started
