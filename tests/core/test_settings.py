"""Run-time settings: declared once, checked strictly, durable before they count."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from llamaman.core.settings import COLLECTION, Setting, Settings
from llamaman.core.settings_table import CORE_SETTINGS
from llamaman.core.store import Changes, Delete, Document, Put, Store
from llamaman.errors import ConfigError, InvalidField, InvalidRequest, StoreReadOnly

#: The documented settings body, verbatim.
DOCUMENTED_BODY: dict[str, Any] = {
    "require_auth": True,
    "admin_ui_enforce_max_models": False,
    "allow_ollama_api_override_admin": False,
    "auto_retry_failed_downloads": False,
    "retry_count_per_failed_download": 3,
    "cleanup": {
        "downloads_enabled": True,
        "downloads_max_age_hours": 24,
        "downloads_last_run_at": 1710000000,
        "instances_enabled": False,
        "instances_max_age_hours": 48,
        "instances_last_run_at": 1710000000,
        "stale_records_enabled": False,
        "stale_records_interval_min": 5,
        "stale_records_last_run_at": None,
    },
}


class MemoryStore:
    """The Store contract in a dictionary."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], Document] = {}
        self.log: list[tuple[int, str, str]] = []
        self.full = False

    def get(self, collection: str, key: str) -> Document | None:
        return copy.deepcopy(self.documents.get((collection, key)))

    def list(self, collection: str) -> Any:
        return [copy.deepcopy(doc) for (name, _), doc in sorted(self.documents.items()) if name == collection]

    def put(self, collection: str, key: str, value: Any, *, expected: int | None = None) -> int:
        if self.full:
            raise StoreReadOnly("the disk is full")
        version = len(self.log) + 1
        self.log.append((version, collection, key))
        self.documents[collection, key] = Document(key, version, copy.deepcopy(value))
        return version

    def delete(self, collection: str, key: str, *, expected: int | None = None) -> bool:
        return self.documents.pop((collection, key), None) is not None

    def batch(self, collection: str, operations: Sequence[Put | Delete]) -> Any:
        return [self.put(collection, op.key, op.value) for op in operations if isinstance(op, Put)]

    def watch(self, collection: str, since: int) -> Changes:
        keys = dict.fromkeys(key for version, name, key in self.log if name == collection and version > since)
        changed = tuple(self.documents[collection, key] for key in keys)
        return Changes(len(self.log), copy.deepcopy(changed), (), resync=since == 0)

    def probe(self) -> None: ...

    def close(self) -> None: ...


class Events:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Any, str]] = []

    def publish(self, topic: str, kind: str, data: Mapping[str, Any], *, actor: str, reason: str) -> None:
        self.seen.append((topic, kind, data, actor))


def opened(store: Store | None = None, node: str = "srv1", events: Events | None = None) -> Settings:
    settings = Settings(node, events=events)
    settings.declare(CORE_SETTINGS, "llamaman")
    settings.seal(store or MemoryStore())
    return settings


def test_the_memory_store_is_a_store() -> None:
    assert isinstance(MemoryStore(), Store)


class TestDeclaring:
    def test_two_owners_of_a_name_are_both_named(self) -> None:
        settings = Settings("srv1")
        settings.declare([Setting("a.b", "bool", False, "x")], "first")
        for name in ("a.b", "a", "a.b.c"):
            with pytest.raises(ConfigError) as caught:
                settings.declare([Setting(name, "bool", False, "x")], "second")
            assert "first" in caught.value.message
            assert "second" in caught.value.message
        settings.declare([Setting("a.bc", "bool", False, "x")], "second")

    def test_after_sealing_it_is_too_late_and_the_error_says_what_to_do(self) -> None:
        with pytest.raises(ConfigError, match="settings hook"):
            opened().declare([Setting("late", "bool", False, "x")], "plugin")

    def test_a_default_that_is_not_allowed_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="must be"):
            Settings("srv1").declare([Setting("n", "int", 0, "x", minimum=1)], "plugin")

    def test_sealing_twice_is_refused(self) -> None:
        settings = opened()
        with pytest.raises(ConfigError):
            settings.seal(MemoryStore())

    def test_reading_what_nobody_declared_is_an_error(self) -> None:
        with pytest.raises(KeyError, match="require_aut"):
            opened().get("require_aut")


class TestPrecedence:
    SETTINGS = (
        Setting("n", "int", 1, "x", env="X_N"),
        Setting("b", "bool", False, "x", env="X_B"),
        Setting("l", "list", [], "x", env="X_L"),
    )

    def make(self, environ: dict[str, str], store: Store) -> Settings:
        settings = Settings("srv1", environ=environ)
        settings.declare(self.SETTINGS, "plugin")
        settings.seal(store)
        return settings

    def test_default_then_environment_then_stored(self) -> None:
        store = MemoryStore()
        assert self.make({}, store).get("n") == 1
        settings = self.make({"X_N": "2", "X_B": "on", "X_L": "a, b"}, store)
        assert (settings.get("n"), settings.get("b"), settings.get("l")) == (2, True, ("a", "b"))
        settings.update({"n": 3}, "key:a")
        assert self.make({"X_N": "2"}, store).get("n") == 3
        assert [row["source"] for row in settings.describe()] == ["stored", "environment", "environment"]

    def test_a_bad_environment_value_names_the_variable(self) -> None:
        with pytest.raises(ConfigError, match="X_N"):
            self.make({"X_N": "many"}, MemoryStore())


class TestUpdating:
    def test_the_documented_body_is_taken_and_given_back(self) -> None:
        settings = opened()
        answer = settings.update(DOCUMENTED_BODY, "key:a")
        assert answer == settings.all()
        cleanup = dict(DOCUMENTED_BODY["cleanup"])
        expected = {name: value for name, value in cleanup.items() if not name.endswith("last_run_at")}
        assert expected.items() <= answer["cleanup"].items()
        assert answer["cleanup"]["downloads_last_run_at"] is None  # not the sender's to say
        assert answer["retry_count_per_failed_download"] == 3

    def test_what_was_read_can_be_sent_back(self) -> None:
        settings = opened()
        assert settings.update(settings.all(), "key:a") == settings.all()

    def test_a_change_merges_deeply_and_survives_a_restart(self) -> None:
        store = MemoryStore()
        settings = opened(store)
        settings.update({"cleanup": {"instances_enabled": True}}, "key:a")
        settings.update({"cleanup.instances_max_age_hours": 5}, "key:a")
        again = opened(store)
        assert again.get("cleanup.instances_enabled") is True
        assert again.get("cleanup.instances_max_age_hours") == 5
        assert again.get("cleanup.downloads_enabled") is False

    @pytest.mark.parametrize(
        ("patch", "field"),
        [
            ({"require_auht": True}, "require_auht"),
            ({"require_auth": "true"}, "require_auth"),
            ({"require_auth": 1}, "require_auth"),
            ({"require_auth": None}, "require_auth"),
            ({"retry_count_per_failed_download": 0}, "retry_count_per_failed_download"),
            ({"retry_count_per_failed_download": True}, "retry_count_per_failed_download"),
            ({"retry_count_per_failed_download": 2.5}, "retry_count_per_failed_download"),
            ({"global_speed_limit_mbps": float("nan")}, "global_speed_limit_mbps"),
            ({"recording_mode": "always"}, "recording_mode"),
            ({"cleanup": True}, "cleanup"),
            ({"cleanup": {"x": {"y": 1}}}, "cleanup.x"),
            ({"cleanup": {"instances_max_age_hours": "48"}}, "cleanup.instances_max_age_hours"),
            ({"_schema_version": 3}, "_schema_version"),
            ({"docker_images": {}}, "docker_images"),
        ],
    )
    def test_anything_wrong_is_named_and_nothing_is_changed(self, patch: dict[str, Any], field: str) -> None:
        store = MemoryStore()
        settings = opened(store)
        before = settings.all()
        with pytest.raises(InvalidField) as caught:
            settings.update({"auto_retry_failed_downloads": True} | patch, "key:a")
        assert caught.value.field == field
        assert settings.all() == before
        assert store.list(COLLECTION) == []

    def test_a_name_that_is_gone_says_what_to_do_instead(self) -> None:
        with pytest.raises(InvalidField, match="/api/images"):
            opened().update({"docker_images": {}}, "key:a")

    def test_a_body_that_is_no_object_is_refused(self) -> None:
        with pytest.raises(InvalidRequest):
            opened().update([1], "key:a")  # type: ignore[arg-type]  # what a JSON client may send

    def test_a_change_that_could_not_be_stored_does_not_count(self) -> None:
        store = MemoryStore()
        settings = opened(store)
        store.full = True
        with pytest.raises(StoreReadOnly):
            settings.update({"require_auth": False}, "key:a")
        assert settings.get("require_auth") is True

    def test_read_only_settings_are_set_by_the_program(self) -> None:
        settings = opened()
        settings.record("cleanup.downloads_last_run_at", 1.5)
        assert settings.get("cleanup.downloads_last_run_at") == 1.5


class TestTelling:
    def test_an_event_says_who_changed_what(self) -> None:
        events = Events()
        settings = opened(events=events)
        settings.update({"require_auth": False, "recording_mode": "off"}, "key:ada")
        told = {"settings": {"require_auth": {"old": True, "new": False}}}
        assert events.seen == [("settings", "changed", told, "key:ada")]

    def test_listeners_hear_of_changes_only_and_one_that_fails_does_not_silence_the_others(self) -> None:
        settings = opened()
        heard: list[dict[str, Any]] = []

        def broken(changed: Mapping[str, Any]) -> None:
            raise RuntimeError

        settings.subscribe(broken)
        stop = settings.subscribe(lambda changed: heard.append(dict(changed)))
        settings.update({"require_auth": False}, "key:a")
        settings.update({"require_auth": False}, "key:a")
        stop()
        settings.update({"require_auth": True}, "key:a")
        assert heard == [{"require_auth": False}]

    def test_a_secret_is_never_shown_and_its_mask_changes_nothing(self) -> None:
        events = Events()
        settings = Settings("srv1", events=events)
        settings.declare([Setting("token", "text", "", "x", secret=True)], "plugin")
        settings.seal(MemoryStore())
        settings.update({"token": "s3cr3t"}, "key:a")
        assert "s3cr3t" not in str((settings.all(), settings.describe(), events.seen))
        settings.update(settings.all(), "key:a")
        assert settings.get("token") == "s3cr3t"


class TestNodes:
    def test_a_node_setting_is_inherited_until_the_node_sets_its_own(self) -> None:
        store = MemoryStore()
        store.put(COLLECTION, "shared/admin_ui_enforce_max_models", True)
        one, two = opened(store, "srv1"), opened(store, "srv2")
        assert one.get("admin_ui_enforce_max_models") is True
        one.update({"admin_ui_enforce_max_models": False}, "key:a")
        two.refresh()
        assert two.get("admin_ui_enforce_max_models") is True
        assert one.get("admin_ui_enforce_max_models") is False

    def test_a_shared_setting_reaches_other_nodes_with_the_next_refresh(self) -> None:
        store = MemoryStore()
        one, two = opened(store, "srv1"), opened(store, "srv2")
        heard: list[Any] = []
        two.subscribe(heard.append)
        one.update({"require_auth": False}, "key:a")
        two.refresh()
        two.refresh()
        assert two.get("require_auth") is False
        assert heard == [{"require_auth": False}]


class TestSetAside:
    def test_unusable_values_are_neither_used_nor_lost(self) -> None:
        store = MemoryStore()
        store.put(COLLECTION, "shared/require_auth", "no")
        store.put(COLLECTION, "shared/of_a_plugin", 1)
        settings = opened(store)
        assert settings.get("require_auth") is True
        assert settings.set_aside.keys() == {"shared/require_auth", "shared/of_a_plugin"}
        settings.update({"auto_retry_failed_downloads": True}, "key:a")
        assert len(store.list(COLLECTION)) == 3
        settings.update({"require_auth": False}, "key:a")
        assert settings.get("require_auth") is False
        assert settings.set_aside.keys() == {"shared/of_a_plugin"}

    def test_what_is_wrong_on_another_node_is_that_nodes_to_tell(self) -> None:
        store = MemoryStore()
        store.put(COLLECTION, "node/srv2/admin_ui_enforce_max_models", "no")
        assert opened(store, "srv1").set_aside == {}
        assert opened(store, "srv2").set_aside.keys() == {"node/srv2/admin_ui_enforce_max_models"}
