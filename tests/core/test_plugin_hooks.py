"""One test per hook, ``test_hook_<name>``: registered as a plugin would be, called as the kernel calls it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from llamaman import (
    Collection,
    ForwardCall,
    ForwardRecord,
    GpuDevice,
    GpuInventory,
    InstanceEvent,
    Job,
    LaunchError,
    LaunchRequest,
    Panel,
    PluginError,
    ProbeContext,
    Put,
    Reject,
    RouteSet,
    SpecPatch,
    StorageConfig,
    StoreCorrupt,
    StreamRoute,
    Target,
    Usage,
    hookimpl,
)
from llamaman.access import Access
from llamaman.core.events import Events
from llamaman.core.facade import Facades, PluginKernel, Services
from llamaman.core.hooks import Hooks
from llamaman.core.setting import Setting
from llamaman.core.store import Store
from llamaman.hookspecs import HOOKS
from llamaman.records import NOBODY, ContainerSpec, Mount, State
from llamaman_store_json import JsonStore

LAUNCH = LaunchRequest(Path("/models/tiny.gguf"), {})
SPEC = ContainerSpec("image", ("--model", "/models/tiny.gguf"), {})
RECORD = ForwardRecord(
    request_id="r1",
    surface="proxy",
    dialect="openai",
    path="/v1/completions",
    model="tiny",
    instance_id=None,
    actor="none",
    key_id=None,
    status=200,
    stream=False,
    started=0.0,
    duration_s=1.0,
    queued_s=0.0,
    usage=Usage(),
    outcome="complete",
)
EVENT = InstanceEvent("i1", "tiny", 1, State.READY, State.STARTING, "it answers", "local:root", 0.0)


def plugin(**functions: Callable[..., Any]) -> SimpleNamespace:
    return SimpleNamespace(**{name: hookimpl(function) for name, function in functions.items()})


def hooks_with(strict: bool = False, **plugins: SimpleNamespace) -> Hooks:
    hooks = Hooks(strict=strict)
    for name, each in plugins.items():
        hooks.register(name, each, storage=True)
    return hooks


def call(**body: Any) -> ForwardCall:
    return ForwardCall("r1", "proxy", "openai", "/v1/chat/completions", "tiny", NOBODY, False, body)


def failing() -> Any:
    raise ValueError("mine")


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = JsonStore(tmp_path)
    yield store
    store.close()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def facades(store: Store, events: Events) -> Facades:
    return Facades(
        Services(
            node="n1",
            version="0.1.0",
            setting={"a.mode": "on"}.__getitem__,
            models=tuple,
            instances=tuple,
            events=events,
            store=lambda: store,
            owner_of_collection={"a.notes": "a"}.get,
        )
    )


def test_every_hook_has_a_test() -> None:
    missing = [name for name in HOOKS if f"test_hook_{name}" not in globals()]
    assert missing == []


def test_hook_gpu_probe() -> None:
    inventory = GpuInventory("cuda", (GpuDevice(0, "H200", "cuda", memory_total=1 << 37),))
    seen: list[ProbeContext] = []

    def gpu_probe(context: ProbeContext) -> GpuInventory:
        seen.append(context)
        return inventory

    hooks = hooks_with(gpu_nvidia=plugin(gpu_probe=gpu_probe), gpu_rocm=plugin(gpu_probe=lambda: None))
    context = ProbeContext(Path("/sys"))
    assert hooks.gpu_probe(context) == [inventory]
    assert seen == [context]


def test_hook_container_spec() -> None:
    def nvidia(request: LaunchRequest, spec: ContainerSpec) -> SpecPatch:
        assert (request, spec) == (LAUNCH, SPEC)
        return SpecPatch(env={"A": "1"}, devices=("/dev/nvidia0",), device_requests=({"Count": -1},))

    intel = plugin(
        container_spec=lambda: SpecPatch(env={"A": "1", "B": "2"}, devices=("/dev/dri", "/dev/nvidia0"))
    )
    hooks = hooks_with(b=plugin(container_spec=nvidia), a=intel, c=plugin(container_spec=lambda: None))
    patch = hooks.container_spec(LAUNCH, SPEC)
    assert patch == SpecPatch(
        env={"A": "1", "B": "2"}, devices=("/dev/dri", "/dev/nvidia0"), device_requests=({"Count": -1},)
    )


def test_what_plugins_add_to_a_container_is_united_and_what_they_agree_on_is_there_once() -> None:
    one, two = Mount("/host/a", "/a"), Mount("/host/b", "/b")
    first = SpecPatch(mounts=(one,), host_config={"ShmSize": 1, "Ulimits": [{"Name": "core"}]})
    second = SpecPatch(mounts=(one, two), host_config={"ShmSize": 1, "Runtime": "nvidia"}, groups=("44",))
    hooks = hooks_with(a=plugin(container_spec=lambda: first), b=plugin(container_spec=lambda: second))
    assert hooks.container_spec(LAUNCH, SPEC) == SpecPatch(
        mounts=(one, two),
        groups=("44",),
        host_config={"ShmSize": 1, "Ulimits": [{"Name": "core"}], "Runtime": "nvidia"},
    )


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (SpecPatch(image="x"), SpecPatch(image="y"), "image"),
        (SpecPatch(env={"A": "1"}), SpecPatch(env={"A": "2"}), "environment variable A"),
        (SpecPatch(host_config={"ShmSize": 1}), SpecPatch(host_config={"ShmSize": 2}), "HostConfig ShmSize"),
        (SpecPatch(mounts=(Mount("/a", "/m"),)), SpecPatch(mounts=(Mount("/b", "/m"),)), "mount at /m"),
        (
            SpecPatch(mounts=(Mount("/a", "/m"),)),
            SpecPatch(mounts=(Mount("/a", "/m", False),)),
            "mount at /m",
        ),
    ],
)
def test_two_plugins_that_disagree_about_a_container_are_both_named(
    first: SpecPatch, second: SpecPatch, what: str
) -> None:
    hooks = hooks_with(a=plugin(container_spec=lambda: first), b=plugin(container_spec=lambda: second))
    with pytest.raises(LaunchError, match=rf"'a' and 'b' disagree.*{what}"):
        hooks.container_spec(LAUNCH, SPEC)


def test_a_plugin_that_cannot_prepare_a_container_ends_the_launch_by_name() -> None:
    with pytest.raises(LaunchError, match=r"plugin 'a'.*mine"):
        hooks_with(a=plugin(container_spec=failing)).container_spec(LAUNCH, SPEC)


def test_hook_storage(tmp_path: Path) -> None:
    hooks = hooks_with(store_json=plugin(storage=lambda config: JsonStore(config.data_dir)))
    store = hooks.storage(StorageConfig(tmp_path, "n1"))
    store.put("presets", "a", 1)
    store.close()


def test_a_storage_drivers_own_errors_pass_and_others_name_it(tmp_path: Path) -> None:
    config = StorageConfig(tmp_path, "n1")

    def corrupt() -> Any:
        raise StoreCorrupt("state.json")

    with pytest.raises(StoreCorrupt):
        hooks_with(store_x=plugin(storage=corrupt)).storage(config)
    with pytest.raises(PluginError, match=r"store_x.*mine"):
        hooks_with(store_x=plugin(storage=failing)).storage(config)
    with pytest.raises(PluginError, match="must return a Store, not dict"):
        hooks_with(store_x=plugin(storage=lambda: {"not": "a store"})).storage(config)


def test_there_is_exactly_one_storage_driver(tmp_path: Path) -> None:
    config = StorageConfig(tmp_path, "n1")
    with pytest.raises(PluginError, match="not none"):
        Hooks().storage(config)
    two = hooks_with(a=plugin(storage=lambda: None), b=plugin(storage=lambda: None))
    with pytest.raises(PluginError, match="not a, b"):
        two.storage(config)


def test_hook_route_register(facades: Facades) -> None:
    async def stream() -> Any:
        yield b""

    class Dialect:
        name = "d"
        routes = ()

        def open(self, request: Any) -> Any: ...
        def check(self, intent: Any, model: Any) -> None: ...
        def serve(self, intent: Any, model: Any, lease: Any) -> Any: ...
        def error(self, error: Any, *, started: bool) -> Any: ...
        def waiting(self, phase: Any, seconds: float) -> Any: ...

    routes = [
        RouteSet(SimpleNamespace(name="bp")),  # type: ignore[arg-type] # no Flask is needed to pass one on
        StreamRoute("GET", "/x", Access.VIEW, lambda _identity, _values: stream()),
        Dialect(),
    ]
    kernels: list[PluginKernel] = []

    def route_register(kernel: PluginKernel) -> list[Any]:
        kernels.append(kernel)
        return routes

    hooks = hooks_with(
        a=plugin(route_register=route_register), b=plugin(route_register=lambda: ["/not/a/route"])
    )
    found = hooks.route_register(facades)
    assert [(each.plugin, each.value) for each in found] == [("a", route) for route in routes]
    assert kernels[0].node == "n1"
    assert "str" in hooks.broken()["b"]


def test_hook_admit() -> None:
    refusal = Reject(429, "closed on Sundays", retry_after=3600)
    hooks = hooks_with(a=plugin(admit=lambda call: None), b=plugin(admit=lambda call: refusal))
    assert hooks.admit(call()) == refusal
    assert Hooks().admit(call()) is None


def test_hook_pre_forward() -> None:
    hooks = hooks_with(a=plugin(pre_forward=lambda call: {"options.seed": call.body["n"]}))
    assert hooks.pre_forward(call(n=7)) == {"options.seed": 7}
    assert Hooks().pre_forward(call()) is None


def test_hook_post_forward() -> None:
    seen: list[ForwardRecord] = []

    def post_forward(record: ForwardRecord) -> None:
        seen.append(record)

    hooks = hooks_with(a=plugin(post_forward=failing), b=plugin(post_forward=post_forward))
    hooks.post_forward(RECORD)
    assert seen == [RECORD]


def test_hook_instance_event() -> None:
    seen: list[InstanceEvent] = []

    def instance_event(event: InstanceEvent) -> None:
        seen.append(event)

    hooks = hooks_with(a=plugin(instance_event=failing), b=plugin(instance_event=instance_event))
    hooks.instance_event(EVENT)
    assert seen == [EVENT]


def test_hook_candidates() -> None:
    target = Target("n2", "http://n2:5000", 0.5)
    hooks = hooks_with(a=plugin(candidates=failing), b=plugin(candidates=lambda call: [target]))
    assert hooks.candidates(call()) == [target]


def test_hook_runtime_register() -> None:
    nothing = lambda *_arguments: None  # noqa: E731 # the shape counts here, not what it does
    runtime = SimpleNamespace(
        name="process",
        engines=nothing,
        start=nothing,
        stop=nothing,
        watch=nothing,
        inspect=nothing,
        find=nothing,
    )
    hooks = hooks_with(
        a=plugin(runtime_register=lambda: [runtime]), b=plugin(runtime_register=lambda: [object()])
    )
    assert [each.value for each in hooks.runtime_register()] == [runtime]
    assert "lacks name, engines, start" in hooks.broken()["b"]


def test_hook_setting_declare() -> None:
    setting = Setting("mode", "text", "off", "Whether to.")
    hooks = hooks_with(
        a=plugin(setting_declare=lambda: [setting]),
        b=plugin(setting_declare=lambda: None, admit=lambda: None),
    )
    assert [(each.plugin, each.value) for each in hooks.setting_declare()] == [("a", setting)]
    assert "setting_declare failed" in hooks.broken()["b"]
    assert not hooks.has("admit"), "a plugin whose settings are unknown must not run"


def test_hook_collection_declare() -> None:
    collection = Collection("a.notes")
    hooks = hooks_with(a=plugin(collection_declare=lambda: (collection,)))
    assert [(each.plugin, each.value) for each in hooks.collection_declare()] == [("a", collection)]


def test_hook_panel_declare() -> None:
    late = Panel("nav", "Late", "x.html", dict, order=200)
    early = Panel("nav", "Early", "x.html", dict, order=1)
    hooks = hooks_with(a=plugin(panel_declare=lambda: [late]), b=plugin(panel_declare=lambda: [early]))
    assert [each.value for each in hooks.panel_declare()] == [early, late]


def test_hook_job_declare() -> None:
    job = Job("sweep", 60, lambda: None)
    hooks = hooks_with(a=plugin(job_declare=lambda: [job]))
    assert [(each.plugin, each.value) for each in hooks.job_declare()] == [("a", job)]


def test_hook_command_declare() -> None:
    command = click.Command("record")
    hooks = hooks_with(a=plugin(command_declare=lambda: [command]), b=plugin(command_declare=lambda: [print]))
    assert [each.value for each in hooks.command_declare()] == [command]
    assert "b" in hooks.broken()


def test_hook_startup(facades: Facades, events: Events) -> None:
    def startup(kernel: PluginKernel) -> None:
        kernel.publish("cluster", "joined", {"n": 1}, reason="started")

    hooks = hooks_with(a=plugin(startup=failing), b=plugin(startup=startup))
    hooks.startup(facades)
    assert [(event.actor, event.kind) for event in events.since("cluster", 0)] == [("plugin:b", "joined")]
    assert "startup failed: ValueError: mine" in hooks.broken()["a"]


def test_hook_shutdown(facades: Facades) -> None:
    order: list[str] = []
    hooks = hooks_with(
        a=plugin(shutdown=lambda kernel: order.append("a")),
        b=plugin(shutdown=failing),
        c=plugin(shutdown=lambda kernel: order.append("c")),
    )
    hooks.shutdown(facades)
    assert order == ["c", "a"]


def test_a_plugin_that_hangs_in_shutdown_does_not_keep_the_others_from_theirs(facades: Facades) -> None:
    order: list[str] = []
    release = threading.Event()
    hooks = hooks_with(
        a=plugin(shutdown=lambda: order.append("a")), b=plugin(shutdown=lambda: release.wait(120) and None)
    )
    started = time.monotonic()
    hooks.shutdown(facades, budget_s=0.1)
    assert time.monotonic() - started < 60, "it waited for the one that hangs"
    while not order and time.monotonic() - started < 60:  # its share of the time may have been short
        time.sleep(0.005)
    release.set()
    assert order == ["a"]


def test_strict_raises_where_a_plugin_would_be_left_out(facades: Facades) -> None:
    hooks = hooks_with(strict=True, a=plugin(startup=failing, job_declare=lambda: None))
    with pytest.raises(PluginError, match="plugin 'a'"):
        hooks.startup(facades)
    with pytest.raises(PluginError, match="plugin 'a'"):
        hooks.job_declare()


# --- the façade -------------------------------------------------------------------------------------------


def test_a_plugin_owns_the_collections_it_declared_and_no_others(facades: Facades, store: Store) -> None:
    notes = facades.for_plugin("a").collection("a.notes")
    version = notes.put("x", 1, expected=0)
    notes.batch([Put("y", 2)])
    assert notes.get("x") == store.get("a.notes", "x")
    assert [document.key for document in notes.list()] == ["x", "y"]
    assert notes.delete("x", expected=version)
    assert notes.watch(0).resync
    for name in ("users", "a.notes"):
        with pytest.raises(PluginError, match=f"'{name}'"):
            facades.for_plugin("b").collection(name)


def test_the_facade_shows_what_it_promises_and_cannot_be_changed(facades: Facades) -> None:
    kernel = facades.for_plugin("a")
    assert (kernel.node, kernel.version, kernel.setting("a.mode"), kernel.models(), kernel.instances()) == (
        "n1", "0.1.0", "on", (), (),
    )  # fmt: skip
    with pytest.raises(KeyError):
        kernel.setting("unknown")
    with pytest.raises(AttributeError):
        kernel.node = "n2"  # type: ignore[misc] # that it is refused is the point
    with pytest.raises(AttributeError):
        kernel.extra = 1  # type: ignore[attr-defined] # the same


def test_the_facade_has_the_frozen_methods_and_nothing_else(facades: Facades) -> None:
    kernel = facades.for_plugin("a")
    assert {name for name in dir(kernel) if not name.startswith("_")} == {
        "collection", "instances", "models", "node", "publish", "setting", "version",
    }  # fmt: skip
