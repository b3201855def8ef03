"""Whether Docker can run engines for us: daemon, rights, version, network, image, paths, limits, leftovers.

Read by `run.py` where engines run in containers. Guarantees: nothing is changed, pulled or created; no more than
some seconds pass, also when the daemon hangs; a part that the daemon refuses to tell hides no other part. The Docker
SDK is loaded by the first call to a daemon, so not where Docker is not used.
"""

from __future__ import annotations

import os
import pwd
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from llamaman.core.config import Config
from llamaman.core.docker_choice import docker_could_be_here, docker_socket
from llamaman.core.in_docker import detect_in_docker
from llamaman.doctor import docker_daemon, docker_machine, docker_place, docker_things
from llamaman.doctor.docker_daemon import CHECK
from llamaman.doctor.finding import Finding, fail, skip
from llamaman.doctor.live import Live
from llamaman.runtimes.docker import faults, labels
from llamaman.runtimes.docker.daemon import Daemon, DaemonError, DaemonGone, Json
from llamaman.runtimes.docker.image_names import default_image
from llamaman.runtimes.docker.network import find_reach
from llamaman.runtimes.docker.place import Place, find_place

#: Seconds that one call may take, and after which no further one is made.
CALL_S: Final = 5.0
_ALL_S: Final = 15.0  # a name server that does not answer holds up a call for longer than its limit
_SETTLED_S: Final = 60.0

T = TypeVar("T")


def runs_in_containers(config: Config, environ: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether engines run in Docker here, by LLAMAMAN_RUNTIME and what is there."""
    if config.runtime == "auto":
        return docker_could_be_here(config, environ, root)
    return config.runtime == "docker"


def check_docker(
    config: Config, environ: Mapping[str, str], live: Live | None = None, *, root: Path = Path("/")
) -> Sequence[Finding]:
    """Everything that concerns Docker.

    :param environ: where DOCKER_TLS_VERIFY, DOCKER_CERT_PATH and XDG_RUNTIME_DIR are read.
    :param live: what the manager knows, when it is the caller.
    """
    contained = config.in_docker if config.in_docker is not None else detect_in_docker(root)
    socket = docker_socket(config, environ, root)
    found = list(docker_daemon.check_encryption(config))
    if socket is not None:
        problem = docker_daemon.check_socket(socket, config, contained=contained)
        if problem is not None:
            return [*found, problem]
    host = f"unix://{socket}" if socket is not None else config.docker_host
    daemon = Daemon(host, environ=environ, timeout_s=CALL_S)
    examination = _Examination(daemon, config, live, root)
    thread = threading.Thread(target=examination.run, name="doctor-docker", daemon=True)
    thread.start()
    thread.join(_ALL_S)
    found += list(examination.found)
    if thread.is_alive():
        late = docker_daemon.check_answer(daemon.address, faults.TIMED_OUT, config, local=daemon.is_local)
        return [*found, late]
    if examination.failure is not None:
        raise examination.failure
    return found


class _Examination:
    """Asks a daemon for one thing after the other.

    :ivar found: grows in the thread of :meth:`run`. :ivar failure: a defect of ours, when that has ended.
    """

    def __init__(self, daemon: Daemon, config: Config, live: Live | None, root: Path) -> None:
        self._daemon = daemon
        self._config = config
        self._live = live
        self._root = root
        self._deadline = time.monotonic() + CALL_S
        self.found: list[Finding] = []
        self.failure: Exception | None = None

    def run(self) -> None:
        """Look at everything, as far as the daemon answers."""
        try:
            self._look()
        except DaemonGone as gone:
            self.found.append(
                docker_daemon.check_answer(
                    self._daemon.address, gone.reason, self._config, local=self._daemon.is_local
                )
            )
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits for this thread
            self.failure = error
        finally:
            self._daemon.close()

    def _look(self) -> None:
        daemon, config = self._daemon, self._config
        version = self._told(CHECK, daemon.version)
        if version is None:
            return
        finding, usable = docker_daemon.check_version(daemon.address, version)
        self.found.append(finding)
        if not usable:
            return
        info = self._told(CHECK, daemon.info)
        if info is None:
            return
        ref = default_image(config.llama_image, config.gpu_type)
        self.found += docker_machine.check_kind(version, info, _account())
        self.found += docker_machine.check_restart(version, info)
        self.found += docker_machine.check_limits(version, info)
        self.found += docker_machine.check_gpu(config, info, ref, os.path.exists)
        place = self._told(docker_place.PLACE, lambda: find_place(daemon, config.in_docker, root=self._root))
        if place is not None:
            self._look_at_place(place)
            self._look_at_network(place, info)
        self.found += docker_things.check_vendor(config, ref)
        image = self._told(docker_things.IMAGE, lambda: [daemon.image(ref)])
        if image is not None:
            chosen = config.llama_image is not None
            self.found += docker_things.check_image(ref, image[0], info, chosen=chosen)
        containers = self._told(docker_things.CONTAINERS, self._containers)
        if containers is not None:
            self.found += docker_things.check_containers(
                config.node_name,
                containers,
                None if self._live is None else self._live.containers,
                None if self._live is None else self._live.install,
            )

    def _look_at_place(self, place: Place) -> None:
        config, local = self._config, self._daemon.is_local
        self.found += docker_place.check_place(config, place, local=local)
        self.found += docker_place.check_folders(config, place, local=local)

    def _look_at_network(self, place: Place, info: Json) -> None:
        daemon, config, own_id = self._daemon, self._config, place.own_id
        networks = self._told(docker_things.NETWORK, lambda: daemon.networks(config.llama_network))
        own = None if own_id is None else self._told(docker_things.NETWORK, lambda: daemon.inspect(own_id))
        if networks is not None:
            self.found += docker_things.check_network(
                config,
                networks,
                reach=find_reach(daemon, config.llama_host_addr, place, info, own),
                own=own,
                running=0 if self._live is None else len(self._live.containers),
            )

    def _containers(self) -> list[Json]:
        """Those that say they are ours, without those of this moment: a launch may be under way."""
        latest = time.time() - _SETTLED_S
        found = self._daemon.containers([f"{labels.MANAGED}=1"])
        return [each for each in found if float(each.get("Created") or 0) < latest]

    def _told(self, check: str, ask: Callable[[], T]) -> T | None:
        """What the daemon answers; None when it refuses or time is up, which is a finding.

        :raises DaemonGone: it answers nothing any more.
        """
        if time.monotonic() > self._deadline:
            self.found.append(skip(check, "Docker takes too long to answer"))
            return None
        try:
            return ask()
        except DaemonError as error:
            what = f"Docker at {self._daemon.address} refuses to tell: {error}"
            cure = "let what guards it (a proxy, an authorization plug-in) allow this call"
            self.found.append(fail(check, what, cure))
            return None


def _account() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
