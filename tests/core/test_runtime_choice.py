"""Which runtime and engine a launch gets, above all where Docker is away or refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from llamaman.core.runtime_choice import choose, has_gpu, is_lost, needs_port, usable
from llamaman.errors import InvalidField, LaunchError, RuntimeLost
from llamaman.records import Engine, Exit, Handle, LaunchPlan

BINARY = Engine("llama-server", "binary", "/usr/bin/llama-server", "b1", None)
DEFAULT = Engine("docker", "image", "example.org/llama:server")
AWAY = "the Docker daemon cannot be reached; is it running?"


class Processes:
    """A runtime that is always there."""

    name = "process"

    def __init__(self, *engines: Engine) -> None:
        self._engines = engines

    def engines(self) -> Sequence[Engine]:
        return self._engines

    def start(self, plan: LaunchPlan) -> Handle:
        raise NotImplementedError

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        raise NotImplementedError

    def watch(self, handle: Handle, on_exit: Callable[[Exit], None]) -> Callable[[], None]:
        raise NotImplementedError

    def inspect(self, handle: Handle) -> Exit | None:
        raise NotImplementedError

    def find(self, node: str, install: str) -> Sequence[Handle]:
        return ()


class Containers(Processes):
    """A runtime that may be away and whose engines are named freely."""

    name = "docker"
    away: str | None = None

    def needs_port(self) -> bool:
        return False

    def lost(self) -> str | None:
        return self.away

    def on_reach(self, listener: Callable[[str | None], None]) -> None:
        raise NotImplementedError

    def engine(self, name: str) -> Engine | None:
        if ":" not in name:
            return None
        if not name.startswith("example.org/"):
            raise InvalidField("engine", f"image '{name}' is not allowed here; an administrator can allow it")
        return Engine(name, "image", name)

    def fetch(self, engine: Engine, report: Callable[[str], None]) -> Future[None] | None:
        return None


def names(runtimes: Sequence[Any]) -> list[str]:
    return [runtime.name for runtime in runtimes]


# --- which runtimes may be used -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "binary_given", "order"),
    [
        ("auto", False, ["docker", "process", "other"]),
        ("auto", True, ["process", "docker", "other"]),
        ("process", False, ["process"]),
        ("process", True, ["process"]),
        ("docker", True, ["docker"]),
        ("other", False, ["other"]),
    ],
)
def test_docker_comes_first_unless_a_binary_was_given_or_one_runtime_was_named(
    wanted: str, binary_given: bool, order: list[str]
) -> None:
    other = Processes()
    other.name = "other"
    registered = {"process": Processes(), "other": other, "docker": Containers()}
    assert names(usable(registered, wanted, binary_given=binary_given)) == order


def test_without_docker_processes_are_what_is_left() -> None:
    assert names(usable({"process": Processes()}, "auto", binary_given=False)) == ["process"]


# --- which engine ---------------------------------------------------------------------------------------


def test_blank_is_the_first_engine_of_the_first_runtime() -> None:
    docker, processes = Containers(DEFAULT), Processes(BINARY)
    assert choose("", [docker, processes]) == (docker, DEFAULT)
    assert choose(None, [processes, docker]) == (processes, BINARY)


def test_a_runtime_that_merely_has_no_engine_is_passed_over() -> None:
    docker = Containers(DEFAULT)
    assert choose(None, [Processes(), docker]) == (docker, DEFAULT)


def test_a_lost_docker_is_not_silently_replaced_by_processes() -> None:
    docker = Containers()
    docker.away = AWAY
    with pytest.raises(RuntimeLost, match="daemon cannot be reached") as lost:
        choose(None, [docker, Processes(BINARY)])
    assert (lost.value.status, lost.value.retry_after is not None) == (503, True)


def test_a_docker_without_engines_is_not_silently_replaced_by_processes() -> None:
    with pytest.raises(LaunchError):
        choose(None, [Containers(), Processes(BINARY)])


def test_a_name_is_looked_for_in_what_runtimes_list_first() -> None:
    listed = Engine("example.org/llama:x", "binary", "/odd/name")
    processes = Processes(listed)
    assert choose("example.org/llama:x", [Containers(DEFAULT), processes]) == (processes, listed)


def test_an_image_that_nobody_lists_is_asked_for_by_name() -> None:
    docker = Containers(DEFAULT)
    runtime, engine = choose("example.org/llama:b1", [Processes(BINARY), docker])
    assert (runtime, engine.path) == (docker, "example.org/llama:b1")


def test_an_image_that_is_not_allowed_says_who_can_allow_it() -> None:
    with pytest.raises(InvalidField, match="administrator can allow") as refused:
        choose("evil.org/miner:1", [Processes(BINARY), Containers(DEFAULT)])
    assert refused.value.field == "engine"


def test_an_unknown_name_lists_those_that_are_here() -> None:
    with pytest.raises(InvalidField, match=r"'vllm'.*docker, llama-server"):
        choose("vllm", [Containers(DEFAULT), Processes(BINARY)])


# --- abilities ------------------------------------------------------------------------------------------


def test_a_runtime_without_an_ability_needs_a_port_and_is_never_lost() -> None:
    assert (needs_port(Processes()), is_lost(Processes())) == (True, None)
    docker = Containers()
    docker.away = AWAY
    assert (needs_port(docker), is_lost(docker)) == (False, AWAY)


@pytest.mark.parametrize(
    ("image", "gpu"),
    [
        ("ghcr.io/ggml-org/llama.cpp:server-cuda", True),
        ("ghcr.io/ggml-org/llama.cpp:server-cuda13-b1234", True),
        ("ghcr.io/ggml-org/llama.cpp:server-rocm@sha256:ab", True),
        ("ghcr.io/ggml-org/llama.cpp:full-intel", True),
        ("ghcr.io/ggml-org/llama.cpp:server-vulkan", True),
        ("ghcr.io/ggml-org/llama.cpp:server-musa", True),
        ("ghcr.io/ggml-org/llama.cpp:server-openvino", True),
        ("ghcr.io/ggml-org/llama.cpp:server", False),
        ("ghcr.io/ggml-org/llama.cpp:server-b1234", False),
        ("ghcr.io/ggml-org/llama.cpp", False),
        ("localhost:5000/cuda/llama", False),
    ],
)
@pytest.mark.parametrize("machine", [True, False])
def test_an_image_has_a_gpu_when_its_tag_names_a_vendor(image: str, gpu: bool, machine: bool) -> None:
    assert has_gpu(Engine("docker", "image", image), machine) is gpu


@pytest.mark.parametrize("machine", [True, False])
def test_a_program_has_a_gpu_when_the_machine_has_one(machine: bool) -> None:
    assert has_gpu(BINARY, machine) is machine
