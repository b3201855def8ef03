"""Exactly one storage driver, chosen by name, and never another one instead."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamaman import ConfigError, StorageConfig, StoreCorrupt
from llamaman.core.hooks import Hooks
from llamaman.core.storage import GROUP, driver_name, load_driver, open_store

URL = "sqlite:////tmp/llamaman-test.db"

DRIVER = """
from llamaman import hookimpl

@hookimpl
def storage(config):
    return None
"""

FALSY_DRIVER = """
from llamaman import hookimpl

class Driver:
    def __len__(self):
        return 0

    @hookimpl
    def storage(self, config):
        return None

driver = Driver()
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path for drivers that only this test sees; stevedore's caches are kept out of it."""
    from stevedore import _cache
    from stevedore.extension import ExtensionManager

    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(ExtensionManager, "ENTRY_POINT_CACHE", {})
    monkeypatch.setattr(_cache._c, "_disable_caching", True)
    before = set(sys.modules)
    yield folder
    for module in set(sys.modules) - before:
        if module.startswith("driver_"):
            del sys.modules[module]


def install(site: Path, name: str, code: str, dist: str = "other-store") -> None:
    module = f"driver_{dist.replace('-', '_')}"
    (site / f"{module}.py").write_text(code)
    info = site / f"{dist.replace('-', '_')}-3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 3.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}\n")


@pytest.mark.parametrize(
    ("choice", "url", "driver"),
    [
        ("auto", None, "json"),
        ("auto", "", "json"),
        ("auto", URL, "sql"),
        ("json", None, "json"),
        ("sql", URL, "sql"),
    ],
)
def test_the_environment_decides_on_the_driver(choice: str, url: str | None, driver: str) -> None:
    assert driver_name(choice, url) == driver


@pytest.mark.parametrize(("choice", "url"), [("json", URL), ("sql", None)])
def test_a_contradiction_is_refused_naming_both_variables(choice: str, url: str | None) -> None:
    with pytest.raises(ConfigError, match=r"LLAMAMAN_STORAGE.*DATABASE_URL"):
        driver_name(choice, url)


def test_the_json_driver_opens_and_keeps_what_it_is_given(tmp_path: Path) -> None:
    config = StorageConfig(tmp_path, "n1")
    opened = open_store("auto", config, Hooks())
    assert (opened.record.name, opened.record.dist) == ("store_json", "llamaman-store-json")
    assert opened.record.hooks == ("storage",)
    opened.store.put("presets", "a", 1)
    opened.store.close()
    again = open_store("json", config, Hooks())
    assert [document.value for document in again.store.list("presets")] == [1]
    again.store.close()


def test_a_corrupt_file_stops_the_boot_and_nothing_else_is_opened(tmp_path: Path) -> None:
    config = StorageConfig(tmp_path, "n1")
    open_store("json", config, Hooks()).store.close()
    (tmp_path / "users.json").write_text("")
    with pytest.raises(StoreCorrupt, match=r"users\.json"):
        open_store("auto", config, Hooks())


def test_a_database_url_without_its_driver_is_a_configuration_error_with_the_cure(
    tmp_path: Path, site: Path
) -> None:
    hooks = Hooks()
    with pytest.raises(ConfigError, match="pip install llamaman-store-sql") as refusal:
        open_store("auto", StorageConfig(tmp_path, "n1", URL), hooks)
    assert refusal.value.exit_status == 78
    assert not hooks.has("storage")
    assert not (tmp_path / "users.json").exists(), "JSON must not be opened instead"
    assert URL not in str(refusal.value)


def test_only_the_chosen_driver_is_imported(site: Path, tmp_path: Path) -> None:
    install(site, "other", "raise RuntimeError('imported')")
    open_store("json", StorageConfig(tmp_path, "n1"), Hooks()).store.close()
    assert "driver_other_store" not in sys.modules


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import no_such_module_here", "no_such_module_here"),
        ("raise RuntimeError('mine')", "mine"),
        ("import sys; sys.exit(4)", r"exit\(4\)"),
        ("x = 1", "does not implement the hook 'storage'"),
        ("from llamaman import hookimpl\n@hookimpl\ndef storag(config): ...", "no hook 'storag'"),
    ],
)
def test_a_driver_that_cannot_be_used_is_a_configuration_error(site: Path, code: str, why: str) -> None:
    install(site, "other", code)
    hooks = Hooks()
    with pytest.raises(ConfigError, match=why):
        load_driver("other", hooks)
    assert not hooks.has("storage")


def test_a_driver_installed_twice_is_a_configuration_error(site: Path) -> None:
    install(site, "other", DRIVER, "store-one")
    install(site, "other", DRIVER, "store-two")
    with pytest.raises(ConfigError, match="more than once, by store-one and store-two"):
        load_driver("other", Hooks())
    assert not {"driver_store_one", "driver_store_two"} & set(sys.modules)


def test_a_driver_may_be_falsy(site: Path) -> None:
    """stevedore's ``driver`` gives the class instead of such an instance."""
    install(site, "other", FALSY_DRIVER)
    (site / "other_store-3.0.dist-info" / "entry_points.txt").write_text(
        f"[{GROUP}]\nother = driver_other_store:driver\n"
    )
    hooks = Hooks()
    record = load_driver("other", hooks)
    assert (record.name, record.dist, record.version, record.hooks) == (
        "store_other",
        "other-store",
        "3.0",
        ("storage",),
    )
