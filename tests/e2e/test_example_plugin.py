"""The plugin of docs/plugins.md, in a real manager, found the way an installed plugin is found."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamaman.testing.manager import Manager
from llamaman.testing.wire import Answer, Request

PLUGIN = Path(__file__).parent.parent / "example_plugin"


def installed(folder: Path) -> dict[str, str]:
    """What `pip install -e` leaves behind, made from the example's own pyproject: metadata and a path."""
    project: dict[str, Any] = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    needs = "".join(f"Requires-Dist: {line}\n" for line in project["dependencies"])
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n{needs}"
    (info / "METADATA").write_text(head, encoding="utf-8")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    return {"PYTHONPATH": f"{folder}:{PLUGIN}"}


def ask(manager: Manager, question: object = "hello", key: str | None = None) -> Answer:
    body = {"model": "tiny", "question": question}
    secret = manager.inference_key if key is None else key
    return Request(manager.proxy_port, "POST", "/ask", key=secret, body=body, seconds=60).answer()


def test_the_example_plugin_does_what_its_page_says(
    embedded: object, new_manager: Callable[..., Manager], tmp_path: Path
) -> None:
    manager = new_manager(env=installed(tmp_path / "site"))
    (record,) = (each for each in manager.manage("GET", "/api/plugins") if each["name"] == "ask")
    assert (record["state"], record["version"], record["reason"]) == ("active", "0.1.0", None)
    manager.preset("tiny")

    # the dialect, its access level and its errors
    answer = ask(manager)
    assert answer.status == 200, answer.text
    assert answer.json()["answer"]
    assert ask(manager, key="wrong").status == 401
    refused = ask(manager, question=5)
    assert (refused.status, refused.json()) == (400, {"error": "question must be a string"})

    # the setting, under the plugin's name; it changes what is answered
    assert manager.manage("GET", "/api/settings")["ask"] == {"max_tokens": 64}
    manager.manage("POST", "/api/settings", {"ask": {"max_tokens": 1}})
    assert len(ask(manager).json()["answer"]) < len(answer.json()["answer"])
    assert manager.admin("POST", "/api/settings", {"ask": {"max_tokens": 0}}).status == 400

    # the counter, its route behind the gate, and what is left of it after a restart
    manager.until(lambda: manager.manage("GET", "/api/ask") == {"tiny": 2}, "two answers to be counted")
    assert manager.http("GET", "/api/ask").status == 401
    assert manager.http("GET", "/api/ask", key=manager.key("view").secret).status == 200
    manager.restart()
    assert manager.manage("GET", "/api/ask") == {"tiny": 2}

    rows = [
        (r["method"], r["path"], r["level"])
        for r in manager.manage("GET", "/api/routes")
        if r["plugin"] == "ask"
    ]
    assert set(rows) == {("POST", "/ask", "inference"), ("GET", "/api/ask", "view")}


def test_a_plugin_that_is_switched_off_is_never_imported(
    embedded: object, new_manager: Callable[..., Manager], tmp_path: Path
) -> None:
    env = {**installed(tmp_path / "site"), "LLAMAMAN_PLUGINS_DISABLED": "ask"}
    manager = new_manager(env=env)
    (record,) = (each for each in manager.manage("GET", "/api/plugins") if each["name"] == "ask")
    assert record["state"] == "disabled"
    assert ask(manager).status == 404
