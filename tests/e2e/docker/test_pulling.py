"""An image that is not here yet: pulled beside everything else, with its progress as the reason, for whoever waits."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llamaman.testing.docker_manager import DockerManager
from llamaman.testing.image_lab import REGISTRY, Lab, registry
from llamaman.testing.relay import Relay
from llamaman.testing.wire import Answer

from .conftest import NewDockerManager

pytestmark = pytest.mark.real("docker")

PAYLOAD = 4 << 20
#: The whole payload would take a minute and more.
SLOW = 64 << 10
#: It takes ten seconds until there is anything new to say.
STANDING = 4 << 10
PULLING = re.compile(r"pulling image, ([0-9]+) %")
#: Of management calls during a pull; a pull that blocked them would take a minute.
QUICK_S = 5.0


@pytest.fixture(scope="module")
def lab(docker_host: str) -> Iterator[Lab]:
    import docker

    lab = Lab(docker.DockerClient(base_url=docker_host))
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not REGISTRY:
        pytest.skip("install docker-registry to run this test")
    with registry(tmp_path_factory.mktemp("registry") / "r") as address:
        yield address


@pytest.fixture
def road(store: str) -> Iterator[Relay]:
    """The road to the registry; its address is the registry's for everybody."""
    host, port = store.split(":")
    road = Relay((host, int(port)))
    yield road
    road.rate = None
    road.cut()


@pytest.fixture
def offered(lab: Lab, road: Relay, server_image: str) -> str:
    """An image with a llama-server that the registry has and the Docker engine has not; it comes slowly."""
    name = f"{lab.unique(road.address)}:server"
    lab.build(name, f"FROM {server_image}\nCOPY payload /payload\n", random_bytes=PAYLOAD)
    lab.push(name)
    lab.remove(name)
    road.rate = SLOW
    return name


def percent(text: str) -> int | None:
    found = PULLING.search(text)
    return int(found[1]) if found else None


def refused(manager: DockerManager) -> Answer:
    """A request while the image is not here: it is answered, and at once."""
    answer = manager.chat("tiny", max_tokens=2, seconds=QUICK_S)
    assert answer.status == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    return answer


def timed(ask: Callable[[], Any]) -> float:
    begun = time.monotonic()
    ask()
    return time.monotonic() - begun


def test_requests_are_told_how_far_the_pull_is_and_answered_when_it_is_over(
    new_manager: NewDockerManager, road: Relay, offered: str
) -> None:
    manager = new_manager(image=offered)
    first = refused(manager)
    assert "pull" in first.error
    (instance,) = manager.instances()
    assert instance["status"] == "starting"

    heard: list[int] = []
    quick: list[float] = []

    def grown() -> bool:
        quick.append(timed(manager.instances))
        now = manager.instance(instance["id"])
        assert now["status"] == "starting", now
        assert manager.containers() == []
        if (share := percent(now["reason"])) is not None and share not in heard:
            heard.append(share)
            told = percent(refused(manager).error)
            assert told is not None
            assert told >= share, "a request hears what the instance shows"
        return len(heard) >= 3

    manager.until(grown, "the percentage to grow twice", 30)
    assert heard == sorted(heard)
    assert heard[-1] < 100
    assert max(quick) < QUICK_S
    (pull,) = manager.manage("GET", "/api/images/pull-status")["pulls"]
    assert (pull["image"], pull["status"]) == (offered, "pulling")

    road.rate = None
    ready = manager.wait_status(instance["id"], "healthy")
    assert ready["generation"] == 1, "it became so by itself"
    assert manager.container_of(instance["id"])["Config"]["Image"].endswith(offered)
    assert manager.chat("tiny", max_tokens=2).status == 200
    assert len(manager.instances()) == 1


def test_a_stop_during_the_pull_is_done_at_once_and_nothing_starts_afterwards(
    new_manager: NewDockerManager, road: Relay, offered: str
) -> None:
    manager = new_manager(image=offered)
    instance = manager.launch("tiny", wait=None)
    manager.until(
        lambda: percent(manager.instance(instance["id"])["reason"]) is not None, "the pull to have begun"
    )
    road.rate = STANDING
    assert timed(lambda: manager.stop(instance["id"])) < QUICK_S
    stopped = manager.instance(instance["id"])
    assert stopped["status"] == "stopped"

    road.rate = None

    def over() -> bool:
        (pull,) = manager.manage("GET", "/api/images/pull-status")["pulls"]
        return bool(pull["status"] == "done")

    manager.until(over, "the pull to be over: what has come is of use")
    assert manager.instance(instance["id"]) == stopped
    assert manager.containers() == []
    manager.manage("POST", f"/api/instances/{instance['id']}/restart", {})
    again = manager.wait_status(instance["id"], "healthy")
    assert again["generation"] == stopped["generation"] + 1, "this was the first start since"


def test_a_pull_that_fails_says_which_command_would_show_why(
    new_manager: NewDockerManager, lab: Lab, road: Relay, offered: str
) -> None:
    absent = offered.replace(":server", ":other")
    manager = new_manager(image=absent)
    refused(manager)
    (instance,) = manager.instances()
    reason = manager.wait_status(instance["id"], "failed")["reason"]
    assert "Docker image not found" in reason
    assert f"docker pull {absent}" in reason
    told = refused(manager)
    assert f"docker pull {absent}" in told.error
    assert manager.instance(instance["id"])["status"] == "failed"
    assert manager.containers() == []
