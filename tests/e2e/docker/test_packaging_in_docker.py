"""The manager's image: it builds from this checkout, is small, says what it is, and comes up healthy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamaman.testing.base_image import NoBase, base_image
from llamaman.testing.manager_container import ManagerContainer
from llamaman.testing.manager_image import ROOT, connect, manager_image
from llamaman.testing.wire import call
from llamaman.version import __version__

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = pytest.mark.real("docker")


@pytest.fixture(scope="module")
def client(docker_host: str) -> Iterator[DockerClient]:
    """The Docker engine of the tests."""
    client = connect(docker_host)
    yield client
    client.close()


@pytest.fixture(scope="module")
def image(client: DockerClient) -> str:
    """The manager's image of this checkout."""
    try:
        return manager_image(client)
    except NoBase as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def running(
    docker_host: str, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ManagerContainer]:
    """A manager in a container that has started."""
    folder = tmp_path_factory.mktemp("packaged")
    # Whether a llama-server can be launched is another test's question: here the manager alone is looked at.
    manager = ManagerContainer(folder, host=docker_host, image=image, health_interval_s=0.5)
    with manager:
        yield manager


def run(client: DockerClient, image: str, *command: str, **options: object) -> tuple[int, str]:
    """Run a command of the image in a container of its own, without a network."""
    made = client.containers.create(image, list(command), network_mode="none", **options)
    try:
        made.start()
        status = int(made.wait(timeout=60)["StatusCode"])
        return status, bytes(made.logs()).decode(errors="replace")
    finally:
        made.remove(force=True)


def test_it_runs_the_command_line_of_this_checkout(client: DockerClient, image: str) -> None:
    status, said = run(client, image, "--version")
    assert (status, said.strip()) == (0, f"llamaman, version {__version__}")


def test_every_module_of_the_checkout_is_in_it(client: DockerClient, image: str) -> None:
    ask = "import pkgutil as p, llamaman as l; print(*(m.name for m in p.walk_packages(l.__path__, 'llamaman.')))"
    status, said = run(client, image, "-I", "-c", ask, entrypoint="/opt/llamaman/bin/python")
    assert status == 0, said
    import llamaman

    package = Path(llamaman.__file__).parent
    modules = {path.relative_to(package.parent).with_suffix("") for path in package.rglob("*.py")}
    expected = {".".join(path.parts).removesuffix(".__init__") for path in modules} - {"llamaman"}
    assert set(said.split()) == expected


def test_neither_compiler_nor_pip_nor_sources_stay_in_it(client: DockerClient, image: str) -> None:
    look = (
        "for each in gcc cc make pip pip3 git; do command -v $each; done; ls -d /src /pip ~/.cache 2>&-; true"
    )
    assert run(client, image, "-c", look, entrypoint="/bin/sh")[1] == ""


def test_it_adds_little_to_its_base(client: DockerClient, image: str) -> None:
    added = client.images.get(image).attrs["Size"] - client.images.get(base_image(client)).attrs["Size"]
    assert added < 100 * 1024**2


def test_it_publishes_nothing_by_itself_and_keeps_nothing_in_volumes(
    client: DockerClient, image: str
) -> None:
    config = client.images.get(image).attrs["Config"]
    expected = {f"{port}/tcp" for port in (5000, 42069, *range(8000, 8021))}
    assert set(config["ExposedPorts"]) == expected
    assert not config["Volumes"]
    assert config["Entrypoint"] == ["llamaman"]
    assert config["Cmd"] == ["serve"]
    assert not [each for each in config["Env"] if each.startswith("PIP_")]


def test_without_a_node_name_it_says_what_to_set(client: DockerClient, image: str) -> None:
    status, said = run(client, image)
    assert status == 78
    assert "LLAMAMAN_NODE_NAME" in said


def test_doctor_runs_in_it_without_a_manager(client: DockerClient, image: str) -> None:
    status, said = run(client, image, "doctor", "--json", environment={"LLAMAMAN_NODE_NAME": "n"})
    assert status in (0, 1), said
    assert "Traceback" not in said
    assert "data-dir" in said


def test_docker_finds_it_healthy(running: ManagerContainer) -> None:
    def healthy() -> bool:
        return bool(running.container.attrs["State"]["Health"]["Status"] == "healthy")

    running.until(healthy, "Docker to find the manager healthy", seconds=30)


def test_docker_finds_it_unhealthy_where_nobody_answers(running: ManagerContainer) -> None:
    """The check asks at the port that is configured; on port 9 nobody listens."""
    kind, *check = running.client.images.get(running.image).attrs["Config"]["Healthcheck"]["Test"]
    assert kind == "CMD"
    assert running.run(*check) == (0, "")
    assert running.run("env", "LLAMAMAN_PORT=9", *check)[0] != 0


def test_its_ports_answer_through_the_ones_that_are_published(running: ManagerContainer) -> None:
    assert running.http("GET", "/health").json() == {"status": "ok"}
    assert call(running.proxy_port, "GET", "/").status == 200


def test_the_plugins_of_this_checkout_are_loaded(running: ManagerContainer) -> None:
    loaded = {each["name"] for each in running.manage("GET", "/api/plugins") if each["state"] == "active"}
    assert {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")} <= loaded


def test_the_command_line_inside_needs_no_key(running: ManagerContainer) -> None:
    status, said = running.run("llamaman", "ps")
    assert status == 0, said


def test_docker_stop_ends_it_in_order(docker_host: str, image: str, tmp_path: Path) -> None:
    with ManagerContainer(tmp_path / "m", host=docker_host, image=image) as manager:
        assert manager.terminate() == 0
        assert "Traceback" not in manager.output()
