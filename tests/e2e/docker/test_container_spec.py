"""What installed plugins add to a container, as Docker shows it, and what a launch says of plugins it cannot have."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamaman.testing.docker_manager import DockerManager

from .conftest import NewDockerManager

pytestmark = pytest.mark.real("docker")

MODULE = """\
from llamaman.hookspecs import hookimpl
from llamaman.records import SpecPatch


@hookimpl
def container_spec(request, spec):
{body}
"""


def installed(site: Path, **plugins: str) -> dict[str, str]:
    """What `pip install` leaves behind for plugins of these names; the environment in which they are found.

    :param plugins: the body of each one's ``container_spec``.
    """
    for name, body in plugins.items():
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[llamaman.plugins]\n{name} = {name}_plugin\n")
        (site / f"{name}_plugin.py").write_text(MODULE.format(body=f"    {body}"))
    return {"PYTHONPATH": str(site)}


def failed(manager: DockerManager) -> str:
    """Launch, which must fail for good before there is a container; the reason."""
    instance = manager.launch("tiny", wait=None)
    seen = manager.wait_status(instance["id"], "failed")
    assert manager.containers() == []
    return str(seen["reason"])


def test_additions_of_two_plugins_are_in_the_container(new_manager: NewDockerManager, tmp_path: Path) -> None:
    env = installed(
        tmp_path / "site",
        one='return SpecPatch(env={"GGML_VK_VISIBLE_DEVICES": spec.image.rpartition(":")[2]})',
        two='return SpecPatch(env={"ZES_ENABLE_SYSMAN": "1"}, host_config={"ShmSize": 32 << 20})',
        none="return None",
    )
    manager = new_manager(env=env)
    active = {each["name"] for each in manager.manage("GET", "/api/plugins") if each["state"] == "active"}
    assert {"one", "two", "none"} <= active
    instance = manager.launch("tiny")
    inspected = manager.container_of(instance["id"])
    tag = inspected["Config"]["Image"].rpartition(":")[2]
    assert {f"GGML_VK_VISIBLE_DEVICES={tag}", "ZES_ENABLE_SYSMAN=1"} <= set(inspected["Config"]["Env"])
    assert inspected["HostConfig"]["ShmSize"] == 32 << 20
    assert manager.chat("tiny").status == 200


@pytest.mark.parametrize(
    ("one", "two", "what"),
    [
        ('env={"ZES_ENABLE_SYSMAN": "1"}', 'env={"ZES_ENABLE_SYSMAN": "0"}', "ZES_ENABLE_SYSMAN"),
        ('host_config={"ShmSize": 1 << 20}', 'host_config={"ShmSize": 2 << 20}', "ShmSize"),
    ],
)
def test_plugins_that_disagree_are_both_named(
    new_manager: NewDockerManager, tmp_path: Path, one: str, two: str, what: str
) -> None:
    env = installed(tmp_path / "site", one=f"return SpecPatch({one})", two=f"return SpecPatch({two})")
    reason = failed(new_manager(env=env))
    for named in ("'one'", "'two'", what):
        assert named in reason, reason


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ('raise OSError("no such card")', "no such card"),
        ("raise SystemExit(3)", "3"),
        ('return {"env": {}}', "SpecPatch"),
    ],
    ids=["raises", "exits", "returns nonsense"],
)
def test_a_plugin_that_fails_is_named_and_no_container_is_made_without_it(
    new_manager: NewDockerManager, tmp_path: Path, body: str, what: str
) -> None:
    reason = failed(new_manager(env=installed(tmp_path / "site", broken=body)))
    assert "plugin 'broken' could not prepare the container" in reason
    assert what in reason


def test_a_plugin_cannot_take_a_wall_down(new_manager: NewDockerManager, tmp_path: Path) -> None:
    body = 'return SpecPatch(host_config={"Privileged": True})'
    reason = failed(new_manager(env=installed(tmp_path / "site", breaker=body)))
    assert "Privileged" in reason
