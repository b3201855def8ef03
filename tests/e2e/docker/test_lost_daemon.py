"""The Docker daemon goes away, by a restart or for good: silence is never failure, and all is found again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llamaman.testing.docker_images import server_image as build_image
from llamaman.testing.docker_manager import DockerManager
from llamaman.testing.private_daemon import PrivateDaemon, why_not

from .conftest import NewDockerManager

pytestmark = pytest.mark.real("docker")


@pytest.fixture
def engine() -> Iterator[PrivateDaemon]:
    """A Docker engine of this test's own, which may be stopped and killed."""
    if reason := why_not():
        pytest.skip(reason)
    with PrivateDaemon() as daemon:
        yield daemon


@pytest.fixture
def manager(engine: PrivateDaemon, new_manager: NewDockerManager) -> DockerManager:
    """A running manager on that engine."""
    return new_manager(host=engine.host, image=build_image(engine.host))


def test_a_daemon_restarted_during_a_stream_ends_it_with_an_error_and_the_model_comes_back(
    manager: DockerManager, engine: PrivateDaemon
) -> None:
    instance = manager.launch("tiny", restart_policy="on-failure")
    with manager.ask("tiny", stream=True, max_tokens=100_000) as stream:
        events = stream.events()
        next(events)
        engine.stop()
        last = list(events)[-1]
    assert "error" in last, "a stream that is cut says so"
    unknown = manager.wait_status(instance["id"], "unknown")
    assert "Docker" in unknown["reason"]
    refused = manager.manage("GET", f"/api/instances/{instance['id']}")
    assert refused["container_id"] == instance["container_id"], "nothing is forgotten while nobody knows"
    engine.start()

    def back() -> bool:
        now = manager.instance(instance["id"])
        return bool(now["status"] == "healthy" and now["container_id"] != instance["container_id"])

    manager.until(back, "the model to be back", 40)
    assert len(manager.containers()) == 1
    assert manager.chat("tiny", max_tokens=2).status == 200


def test_a_killed_daemon_leaves_a_model_serving_and_it_is_found_again(
    manager: DockerManager, engine: PrivateDaemon
) -> None:
    instance = manager.launch("tiny")
    engine.kill()
    unknown = manager.wait_status(instance["id"], "unknown", 40)
    assert unknown["state"] == "ready"
    assert manager.chat("tiny", max_tokens=2).status == 200, "what runs goes on serving"
    stopped = manager.admin("DELETE", f"/api/instances/{instance['id']}")
    assert stopped.status == 503
    assert manager.instance(instance["id"])["state"] == "ready"
    engine.start()
    manager.wait_status(instance["id"], "healthy", 40)
    manager.stop(instance["id"])
    manager.until(lambda: not manager.containers(), "nothing to be left behind")


def test_a_launch_while_the_daemon_is_away_is_refused_and_leaves_nothing(
    manager: DockerManager, engine: PrivateDaemon
) -> None:
    engine.stop()
    manager.until(lambda: "events: Docker cannot be reached" in manager.output(), "the loss to be noticed")
    answer = manager.chat("tiny")
    assert answer.status == 503
    assert answer.headers["retry-after"]
    assert "Docker" in answer.error
    assert manager.instances() == []
    engine.start()
    manager.until(lambda: manager.chat("tiny", max_tokens=2).status == 200, "Docker to be found again", 40)


def test_a_manager_that_starts_before_docker_waits_for_it_and_adopts_what_runs(
    engine: PrivateDaemon, new_manager: NewDockerManager
) -> None:
    manager = new_manager(host=engine.host, image=build_image(engine.host), start=False)
    engine.stop()
    manager.start()
    assert manager.chat("tiny").status == 503
    engine.start()
    manager.until(lambda: manager.chat("tiny", max_tokens=2).status == 200, "Docker to be found", 40)
    (instance,) = manager.instances()
    manager.kill()
    engine.kill()
    manager.start()
    manager.wait_status(instance["id"], "unknown")
    engine.start()

    def known() -> bool:
        return bool(manager.instance(instance["id"])["status"] in ("healthy", "sleeping"))

    manager.until(known, "it to be adopted, or woken by the next request", 40)
    # Until the last of what was found is looked at, requests hear when to come again.
    manager.until(lambda: manager.chat("tiny", max_tokens=2).status == 200, "an answer")
    assert len(manager.containers()) == 1
