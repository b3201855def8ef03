"""The call policies: order, isolation, blame, and what registration refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from llamaman import ForwardCall, GpuInventory, ProbeContext, Reject, hookimpl
from llamaman.core.hooks import Hooks, current_plugin
from llamaman.core.plugin_manager import DEGRADED_AFTER, REST_S
from llamaman.errors import PluginError
from llamaman.hookspecs import nonblocking
from llamaman.records import NOBODY

CONTEXT = ProbeContext(Path("/nonexistent"))


def plugin(**functions: Callable[..., Any]) -> SimpleNamespace:
    """A plugin whose hooks are the given functions."""
    return SimpleNamespace(**{name: hookimpl(function) for name, function in functions.items()})


def probing(vendor: str) -> SimpleNamespace:
    return plugin(gpu_probe=lambda context: GpuInventory(vendor, ()))


def call(**body: Any) -> ForwardCall:
    return ForwardCall("r1", "proxy", "openai", "/v1/chat/completions", "tiny", NOBODY, False, body)


def vendors(hooks: Hooks) -> list[str]:
    return [inventory.vendor for inventory in hooks.gpu_probe(CONTEXT)]


# --- order ----------------------------------------------------------------------------------------------


def test_plugins_are_called_by_name_whatever_the_order_of_registration() -> None:
    hooks = Hooks()
    for name in ("b", "c", "a"):
        hooks.register(name, probing(name))
    assert vendors(hooks) == ["a", "b", "c"]
    assert hooks.order("gpu_probe") == ("a", "b", "c")


def test_the_kernels_own_come_last_and_tryfirst_and_trylast_are_honoured() -> None:
    hooks = Hooks()

    def named(name: str, **options: bool) -> SimpleNamespace:
        def gpu_probe(context: ProbeContext) -> GpuInventory:
            return GpuInventory(name, ())

        return SimpleNamespace(gpu_probe=hookimpl(gpu_probe, **options))

    hooks.register("own", named("own"), own=True)
    hooks.register("z-first", named("z-first", tryfirst=True))
    hooks.register("b", named("b"))
    hooks.register("a-last", named("a-last", trylast=True))
    assert vendors(hooks) == ["z-first", "b", "own", "a-last"]


def test_the_order_is_what_pluggy_would_do_if_registered_in_the_documented_order() -> None:
    manager = pluggy.PluginManager("llamaman")
    from llamaman import hookspecs

    manager.add_hookspecs(hookspecs)
    hooks = Hooks()
    plugins = {name: probing(name) for name in ("own", "c", "b", "a")}
    for name, each in plugins.items():
        manager.register(each, name)
        hooks.register(name, each, own=name == "own")
    assert [inventory.vendor for inventory in manager.hook.gpu_probe(context=CONTEXT)] == vendors(hooks)


# --- collect --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3), RecursionError()])
def test_one_failing_plugin_costs_nobody_elses_result(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(context: ProbeContext) -> GpuInventory:
        raise error

    hooks = Hooks()
    hooks.register("a", probing("a"))
    hooks.register("b", plugin(gpu_probe=fail))
    hooks.register("c", probing("c"))
    assert vendors(hooks) == ["a", "c"]
    report = {each.plugin: each for each in hooks.report()}
    assert (report["b"].failures, report["a"].failures) == (1, 0)
    assert type(error).__name__ in (report["b"].last_error or "")
    assert "plugin 'b'" in caplog.text


def test_a_result_of_the_wrong_type_is_the_plugins_failure() -> None:
    hooks = Hooks()
    hooks.register("a", plugin(gpu_probe=lambda context: {"vendor": "cuda"}))
    assert vendors(hooks) == []
    assert "must return GpuInventory or None, not dict" in (hooks.report()[0].last_error or "")


def test_a_probe_that_keeps_failing_rests_and_is_shown_as_degraded() -> None:
    now = 0.0
    calls: list[int] = []
    healthy = False

    def gpu_probe(context: ProbeContext) -> GpuInventory:
        calls.append(1)
        if not healthy:
            raise OSError("driver gone")
        return GpuInventory("x", ())

    hooks = Hooks(clock=lambda: now)
    hooks.register("a", plugin(gpu_probe=gpu_probe))
    for _ in range(DEGRADED_AFTER + 10):
        vendors(hooks)
    assert len(calls) == DEGRADED_AFTER
    assert hooks.report()[0].degraded
    now, healthy = REST_S[0] + 1, True
    assert vendors(hooks) == ["x"]
    assert not hooks.report()[0].degraded


def test_an_overrun_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    import time

    def pre_forward(call: ForwardCall) -> None:
        time.sleep(0.02)

    hooks = Hooks()
    hooks.register("slow", plugin(pre_forward=pre_forward))
    hooks.pre_forward(call())
    assert hooks.report()[0].overruns == 1
    assert "plugin 'slow': pre_forward took" in caplog.text


# --- fold -----------------------------------------------------------------------------------------------


def test_each_sees_the_body_as_the_ones_before_it_left_it() -> None:
    seen: list[Any] = []

    def first(call: ForwardCall) -> dict[str, Any]:
        return {"options.seed": 1, "user": "x"}

    def second(call: ForwardCall) -> dict[str, Any]:
        seen.append(dict(call.body))
        return {"options.seed": 2}

    hooks = Hooks()
    hooks.register("a", plugin(pre_forward=first))
    hooks.register("b", plugin(pre_forward=second))
    given = call(options={"top_k": 3}, n=1)
    assert hooks.pre_forward(given) == {"options.seed": 2, "user": "x"}
    assert seen == [{"options": {"top_k": 3, "seed": 1}, "n": 1, "user": "x"}]
    assert given.body == {"options": {"top_k": 3}, "n": 1}


def test_a_refusal_ends_the_fold() -> None:
    later: list[int] = []
    hooks = Hooks()
    for hook in ("admit", "pre_forward"):
        hooks.register(f"a-{hook}", plugin(**{hook: lambda call: Reject(429, "budget spent")}))
        hooks.register(f"b-{hook}", plugin(**{hook: lambda call: later.append(1)}))
    assert hooks.admit(call()) == hooks.pre_forward(call()) == Reject(429, "budget spent")
    assert later == []


@pytest.mark.parametrize("hook", ["admit", "pre_forward"])
def test_a_failing_fold_fails_closed_and_names_the_plugin(hook: str) -> None:
    def fail(call: ForwardCall) -> None:
        raise KeyError("budget")

    hooks = Hooks()
    hooks.register("budgets", plugin(**{hook: fail}))
    with pytest.raises(PluginError, match="plugin 'budgets'") as refusal:
        getattr(hooks, hook)(call())
    assert refusal.value.status == 503


def test_whether_pre_forward_may_run_on_the_loop_is_known_and_revoked_after_three_overruns() -> None:
    import time

    hooks = Hooks()
    assert not hooks.pre_forward_blocks()
    pause = 0.0

    def quick(call: ForwardCall) -> None:
        time.sleep(pause)

    hooks.register("a", plugin(pre_forward=nonblocking(quick)))
    hooks.pre_forward(call())
    assert not hooks.pre_forward_blocks()
    pause = 0.02
    for _ in range(3):
        hooks.pre_forward(call())
    assert hooks.pre_forward_blocks()


def test_an_unmarked_pre_forward_may_block() -> None:
    hooks = Hooks()
    hooks.register("a", plugin(pre_forward=lambda call: None))
    assert hooks.pre_forward_blocks()


# --- who runs -------------------------------------------------------------------------------------------


def test_the_current_plugin_is_known_while_it_runs_also_after_a_failure() -> None:
    seen: list[str | None] = []

    def fail(context: ProbeContext) -> None:
        seen.append(current_plugin.get())
        raise ValueError("mine")

    hooks = Hooks()
    hooks.register("a", plugin(gpu_probe=fail))
    hooks.register("b", plugin(gpu_probe=lambda context: seen.append(current_plugin.get())))
    vendors(hooks)
    assert seen == ["a", "b"]
    assert current_plugin.get() is None


def test_the_trace_shows_every_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamaman.hooks.trace")
    silent, traced = Hooks(), Hooks(trace=True)
    for hooks in (silent, traced):
        hooks.register("a", probing("a"))
        vendors(hooks)
    assert [record.getMessage().split(" in ")[0] for record in caplog.records] == [
        "a.gpu_probe -> GpuInventory"
    ]


def test_has_says_whether_a_hook_needs_to_be_called_at_all() -> None:
    hooks = Hooks()
    assert not hooks.has("pre_forward")
    hooks.register("a", plugin(pre_forward=lambda call: None))
    assert hooks.has("pre_forward")
    assert not hooks.has("admit")
    hooks.unregister("a")
    hooks.unregister("a")
    assert not hooks.has("pre_forward")


def test_arguments_that_an_implementation_does_not_want_are_left_out() -> None:
    hooks = Hooks()
    hooks.register("a", plugin(gpu_probe=lambda: GpuInventory("a", ())))
    assert vendors(hooks) == ["a"]


# --- registration ---------------------------------------------------------------------------------------


def wrapper() -> SimpleNamespace:
    def gpu_probe(context: ProbeContext) -> Any:
        return (yield)

    return SimpleNamespace(gpu_probe=hookimpl(gpu_probe, wrapper=True))


def old_wrapper() -> SimpleNamespace:
    def gpu_probe(context: ProbeContext) -> Any:
        yield

    return SimpleNamespace(gpu_probe=hookimpl(gpu_probe, hookwrapper=True))


async def asynchronous(context: ProbeContext) -> None: ...


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (wrapper(), "wrapper"),
        (old_wrapper(), "wrapper"),
        (plugin(gpu_prob=lambda context: None), "no hook 'gpu_prob'"),
        (plugin(gpu_probe=lambda context, sysfs: None), "takes 'sysfs'"),
        (plugin(gpu_probe=lambda context=None: None), "default"),
        (plugin(gpu_probe=lambda *context: None), r"takes '\*context'"),
        (plugin(gpu_probe=lambda **context: None), r"takes '\*\*context'"),
        (plugin(gpu_probe=asynchronous), "async"),
        (plugin(storage=lambda config: None), r"llamaman\.storage"),
    ],
)
def test_what_is_not_as_a_plugin_must_be_is_refused_whole(bad: object, why: str) -> None:
    hooks = Hooks()
    bad.admit = hookimpl(lambda call: None)  # type: ignore[attr-defined] # any object may be a plugin
    with pytest.raises(PluginError, match=why) as refusal:
        hooks.register("bad", bad)
    assert refusal.value.plugin == "bad"
    assert hooks.report() == ()
    hooks.register("bad", probing("now good"))
    assert vendors(hooks) == ["now good"]


def test_a_name_is_given_once() -> None:
    hooks = Hooks()
    hooks.register("a", probing("a"))
    with pytest.raises(PluginError, match="registered already"):
        hooks.register("a", probing("b"))


def test_registration_returns_the_plugins_hooks() -> None:
    both = plugin(gpu_probe=lambda context: None, admit=lambda call: None, other_function=lambda: None)
    del both.other_function
    both.not_a_hook = lambda: None
    assert Hooks().register("a", both) == ("admit", "gpu_probe")


def test_an_attribute_that_raises_does_not_disturb_registration() -> None:
    class Plugin:
        @property
        def boom(self) -> None:
            raise RuntimeError("read me not")

        @hookimpl
        def gpu_probe(self) -> GpuInventory:
            return GpuInventory("class", ())

    hooks = Hooks()
    hooks.register("a", Plugin())
    assert vendors(hooks) == ["class"]


def test_registering_during_a_call_does_not_disturb_the_call() -> None:
    hooks = Hooks()

    def registering(context: ProbeContext) -> GpuInventory:
        hooks.register("z", probing("z"))
        return GpuInventory("a", ())

    hooks.register("a", plugin(gpu_probe=registering))
    assert vendors(hooks) == ["a"]
    hooks.unregister("a")
    assert vendors(hooks) == ["z"]
