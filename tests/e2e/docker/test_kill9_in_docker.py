"""The manager is killed at fifty moments of launch, wake, sleep and stop: no container is lost, doubled or orphaned."""

from __future__ import annotations

import os
from typing import Any

import pytest
from crashes import Crashes

from llamaman.testing import processes
from llamaman.testing.docker_manager import DockerManager
from llamaman.testing.manager import SMALL
from llamaman.testing.wire import Request

from .conftest import NewDockerManager

pytestmark = pytest.mark.real("docker")
ROUNDS = 50
LONGEST_S = 0.6
SEED = int(os.environ.get("LLAMAMAN_TEST_SEED", "7"))


class ContainerCrashes(Crashes):
    """The same with containers, and with falling asleep."""

    manager: DockerManager
    before: set[str]

    def fall_asleep(self) -> Request:
        for instance in self.manager.instances():
            self.manager.stop(instance["id"], force=True)
        body = {"model_path": str(self.manager.models / "tiny.gguf"), **SMALL, "idle_timeout_min": 0.005}
        launched = self.manager.manage("POST", "/api/instances", body)
        self.manager.wait_status(launched["id"], "healthy")
        return self.send("GET", "/api/instances")

    def recorded(self) -> list[str]:
        self.before = {each["Id"] for each in self.manager.containers()}
        return super().recorded()

    def check_engines(self, ready: list[dict[str, Any]]) -> None:
        manager = self.manager
        shown = {each["container_id"] for each in ready}

        def exact() -> bool:
            return {each["Id"] for each in manager.containers()} == shown

        manager.until(exact, f"exactly the containers of what runs ({sorted(shown)})")
        assert shown <= self.before, "what runs was adopted, nothing was started by itself"
        assert not processes.listening(manager.internal_ports)


def test_killed_at_fifty_moments_it_finds_exactly_what_it_recorded(new_manager: NewDockerManager) -> None:
    manager = new_manager()
    crashes = ContainerCrashes(manager, SEED, LONGEST_S)
    acts = [crashes.launch, crashes.wake, crashes.fall_asleep, crashes.stop, crashes.restart, crashes.remove]
    for number in range(ROUNDS):
        act = acts[number % len(acts)]
        try:
            crashes.round(act)
        except AssertionError as error:
            pytest.fail(f"round {number}, {act.__name__}, seed {SEED}: {error}\n{manager.output()[-3000:]}")
