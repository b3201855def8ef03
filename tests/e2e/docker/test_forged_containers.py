"""Containers that only pretend to be ours: never routed to, stopped or removed, and shown to an administrator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llamaman.runtimes.docker import labels
from llamaman.testing.docker_manager import DockerManager
from llamaman.testing.relay import Relay

from .conftest import NewDockerManager

pytestmark = pytest.mark.real("docker")


@pytest.fixture
def road(docker_host: str, tmp_path: Path) -> Iterator[Relay]:
    """The way to the Docker engine; it can be cut and opened again, for this manager alone."""
    road = Relay(docker_host.removeprefix("unix://"), tmp_path / "docker.sock")
    yield road
    road.cut()


@dataclass(frozen=True, slots=True)
class Forgery:
    """A running copy of an instance's container, in everything but its generation; and one that never ran."""

    running: str
    created: str
    names: tuple[str, str]

    def connections(self, manager: DockerManager) -> int:
        """How many connections it has accepted so far: whoever routes to it makes one."""
        seen = manager.docker.inspect(self.running)
        assert seen
        assert seen["State"]["Running"], "it was not stopped"
        counters = Path(f"/proc/{seen['State']['Pid']}/net/snmp").read_text(encoding="ascii").splitlines()
        names, values = (line.split() for line in counters if line.startswith("Tcp:"))
        return int(values[names.index("PassiveOpens")])


def forge(manager: DockerManager, genuine: Any) -> Forgery:
    """Both on the manager's network; what copies the proof of another generation, and what has none."""
    config, host = genuine["Config"], genuine["HostConfig"]
    carried = config["Labels"]
    next_one = str(int(carried[labels.GENERATION]) + 1)
    copied = {**carried, labels.GENERATION: next_one}
    without = {name: value for name, value in carried.items() if name != labels.PROOF}
    body = {
        "Image": genuine["Image"],
        **{name: config[name] for name in ("Cmd", "Env", "User")},
        "HostConfig": {name: host[name] for name in ("NetworkMode", "Mounts", "ReadonlyRootfs", "Tmpfs")},
    }
    names = (f"{manager.prefix}forged", f"{manager.prefix}unproven")
    running = manager.docker.create(names[0], {**body, "Labels": copied})
    created = manager.docker.create(names[1], {**body, "Labels": without})
    manager.docker.start(running)
    return Forgery(running, created, names)


def state(manager: DockerManager, container_id: str) -> Any:
    inspected = manager.docker.inspect(container_id)
    return inspected and inspected["State"]


def shown(manager: DockerManager) -> list[str]:
    """What the Docker runtime says to whoever may manage."""
    (docker,) = (each for each in manager.manage("GET", "/api/runtimes") if each["name"] == "docker")
    return list(docker["notes"])


def test_a_forged_container_is_left_alone_and_shown(road: Relay, new_manager: NewDockerManager) -> None:
    manager = new_manager(host=road.address)
    instance = manager.launch("tiny")
    assert shown(manager) == []
    forgery = forge(manager, manager.container_of(instance["id"]))
    before = state(manager, forgery.running)
    try:
        # A daemon that was away is looked at anew: nothing is taken over, nothing ended.
        road.cut()
        manager.wait_status(instance["id"], "unknown")
        road.open()
        manager.wait_status(instance["id"], "healthy")
        manager.until(lambda: len(shown(manager)) == 2, "both to be shown")
        untouched(manager, forgery)

        # Its instance gets the very generation that the forged one claims.
        manager.stop(instance["id"])
        assert manager.chat("tiny").status == 200
        (now,) = manager.instances()
        assert now["generation"] == instance["generation"] + 1
        assert now["container_id"] != forgery.running
        untouched(manager, forgery)

        # The next manager adopts what is genuine alone.
        manager.kill()
        manager.start()
        assert manager.instance(now["id"])["container_id"] == now["container_id"]
        assert manager.chat("tiny").status == 200
        untouched(manager, forgery)
        assert state(manager, forgery.running) == before, "it was not restarted either"
    finally:
        manager.docker.remove(forgery.running)
        manager.docker.remove(forgery.created)


def untouched(manager: DockerManager, forgery: Forgery) -> None:
    """Nobody has spoken to it or done anything to it, and it is shown."""
    assert forgery.connections(manager) == 0
    assert manager.docker.inspect(forgery.created), "it was not removed"
    notes = "\n".join(shown(manager))
    for name in forgery.names:
        assert f"container {name} carries LlamaMan's labels and no proof" in notes


def test_who_may_only_look_is_not_told_names(manager: DockerManager) -> None:
    seen = manager.http("GET", "/api/runtimes", key=manager.key("view").secret).json()
    assert [each["notes"] for each in seen] == [None] * len(seen)
