"""What waking a model in a container costs on top of Docker and llama.cpp.

Read by :mod:`benchmarks.__main__`. Guarantees that every wake is a real container of a real Docker engine and a
real answer, that the moment of Docker's start call is that at which it passes a relay in front of the socket, and
that readiness is seen by asking the engine itself, past LlamaMan.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llamaman.testing import processes, write_tiny_model
from llamaman.testing.docker_images import NoImage, server_image
from llamaman.testing.docker_manager import DockerManager
from llamaman.testing.docker_relay import DockerRelay
from llamaman.testing.manager import SMALL
from llamaman.testing.wire import call

MODEL = "bench"
_LOOK_EVERY_S = 0.002


@dataclass(frozen=True, slots=True)
class Wakes:
    """Milliseconds; medians and the worst of all wakes.

    :ivar to_start: from sending the request to Docker's start call.
    :ivar to_byte: from the engine's first healthy answer to the first byte of the client's.
    :ivar own: what the same request takes to its first byte on the ready engine, asked without LlamaMan.
    """

    to_start: float
    to_start_worst: float
    to_byte: float
    to_byte_worst: float
    own: float
    count: int


def measure(count: int, say: Callable[[str], None]) -> Wakes:
    """Wake a sleeping model ``count`` times by a request.

    :raises processes.NotReady: LlamaMan or Docker does not come up.
    """
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    try:
        image = server_image(host)
    except NoImage as missing:
        raise processes.NotReady(str(missing)) from missing
    with (
        tempfile.TemporaryDirectory(prefix="llamaman-bench-") as folder,
        DockerRelay(host) as relay,
        DockerManager(Path(folder) / "manager", host=relay.host, image=image) as manager,
    ):
        write_tiny_model(manager.models / f"{MODEL}.gguf")
        manager.manage("POST", "/api/models/rescan")
        manager.setting(inference={"cold_starts_per_minute": 0})  # one key for all wakes
        manager.preset(MODEL, **SMALL)
        first_byte(manager)  # the image is asked for its flags, the network is made
        found = []
        for number in range(count):
            found.append(_wake(manager, relay))
            say(f"wake {number + 1}/{count}")
        own = statistics.median(first_byte(manager) for _ in range(10))
    starts, ready = [each[0] for each in found], [each[1] for each in found]
    return Wakes(
        statistics.median(starts), max(starts), statistics.median(ready), max(ready), 1000 * own, count
    )


def _wake(manager: DockerManager, relay: DockerRelay) -> tuple[float, float]:
    (instance,) = manager.instances()
    manager.stop(instance["id"], force=True)
    relay.calls.clear()
    healthy: list[float] = []
    over = threading.Event()
    watcher = threading.Thread(target=_watch_health, args=(manager, instance["id"], healthy, over))
    watcher.start()
    asked = time.perf_counter()
    try:
        answered = asked + first_byte(manager)
    finally:
        over.set()
        watcher.join()
    started = next(each.at for each in relay.calls if each.shape == "POST /containers/{}/start")
    return 1000 * (started - asked), 1000 * (answered - healthy[0])


def first_byte(manager: DockerManager) -> float:
    """Seconds from sending a small streamed request to the first byte of its answer's body."""
    begun = time.perf_counter()
    with manager.ask(MODEL, stream=True, max_tokens=1) as request:
        if request.begun.status != 200 or not request.begun.read(1):
            raise processes.NotReady(f"status {request.begun.status}: {request.begun.read()!r}")
        return time.perf_counter() - begun


def _watch_health(
    manager: DockerManager, instance_id: str, healthy: list[float], over: threading.Event
) -> None:
    """Note when the engine first says that it is healthy."""
    address = ""
    while not over.is_set() and not healthy:
        try:
            if not address:
                networks = manager.container_of(instance_id)["NetworkSettings"]["Networks"]
                address = networks[manager.network]["IPAddress"]
            elif call((address, 8080), "GET", "/health", seconds=1).status == 200:
                healthy.append(time.perf_counter())
        except (LookupError, OSError):
            pass  # not made yet, or not listening yet
        time.sleep(_LOOK_EVERY_S)
