"""The instances' network on a real engine: made once, closed, and reached in three ways."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llamaman.errors import LaunchError
from llamaman.records import Address
from llamaman.runtimes.docker.daemon import Daemon, DaemonError
from llamaman.runtimes.docker.network import NOWHERE, Network, Reach
from llamaman.runtimes.docker.place import Place
from llamaman.runtimes.docker.walls import PORT

pytestmark = pytest.mark.real("docker")

ON_HOST = Place(False, None, (), None)
NewNetwork = Callable[..., Network]


@pytest.fixture
def new(daemon: Daemon, scratch_names: Any) -> NewNetwork:
    """Makes the network of a manager; each has what one process has."""

    def make(**changes: Any) -> Network:
        given = {"name": scratch_names.network, "labels": scratch_names.labels, "host_addr": None}
        return Network(changes.pop("daemon", daemon), **(given | changes))

    return make


@pytest.fixture
def info(daemon: Daemon) -> dict[str, Any]:
    found = dict(daemon.info())
    if "rootless" in str(found["SecurityOptions"]) or not daemon.is_local:
        pytest.skip("addresses of this engine's containers cannot be reached from here")
    return found


def only(daemon: Daemon, names: Any) -> dict[str, Any]:
    (network,) = daemon.networks(names.network)
    return dict(network)


def healthy(address: Address, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            url = f"http://{address.host}:{address.port}/health"
            with urllib.request.urlopen(url, timeout=2) as answer:
                assert json.load(answer)["status"] == "ok"
                return
        except OSError:
            assert time.monotonic() < deadline, f"nothing answers at {address}"
            time.sleep(0.02)


# --- making it -----------------------------------------------------------------------------------------


def test_it_is_made_once_closed_and_marked(
    new: NewNetwork, daemon: Daemon, scratch_names: Any, info: dict[str, Any]
) -> None:
    network = new()
    assert network.reach is None
    assert network.prepare(ON_HOST, info) == "address" == network.reach
    made = only(daemon, scratch_names)
    assert (made["Internal"], made["Labels"]) == (True, scratch_names.labels)
    assert new().prepare(ON_HOST, info) == "address"
    network.forget()
    network.prepare(ON_HOST, info)
    assert only(daemon, scratch_names) == made
    assert network.notes() == ()


def test_managers_that_race_end_with_one_network(
    new: NewNetwork, daemon: Daemon, scratch_names: Any, info: dict[str, Any]
) -> None:
    for _ in range(2):
        managers = [new() for _ in range(8)]
        begin = threading.Barrier(len(managers))

        def prepare(network: Network, begin: threading.Barrier = begin) -> str:
            begin.wait()
            return network.prepare(ON_HOST, info)

        with ThreadPoolExecutor(len(managers)) as pool:
            assert set(pool.map(prepare, managers)) == {"address"}
        daemon.remove_network(only(daemon, scratch_names)["Id"])


class Blind(Daemon):
    """A daemon whose networks cannot be seen for the first so many looks: what a race looks like to its loser."""

    def __init__(self, host: str, looks: int) -> None:
        super().__init__(host)
        self.looks = looks

    def networks(self, name: str) -> list[Any]:
        self.looks -= 1
        return [] if self.looks >= 0 else super().networks(name)


def test_one_that_somebody_else_made_meanwhile_is_taken(
    new: NewNetwork, daemon: Daemon, docker_host: str, scratch_names: Any, info: dict[str, Any]
) -> None:
    new().prepare(ON_HOST, info)
    made = only(daemon, scratch_names)
    assert new(daemon=Blind(docker_host, 1)).prepare(ON_HOST, info) == "address"
    assert only(daemon, scratch_names) == made


@dataclasses.dataclass
class Doubles:
    """A daemon's networks, where the second of one name is shown under that name although it has another: engines of
    today refuse to make a real double one after the other, and a race cannot be ordered."""

    daemon: Daemon
    name: str

    @property
    def is_local(self) -> bool:
        return True

    def networks(self, name: str) -> list[Any]:
        return self.daemon.networks(name) + self.daemon.networks(f"{name}-double")

    def remove_network(self, name: str) -> None:
        self.daemon.remove_network(name)


@pytest.fixture
def double(daemon: Daemon, scratch_names: Any, new: NewNetwork, info: dict[str, Any]) -> Iterator[Doubles]:
    new().prepare(ON_HOST, info)
    name = f"{scratch_names.network}-double"
    daemon.create_network(name, internal=True, labels=scratch_names.labels)
    yield Doubles(daemon, scratch_names.network)
    scratch_names.clean(daemon)
    daemon.remove_network(name)


def test_of_two_with_one_name_the_younger_is_removed(
    double: Doubles, new: NewNetwork, daemon: Daemon, scratch_names: Any, info: dict[str, Any]
) -> None:
    made = only(daemon, scratch_names)
    assert new(daemon=double).prepare(ON_HOST, info) == "address"
    assert only(daemon, scratch_names) == made
    assert daemon.networks(f"{scratch_names.network}-double") == []


def test_two_with_one_name_that_are_in_use_are_told(
    double: Doubles,
    new: NewNetwork,
    containers: Any,
    scratch_names: Any,
    info: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llamaman.runtimes.docker.network._SETTLE_S", 0.1)
    for name in (scratch_names.network, f"{scratch_names.network}-double"):
        containers.run(name[-6:], containers.shell("sleep 60", NetworkMode=name))
    with pytest.raises(LaunchError, match="remove all but one"):
        new(daemon=double).prepare(ON_HOST, info)


def test_one_that_was_removed_is_made_again(
    new: NewNetwork, daemon: Daemon, scratch_names: Any, info: dict[str, Any]
) -> None:
    network = new()
    network.prepare(ON_HOST, info)
    first = only(daemon, scratch_names)["Id"]
    daemon.remove_network(first)
    network.prepare(ON_HOST, info)
    assert only(daemon, scratch_names)["Id"] != first


def test_an_open_one_that_is_there_is_kept_and_told(
    new: NewNetwork, daemon: Daemon, scratch_names: Any, info: dict[str, Any]
) -> None:
    theirs = daemon.create_network(scratch_names.network, internal=False, labels={})
    network = new()
    assert network.prepare(ON_HOST, info) == "address"
    assert only(daemon, scratch_names)["Id"] == theirs
    (note,) = network.notes()
    assert "not internal" in note
    assert f"docker network rm {scratch_names.network}" in note


@pytest.mark.parametrize("name", ["bridge", "host", "none"])
def test_dockers_own_networks_are_refused(new: NewNetwork, info: dict[str, Any], name: str) -> None:
    with pytest.raises(LaunchError, match="LLAMA_NETWORK"):
        new(name=name).prepare(ON_HOST, info)


def test_when_all_is_well_one_question_is_asked(
    new: NewNetwork, daemon: Daemon, info: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = new()
    network.prepare(ON_HOST, info)
    asked: list[str] = []
    call = daemon._connection.call

    def recorded(method: str, path: str, **how: Any) -> Any:
        asked.append(f"{method} {path}")
        return call(method, path, **how)

    monkeypatch.setattr(daemon._connection, "call", recorded)
    network.prepare(ON_HOST, info)
    assert asked == ["GET /networks"]


# --- how containers are reached ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "host_addr", "reach"),
    [
        ({}, None, "address"),
        ({}, "127.0.0.1", "port"),
        ({}, "host.docker.internal", "port"),
        ({"OperatingSystem": "Docker Desktop"}, None, "port"),
        ({"SecurityOptions": ["name=seccomp", "name=rootless"]}, None, "port"),
        ({"SecurityOptions": None}, None, "address"),
    ],
)
def test_on_the_host_by_address_where_it_can_be_reached_else_by_port(
    new: NewNetwork,
    daemon: Daemon,
    scratch_names: Any,
    info: dict[str, Any],
    changes: dict[str, Any],
    host_addr: str | None,
    reach: Reach,
) -> None:
    network = new(host_addr=host_addr)
    assert network.prepare(ON_HOST, info | changes) == reach
    assert only(daemon, scratch_names)["Internal"] is (reach != "port")
    assert bool(network.notes()) is (reach == "port")


def test_a_daemon_elsewhere_is_reached_by_port(
    new: NewNetwork, docker_host: str, info: dict[str, Any]
) -> None:
    class Elsewhere(Daemon):
        is_local = False

    assert new(daemon=Elsewhere(docker_host)).prepare(ON_HOST, info) == "port"


def test_a_container_answers_at_its_address_and_has_no_way_out(
    new: NewNetwork, containers: Any, info: dict[str, Any], scratch_names: Any
) -> None:
    network = new()
    network.prepare(ON_HOST, info)
    container = containers.run("a", containers.serving(NetworkMode=scratch_names.network))
    inspected = containers.daemon.inspect(container)
    address = network.address(inspected, "a", 0)
    assert address.port == 8080
    healthy(address)
    assert new().address(inspected, "a", 0) == address, "also for a manager that has prepared nothing yet"
    if not Path("/usr/bin/python3").exists():
        return
    script = (
        "import socket\n"
        "s = socket.socket(); s.settimeout(2)\n"
        "try: s.connect(('192.0.2.1', 80)); print('out')\n"
        "except OSError as error: print(error.strerror or error)\n"
    )
    out = containers.ended(
        "b", containers.shell(f'/usr/bin/python3 -c "{script}"', NetworkMode=scratch_names.network)
    )
    said = b"".join(piece.data for piece in containers.daemon.logs(out, since=None, follow=False))
    # Older engines drop what wants to leave, newer ones give no route at all.
    assert said in (b"timed out\n", b"Network is unreachable\n")
    with pytest.raises(LaunchError, match="has no address"):
        network.address(containers.daemon.inspect(out), "b", 0)


def test_a_published_port_answers_on_an_ordinary_network(
    new: NewNetwork, containers: Any, daemon: Daemon, scratch_names: Any, info: dict[str, Any]
) -> None:
    new().prepare(ON_HOST, info)
    assert only(daemon, scratch_names)["Internal"] is True
    network = new(host_addr="localhost")
    assert network.prepare(ON_HOST, info) == "port"
    assert only(daemon, scratch_names)["Internal"] is False, "our own empty one was made anew"
    bindings = {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "0"}]}
    body = containers.serving(NetworkMode=scratch_names.network, PortBindings=bindings)
    container = containers.run("a", {**body, "ExposedPorts": {"8080/tcp": {}}})
    address = network.address(daemon.inspect(container) or {}, "a", 0)
    assert address.host == "127.0.0.1"
    healthy(address)
    assert network.address({}, "a", 8123) == Address("127.0.0.1", 8123)
    assert new(host_addr="10.9.8.7").address({}, "a", 8123) == Address("10.9.8.7", 8123)


def test_an_engine_behind_a_port_of_its_own_number_is_at_its_place(
    new: NewNetwork, scratch_names: Any
) -> None:
    """Whoever takes INTERNAL_PORT_RANGE_START=8080 has engines published at the port that they listen on."""
    inspected = {"NetworkSettings": {"Networks": {scratch_names.network: {"IPAddress": "172.30.0.2"}}}}
    elsewhere = {"NetworkSettings": {"Networks": {}}}
    for host_addr, dialled in ((None, "127.0.0.1"), ("192.0.2.7", "192.0.2.7")):
        network = new(host_addr=host_addr)
        for place in (
            Address(dialled, PORT),
            Address(dialled, PORT + 1),
            Address("172.30.0.2", PORT),
            NOWHERE,
        ):
            assert network.is_at(inspected, place)
            assert not network.is_at(elsewhere, place)
        assert not network.is_at(inspected, Address("172.30.0.3", PORT)), "it has another's address by now"


def test_ports_are_dead_on_a_closed_network_that_is_not_ours_or_in_use(
    new: NewNetwork, daemon: Daemon, scratch_names: Any, info: dict[str, Any]
) -> None:
    daemon.create_network(scratch_names.network, internal=True, labels={})
    with pytest.raises(LaunchError, match="LLAMA_NETWORK"):
        new(host_addr="localhost").prepare(ON_HOST, info)


# --- a manager in a container --------------------------------------------------------------------------


@pytest.fixture
def manager(containers: Any) -> Place:
    own_id = containers.run("manager", containers.shell("sleep 60", NetworkMode="bridge"))
    return Place(True, own_id, (), None)


def test_a_manager_in_a_container_attaches_itself_to_the_network(
    new: NewNetwork, manager: Place, daemon: Daemon, scratch_names: Any, info: dict[str, Any]
) -> None:
    network = new()
    for _ in range(2):
        assert network.prepare(manager, info) == "neighbour"
        network.forget()
    joined = (daemon.inspect(manager.own_id or "") or {})["NetworkSettings"]["Networks"]
    assert set(joined) == {"bridge", scratch_names.network}, "it keeps its way to the hub"
    assert only(daemon, scratch_names)["Internal"] is True
    # Somebody takes it all away.
    with pytest.raises(DaemonError):
        daemon.remove_network(scratch_names.network)


def test_a_new_manager_container_attaches_itself_to_the_network_of_the_old_one(
    new: NewNetwork, manager: Place, containers: Any, scratch_names: Any, info: dict[str, Any]
) -> None:
    new().prepare(manager, info)
    second = containers.run("manager2", containers.shell("sleep 60", NetworkMode="bridge"))
    new().prepare(dataclasses.replace(manager, own_id=second), info)
    joined = containers.daemon.inspect(second)["NetworkSettings"]["Networks"]
    assert scratch_names.network in joined


def test_a_manager_in_a_container_reaches_its_engines_and_nobody_who_bears_their_names(
    new: NewNetwork, manager: Place, containers: Any, scratch_names: Any, info: dict[str, Any]
) -> None:
    network = new()
    network.prepare(manager, info)
    name = f"{scratch_names.prefix}a"
    stranger = containers.shell("sleep 60", NetworkMode=scratch_names.network)
    stranger["NetworkingConfig"] = {"EndpointsConfig": {scratch_names.network: {"Aliases": [name]}}}
    containers.run("stranger", stranger)
    engine = containers.daemon.inspect(
        containers.run("a", containers.serving(NetworkMode=scratch_names.network))
    )
    address = network.address(engine, name, 0)
    own = engine["NetworkSettings"]["Networks"][scratch_names.network]["IPAddress"]
    assert address == Address(own, 8080), "a name would be the stranger's, too"
    ask = (
        "import urllib.request, time\n"
        "for _ in range(200):\n"
        " try:\n"
        f"  print(urllib.request.urlopen('http://{address.host}:{address.port}/health').read()); break\n"
        " except OSError: time.sleep(0.05)\n"
    )
    if not Path("/usr/bin/python3").exists():
        pytest.skip("install python3 to ask from inside a container")
    asking = containers.ended(
        "b", containers.shell(f'/usr/bin/python3 -c "{ask}"', NetworkMode=scratch_names.network)
    )
    said = b"".join(piece.data for piece in containers.daemon.logs(asking, since=None, follow=False))
    assert b"ok" in said


def test_where_an_engine_cannot_be_reached_connecting_is_refused_at_once() -> None:
    with pytest.raises(ConnectionRefusedError), socket.socket() as caller:
        caller.connect((NOWHERE.host, NOWHERE.port))


def test_a_manager_on_the_hosts_network_dials_addresses(
    new: NewNetwork, containers: Any, info: dict[str, Any]
) -> None:
    own_id = containers.run("manager", containers.shell("sleep 60", NetworkMode="host"))
    assert new().prepare(Place(True, own_id, (), None), info) == "address"


def test_a_manager_that_does_not_know_itself_counts_as_their_neighbour_all_the_same(
    new: NewNetwork, info: dict[str, Any]
) -> None:
    assert new().prepare(Place(True, None, (), "note"), info) == "neighbour"
