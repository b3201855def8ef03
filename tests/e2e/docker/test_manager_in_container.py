"""The manager in a container, its engines beside it: they share a network, and outlive the manager's container.

It asks Docker through a relay that writes down every call, and the guide's list of calls is held against that.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamaman.testing.base_image import NoBase
from llamaman.testing.docker_relay import DockerRelay
from llamaman.testing.image_lab import until
from llamaman.testing.manager_container import ManagerContainer
from llamaman.testing.manager_image import ROOT, connect, manager_image

if TYPE_CHECKING:
    from docker.models.containers import Container

pytestmark = pytest.mark.real("docker")


@pytest.fixture(scope="module")
def image(docker_host: str) -> str:
    """The manager's image of this checkout."""
    client = connect(docker_host)
    try:
        return manager_image(client)
    except NoBase as error:
        pytest.skip(str(error))
    finally:
        client.close()


@pytest.fixture(scope="module")
def relay(docker_host: str) -> Iterator[DockerRelay]:
    """What stands between the manager and Docker's socket, and listens."""
    with DockerRelay(docker_host) as relay:
        yield relay


@pytest.fixture(scope="module")
def manager(
    docker_host: str,
    image: str,
    server_image: str,
    tiny_model: Path,
    relay: DockerRelay,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ManagerContainer]:
    """A running manager that knows ``tiny``; every test leaves one behind that runs and has no instance."""
    manager = ManagerContainer(
        tmp_path_factory.mktemp("contained"),
        host=docker_host,
        socket=Path(relay.host.removeprefix("unix://")),
        image=image,
        llama_image=server_image,
    )
    shutil.copy(tiny_model, manager.host_models / "tiny.gguf")
    with manager:
        yield manager
        assert "Traceback" not in manager.output(), manager.output()[-4000:]


@pytest.fixture(autouse=True)
def _none_left(manager: ManagerContainer) -> Iterator[None]:
    yield
    if not manager.is_alive:
        manager.start()
    manager.clear()
    assert manager.containers() == []


def the_engine(manager: ManagerContainer) -> Container:
    """The one container that runs for it."""
    (container,) = manager.containers()
    return container


def test_a_model_is_launched_beside_it_and_answers_on_the_network_that_both_are_on(
    manager: ManagerContainer,
) -> None:
    launched = manager.launch("tiny")
    answer = manager.chat("tiny")
    assert answer.status == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] > 0
    assert manager.chat("tiny", port=launched["port"]).status == 200, (
        "its own port is the manager's, and published"
    )

    attrs = the_engine(manager).attrs
    assert attrs["Name"] == f"/{manager.prefix}{launched['id'][:8]}"
    assert set(attrs["NetworkSettings"]["Networks"]) == {manager.network}
    assert not attrs["HostConfig"]["PortBindings"], "nothing but the manager leads to an engine"
    assert not any(attrs["NetworkSettings"]["Ports"].values())
    (mount,) = attrs["Mounts"]
    assert mount["Source"] == str(manager.host_models / "tiny.gguf"), (
        "the host's name, which nobody told the manager"
    )
    assert not mount["RW"]


def test_it_joins_the_engines_network_which_has_no_way_out(manager: ManagerContainer) -> None:
    manager.launch("tiny")
    assert set(manager.container.attrs["NetworkSettings"]["Networks"]) == {
        manager.network,
        manager.client_network,
    }
    (network,) = manager.client.networks.list(names=[f"^{manager.network}$"])
    network.reload()
    assert network.attrs["Internal"]


def test_taken_off_that_network_it_joins_again_and_reaches_what_runs(manager: ManagerContainer) -> None:
    manager.launch("tiny")
    before = the_engine(manager).id
    (network,) = manager.client.networks.list(names=[f"^{manager.network}$"])
    network.disconnect(manager.container, force=True)

    def joined() -> bool:
        manager.container.reload()
        return manager.network in manager.container.attrs["NetworkSettings"]["Networks"]

    until(joined, "it did not join again")
    assert manager.chat("tiny").status == 200
    assert the_engine(manager).id == before


def test_a_request_starts_a_model_that_does_not_run(manager: ManagerContainer) -> None:
    assert manager.chat("tiny").status == 200
    assert the_engine(manager).status == "running"


def test_an_engine_outlives_its_managers_container_and_is_taken_over(manager: ManagerContainer) -> None:
    launched = manager.launch("tiny")
    before, old = the_engine(manager), manager.container.id

    manager.replace()  # docker rm -f, docker run

    assert manager.container.id != old
    found = manager.wait_status(launched["id"], "healthy")
    assert found["port"] == launched["port"]
    after = the_engine(manager)
    assert after.id == before.id
    assert after.attrs["State"]["StartedAt"] == before.attrs["State"]["StartedAt"], "the same process still"
    assert manager.chat("tiny").status == 200
    assert manager.chat("tiny", port=launched["port"]).status == 200


def test_a_manager_replaced_in_order_wakes_what_a_request_had_started(
    manager: ManagerContainer,
) -> None:
    assert manager.chat("tiny").status == 200
    (launched,) = manager.instances()
    assert manager.terminate() == 0
    assert manager.containers() == [], "docker stop ends the engines too"

    manager.start()

    assert manager.instance(launched["id"])["status"] == "sleeping"
    assert manager.chat("tiny", port=launched["port"]).status == 200
    assert manager.instance(launched["id"])["status"] == "healthy"


def test_doctor_says_where_it_stands(manager: ManagerContainer) -> None:
    manager.launch("tiny")
    status, said = manager.run("llamaman", "doctor")
    assert status == 0, said
    for word in ("/var/run/docker.sock", manager.network, str(manager.host_models)):
        assert word in said


def test_the_guide_lists_the_calls_that_are_made_and_no_others(
    manager: ManagerContainer, relay: DockerRelay
) -> None:
    """What a proxy in front of the socket must let through; those of rarer moments may be missing here."""
    manager.launch("tiny")
    guide = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- calls -->\n```text\n(.*?)\n```", guide, re.DOTALL)
    listed = set(block.splitlines())
    made = {call.shape for call in relay.calls}
    assert made - listed == set()
    rarer = {
        "GET /containers/{}/stats",
        "GET /images/json",
        "POST /containers/{}/kill",
        "POST /containers/{}/wait",
        "POST /images/create",
        "DELETE /images/{}",
        "DELETE /networks/{}",
    }
    assert listed - made <= rarer
