"""From a launch plan to a started container; nothing is left behind when that fails. For the runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from llamaman.errors import LaunchError
from llamaman.records import Address, LaunchPlan, LaunchRequest
from llamaman.runtimes.docker import container, labels
from llamaman.runtimes.docker.account import account_for
from llamaman.runtimes.docker.container import Container
from llamaman.runtimes.docker.daemon import Daemon, DaemonError, DaemonGone, Json
from llamaman.runtimes.docker.files import engine_files
from llamaman.runtimes.docker.images import Images
from llamaman.runtimes.docker.network import NOWHERE
from llamaman.runtimes.docker.parts import Parts
from llamaman.runtimes.docker.place import host_path
from llamaman.runtimes.docker.surroundings import Surroundings


@dataclass(frozen=True, slots=True)
class Started:
    """A container that was started.

    :ivar notes: what was lowered, in words for whoever launched it.
    """

    container_id: str
    inspected: Json
    address: Address
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Launcher:
    """What starting needs.

    :ivar is_ours: whether an inspected container was made by us, by its proof.
    :ivar discard: removes a container of ours.
    """

    daemon: Daemon
    parts: Parts
    surroundings: Surroundings
    images: Images
    is_ours: Callable[[Json], bool]
    discard: Callable[[str], None]

    def launch(self, plan: LaunchPlan, name: str) -> Started:
        """Make and start the container of a plan.

        :raises LaunchError: it cannot be. :raises DaemonError: the daemon refuses. :raises DaemonGone: it is away, and
            what was made is removed when it is back.
        """
        image = self.images.require(plan.engine.path)
        made, published = self._prepare(plan, image)
        try:
            container_id = self._create(name, made)
        except DaemonError as error:
            if error.status != 404 or "network" not in error.text:
                raise
            self.surroundings.forget()  # somebody removed the network since it was looked at
            self.surroundings.join()
            container_id = self._create(name, made)
        try:
            self.daemon.start(container_id)
            inspected = self.daemon.inspect(container_id)
            if inspected is None:
                raise LaunchError(f"container {name} was removed by somebody else while it started")
            if inspected["Image"] != image["Id"]:
                raise LaunchError(
                    f"the image '{plan.engine.path}' was replaced while it was started; try again"
                )
            if inspected["State"]["Running"]:
                address = self.surroundings.network.address(inspected, name, published)
            else:  # it has ended at once; whoever watches it hears why
                address = NOWHERE
        except BaseException:
            with contextlib.suppress(DaemonGone, DaemonError):  # the reason of the failure says more
                self.discard(container_id)
            raise
        return Started(container_id, inspected, address, made.notes)

    def _prepare(self, plan: LaunchPlan, image: Json) -> tuple[Container, int]:
        """What will be created, checked after every plugin had its say, and the published port or 0."""
        here, reach = self.surroundings.look(), self.surroundings.join()
        files = engine_files(plan, private=self.parts.private)
        mounts = files.mounts(lambda path: host_path(path, here.place, self.parts.folders))
        account = account_for(files.statuses)
        known = plan.engine.flags
        spec = container.spec_of(plan, mounts=mounts, flags=files.flags, account=account, known_flags=known)
        request = LaunchRequest(model_path=plan.model_path, options=plan.options)
        facts = container.Facts(
            cpus=int(here.info.get("NCPU") or 0),
            memory_total=int(here.info.get("MemTotal") or 0),
            image_id=image["Id"],
            network=self.parts.network,
            publish=(self.surroundings.published_on, plan.port) if reach == "port" else None,
            init=here.has_init,
            key=self.parts.key,
            account=account,
            mounts=mounts,
            flags=files.flags,
            patch=self.parts.ask_plugins(request, spec),
            known_flags=known,
        )
        profiles = self.parts.seccomp_profiles()
        made = container.checked(plan, self.parts.prefix, facts, seccomp_profiles=profiles)
        return made, plan.port if reach == "port" else 0

    def _create(self, name: str, made: Container) -> str:
        try:
            return self.daemon.create(name, made.body)
        except DaemonError as error:
            if error.status != 409:
                raise
            # The name is taken: by what a killed manager left, or by somebody else's container.
            taken = self.daemon.inspect(name)
            if taken is not None and not self.is_ours(taken):
                raise LaunchError(
                    f"a container named {name} exists already and is not LlamaMan's; "
                    "rename it, or set LLAMA_CONTAINER_PREFIX to something else"
                ) from error
            if taken is not None:
                if taken["Config"]["Labels"][labels.INSTANCE] != made.body["Labels"][labels.INSTANCE]:
                    raise LaunchError(
                        f"the container {name} is that of another instance, whose id begins alike; launch again, "
                        "and the instance gets another id"
                    ) from error
                self.discard(taken["Id"])
            return self.daemon.create(name, made.body)
