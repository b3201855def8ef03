"""The life of a plugin in a real manager: which hooks are called, in which order, on which threads.

The picture in docs/plugins.md is this test in words. A hook that is called for the first time fails it here:
take it out of NOT_CALLED_YET, give it its place below and in the picture.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from llamaman.hookspecs import HOOKS
from llamaman.testing.engines import available_engines
from llamaman.testing.manager import Manager

#: Their callers (GPU sampling, cluster, pages, further commands) are still to come.
NOT_CALLED_YET = {"gpu_probe", "candidates", "panel_declare", "command_declare"}
#: Here no container is made: tests/e2e/docker/test_container_spec.py.
OF_CONTAINERS = {"container_spec"}
#: Only a storage driver may implement it; its place is seen in the trace.
OF_DRIVERS = {"storage"}
BOOT = [
    "setting_declare",
    "runtime_register",
    "collection_declare",
    "route_register",
    "job_declare",
    "startup",
]


class Note(NamedTuple):
    """One call."""

    hook: str
    thread: str
    about: str


class Kitchen:
    """A manager with the kitchen-sink plugin beside the first-party ones."""

    def __init__(self, folder: Path, fails: str = "") -> None:
        site = folder / "site"
        info = site / "kitchen-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: kitchen\nVersion: 1.0\n", encoding="utf-8"
        )
        (info / "entry_points.txt").write_text(
            "[llamaman.plugins]\nkitchen = kitchen_plugin\n", encoding="utf-8"
        )
        shutil.copy(Path(__file__).with_name("kitchen_plugin.py"), site)
        self.path = folder / "notes"
        self.path.touch()
        env = {"PYTHONPATH": str(site), "KITCHEN_NOTES": str(self.path), "KITCHEN_FAILS": fails}
        self.manager = Manager(folder / "m", env={**env, "LLAMAMAN_TRACE_PLUGINS": "1"})

    def notes(self) -> list[Note]:
        """Every call so far."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [Note(*line.split(" ", 2)) for line in lines]

    def called(self) -> list[str]:
        """The hooks called so far, in the order of their first call."""
        return list(dict.fromkeys(each.hook for each in self.notes() if each.hook != "job"))

    def of(self, hook: str) -> list[Note]:
        """The calls of one hook."""
        return [each for each in self.notes() if each.hook == hook]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Kitchen]:
    """One whole life: boot, a request that launches a model, the end."""
    (engine,) = (each for each in available_engines() if each.name == "embedded")
    if engine.missing:
        pytest.skip(engine.missing)
    kitchen = Kitchen(tmp_path_factory.mktemp("kitchen"))
    manager = kitchen.manager
    shutil.copy(tiny_model, manager.models / "tiny.gguf")
    with manager:
        manager.preset("tiny")
        answer = manager.chat("tiny")
        assert answer.status == 200, answer.text
        for hook in ("post_forward", "job"):
            manager.until(lambda hook=hook: kitchen.of(hook), f"{hook} to be called")  # type: ignore[misc] # mypy cannot infer a lambda with a default
        assert manager.terminate() == 0
        yield kitchen


@pytest.mark.real("embedded engine")
def test_every_hook_that_has_a_caller_is_called(life: Kitchen) -> None:
    assert set(life.called()) == set(HOOKS) - NOT_CALLED_YET - OF_CONTAINERS - OF_DRIVERS


@pytest.mark.real("embedded engine")
def test_boot_calls_what_plugins_declare_in_the_order_of_the_picture(life: Kitchen) -> None:
    boot = [each.hook for each in life.notes() if each.hook in BOOT]
    assert boot == BOOT, "each once, in this order"


@pytest.mark.real("embedded engine")
def test_the_store_is_open_before_any_plugin_is_asked(life: Kitchen) -> None:
    traced = re.findall(r"(\w+)\.(\w+) -> \w+ in ", life.manager.output())
    assert traced[0] == ("store_json", "storage")
    assert ("kitchen", "startup") in traced


@pytest.mark.real("embedded engine")
def test_a_request_passes_its_hooks_in_order(life: Kitchen) -> None:
    passed = [each.hook for each in life.notes() if each.hook in ("admit", "pre_forward", "post_forward")]
    assert passed == ["admit", "pre_forward", "post_forward"]
    assert life.of("post_forward")[0].about == "complete"


@pytest.mark.real("embedded engine")
def test_the_transitions_of_an_instance_come_in_order(life: Kitchen) -> None:
    states = [each.about for each in life.of("instance_event")]
    assert states == ["queued", "preparing", "starting", "ready", "stopping", "sleeping"]


@pytest.mark.real("embedded engine")
def test_each_hook_runs_on_the_thread_that_its_page_names(life: Kitchen) -> None:
    threads = {each.hook: each.thread for each in life.notes()}
    assert {threads[hook] for hook in (*BOOT, "admit")} == {"MainThread"}
    assert threads["pre_forward"] != "MainThread", "it is not marked nonblocking"
    assert threads["post_forward"] == "post-forward"
    assert threads["instance_event"] == "instance-events"
    assert threads["job"].startswith("job-")
    assert threads["shutdown"] != "MainThread"


@pytest.mark.real("embedded engine")
def test_shutdown_is_called_once_and_may_still_use_the_store(life: Kitchen) -> None:
    assert len(life.of("shutdown")) == 1
    with life.manager as again:
        assert again.is_alive
        stored = (again.data / "kitchen.notes.json").read_text(encoding="utf-8")
    assert '"ended"' in stored


@pytest.mark.parametrize("hook", BOOT)
def test_a_plugin_that_fails_at_boot_is_shown_as_broken_and_nothing_else_suffers(
    hook: str, tmp_path: Path
) -> None:
    with Kitchen(tmp_path, fails=hook).manager as manager:
        plugins = {each["name"]: each for each in manager.manage("GET", "/api/plugins")}
        assert plugins["kitchen"]["state"] == "broken"
        assert f"{hook} failed: RuntimeError: {hook} is made to fail" in plugins["kitchen"]["reason"]
        assert plugins["api_openai"]["state"] == "active"
        assert manager.admin("GET", "/api/instances").status == 200
