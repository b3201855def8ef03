"""Plugins are found by metadata, judged before import, and isolated when broken. Real distributions on disk."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamaman import PluginError, ProbeContext
from llamaman.core.discovery import GROUP, discover, installed, with_failures
from llamaman.core.hooks import Hooks
from llamaman.records import PluginRecord

GOOD = """
from llamaman import GpuInventory, hookimpl

@hookimpl
def gpu_probe(context):
    return GpuInventory(__name__, ())
"""

Install = Callable[..., None]


class Site:
    """A folder of installed distributions that only tests can see."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: list[str] = []

    def install(
        self,
        name: str,
        code: str = GOOD,
        *,
        dist: str | None = None,
        version: str = "1.2",
        requires: tuple[str, ...] = (),
    ) -> None:
        dist = dist or f"llamaman-{name}"
        module = f"site_{dist.replace('-', '_')}_{name}"
        self.modules.append(module)
        (self.path / f"{module}.py").write_text(code)
        info = self.path / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = [f"Name: {dist}", f"Version: {version}", *(f"Requires-Dist: {line}" for line in requires)]
        (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}\n")

    def entry_points(self) -> list[importlib.metadata.EntryPoint]:
        return [
            entry_point
            for dist in importlib.metadata.distributions(path=[str(self.path)])
            for entry_point in dist.entry_points
            if entry_point.group == GROUP
        ]

    def load(self, hooks: Hooks | None = None, **options: Any) -> dict[str, PluginRecord]:
        records = discover(hooks or Hooks(), entry_points=self.entry_points(), **options)
        assert [record.name for record in records] == sorted(record.name for record in records)
        return {record.name: record for record in records}

    def imported(self) -> set[str]:
        return {module for module in self.modules if module in sys.modules}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(tmp_path)
    site = Site(tmp_path)
    yield site
    for module in site.modules:
        sys.modules.pop(module, None)


def test_a_good_plugin_is_active_with_name_version_and_hooks(site: Site) -> None:
    site.install("gpu")
    hooks = Hooks()
    record = site.load(hooks)["gpu"]
    assert record == PluginRecord("gpu", "llamaman-gpu", "1.2", "active", None, ("gpu_probe",))
    assert len(hooks.gpu_probe(ProbeContext())) == 1


def test_one_good_plugin_lives_among_every_kind_of_broken_one(site: Site) -> None:
    site.install("good")
    site.install("missing", "import no_such_module_here")
    site.install("raising", "raise RuntimeError('line one\\nline two')")
    site.install("exiting", "import sys; sys.exit(3)")
    site.install("syntax", "def (")
    site.install("misspelt", "from llamaman import hookimpl\n@hookimpl\ndef gpu_prob(context): ...")
    site.install(
        "wrapping", "from llamaman import hookimpl\n@hookimpl(wrapper=True)\ndef gpu_probe(): return (yield)"
    )
    site.install("storing", "from llamaman import hookimpl\n@hookimpl\ndef storage(config): ...")
    site.install("newer", requires=("llamaman>=99",))
    site.install("unreadable", requires=("???",))
    hooks = Hooks()
    records = site.load(hooks)
    assert {name: record.state for name, record in records.items()} == {
        "good": "active", "missing": "broken", "raising": "broken", "exiting": "broken", "syntax": "broken",
        "misspelt": "broken", "wrapping": "broken", "storing": "broken", "newer": "incompatible",
        "unreadable": "broken",
    }  # fmt: skip
    assert records["missing"].reason == "import failed: no module named 'no_such_module_here'"
    assert records["raising"].reason == "import failed: RuntimeError: line one"
    assert "SystemExit: 3" in (records["exiting"].reason or "")
    assert "no hook 'gpu_prob'" in (records["misspelt"].reason or "")
    assert "llamaman.storage" in (records["storing"].reason or "")
    assert "llamaman>=99" in (records["newer"].reason or "")
    assert all(record.hooks == () for record in records.values() if record.state != "active")
    assert all("\n" not in (record.reason or "") for record in records.values())
    assert {report.plugin for report in hooks.report()} == {"good"}


def test_two_distributions_claiming_a_name_are_both_named_and_neither_is_imported(site: Site) -> None:
    site.install("gpu", dist="llamaman-one")
    site.install("gpu", dist="llamaman-two")
    record = site.load()["gpu"]
    assert record.state == "broken"
    assert record.reason == "claimed by llamaman-one and llamaman-two: uninstall one of them"
    assert site.imported() == set()


def test_the_same_distribution_seen_twice_is_one_plugin(site: Site) -> None:
    site.install("gpu")
    records = discover(Hooks(), entry_points=[*site.entry_points(), *site.entry_points()])
    assert [record.state for record in records] == ["active"]


def test_a_disabled_plugin_is_never_imported(site: Site) -> None:
    site.install("a", "raise RuntimeError('imported')")
    site.install("b")
    records = site.load(disabled=frozenset({"a"}))
    assert (records["a"].state, records["b"].state) == ("disabled", "active")
    assert "LLAMAMAN_PLUGINS_DISABLED" in (records["a"].reason or "")
    assert records["a"].version == "1.2"
    assert len(site.imported()) == 1


def test_with_a_list_of_wanted_ones_nothing_else_is_imported(site: Site) -> None:
    for name in ("a", "b", "c"):
        site.install(name)
    records = site.load(only=frozenset({"a", "b"}), disabled=frozenset({"b"}))
    assert {name: record.state for name, record in records.items()} == {
        "a": "active",
        "b": "disabled",
        "c": "disabled",
    }
    assert len(site.imported()) == 1
    assert all(record.state == "disabled" for record in site.load(only=frozenset()).values())


def test_a_name_in_a_list_that_is_not_installed_is_warned_about(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.load(disabled=frozenset({"gpu_nvdia"}))
    assert "gpu_nvdia" in caplog.text


@pytest.mark.parametrize(
    ("requires", "state"),
    [
        ((), "active"),
        (("llamaman~=0.1.0", "requests"), "active"),
        (("LlamaMan>=0.1,<0.2",), "active"),
        (("llamaman>=0.2",), "incompatible"),
        (("llamaman<0.1",), "incompatible"),
        (('llamaman>=9; extra == "dev"',), "active"),
        (('llamaman>=9; python_version < "3"',), "active"),
        (("llamaman-store-json>=9",), "active"),
    ],
)
def test_the_declared_requirement_is_checked_before_import(
    site: Site, requires: tuple[str, ...], state: str
) -> None:
    site.install("a", requires=requires)
    assert site.load(version="0.1.5")["a"].state == state
    assert bool(site.imported()) is (state == "active")


def test_a_development_version_of_ours_satisfies_its_own_series(site: Site) -> None:
    site.install("a", requires=("llamaman~=0.1.0",))
    assert site.load(version="0.1.1.dev3")["a"].state == "active"


@pytest.mark.parametrize("code", ["raise RuntimeError('mine')", "import sys; sys.exit()"])
def test_strict_raises_naming_the_plugin(site: Site, code: str) -> None:
    site.install("a", code)
    with pytest.raises(PluginError, match="plugin 'a': broken"):
        site.load(strict=True)


def test_strict_raises_for_an_incompatible_one_and_not_for_a_disabled_one(site: Site) -> None:
    site.install("a", requires=("llamaman>=99",))
    assert site.load(strict=True, disabled=frozenset({"a"}))["a"].state == "disabled"
    with pytest.raises(PluginError, match="incompatible"):
        site.load(strict=True)


def test_the_order_does_not_depend_on_the_file_system(site: Site) -> None:
    for name in ("c", "a", "b"):
        site.install(name)
    hooks = Hooks()
    records = discover(hooks, entry_points=list(reversed(site.entry_points())))
    assert [record.name for record in records] == ["a", "b", "c"]
    assert hooks.order("gpu_probe") == ("a", "b", "c")


def test_nothing_is_read_from_the_machine_when_entry_points_are_given() -> None:
    assert discover(Hooks(), entry_points=()) == ()


def test_the_first_party_plugins_of_this_environment_are_found() -> None:
    """The installed checkout itself; what else is installed does not matter."""
    assert "api_openai" in {entry_point.name for entry_point in installed()}


def test_what_fails_after_loading_is_shown_as_broken() -> None:
    records = (PluginRecord("a", None, None, "active"), PluginRecord("b", None, None, "active"))
    assert with_failures(records, {"b": "startup failed"}) == (
        records[0],
        PluginRecord("b", None, None, "broken", "startup failed"),
    )
