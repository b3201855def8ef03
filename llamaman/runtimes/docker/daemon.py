"""The calls to a Docker daemon that LlamaMan makes, one method each; nothing else is asked of it.

Read by all of this package. Guarantees: nothing is imported or connected before the first call; a call ends with an
answer, :class:`DaemonGone` or :class:`DaemonError`; any thread may call. Only plain requests of the Docker Engine
API are made, so that what Podman serves works as well.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llamaman.runtimes.docker.connection import Connection, default_host, path_part
from llamaman.runtimes.docker.ends import only_of
from llamaman.runtimes.docker.faults import TIMED_OUT, DaemonError, DaemonGone
from llamaman.runtimes.docker.stream import Piece, Stream, json_lines, log_pieces, log_start

__all__ = ["Daemon", "DaemonError", "DaemonGone", "Json", "Piece", "Stream", "default_host"]

Json = Mapping[str, Any]

log = logging.getLogger(__name__)

#: Events that are of interest, in Docker's words and Podman's; not, for instance, each health check on the machine.
_TOLD: Final = ("create", "start", "kill", "oom", "die", "died", "destroy", "remove", "stop", "disconnect")
_REGISTRY_S: Final = 300.0  # a pull asks the registry before it says anything


class Daemon:
    """A Docker daemon; connected to by the first call, and again after it was away.

    Every method raises DaemonGone when it cannot be reached and DaemonError when it refuses.
    """

    def __init__(
        self, host: str | None, *, environ: Mapping[str, str] | None = None, timeout_s: float = 30.0
    ) -> None:
        """
        :param host: such as ``unix:///var/run/docker.sock`` or ``tcp://10.0.0.2:2376``; None: see ``default_host``.
        :param environ: where DOCKER_HOST, DOCKER_TLS_VERIFY and DOCKER_CERT_PATH are read; None: this process's.
        :param timeout_s: seconds that an answer may take, unless a call says otherwise.
        """
        known = dict(os.environ if environ is None else environ)
        self._connection = Connection(host or default_host(known), known, timeout_s)
        self._timeout_s = timeout_s

    @property
    def address(self) -> str:
        """For sentences: the path of its socket, or its address without user and password."""
        return self._connection.address

    @property
    def is_local(self) -> bool:
        """Whether it is reached by a socket of this machine."""
        return self._connection.is_local

    def version(self) -> Json:
        """What and how new it is (``ApiVersion``, ``Components``)."""
        return self._object("GET", "/version")

    def info(self) -> Json:
        """The machine as it sees it (``NCPU``, ``MemTotal``, ``SecurityOptions``)."""
        return self._object("GET", "/info")

    def close(self) -> None:
        """End all streams and connections; later calls raise DaemonGone."""
        self._connection.close()

    # --- containers ----------------------------------------------------------------------------------

    def create(self, name: str, body: Json) -> str:
        """Make a container of exactly this body; returns its id."""
        made = self._object("POST", "/containers/create", query={"name": name}, body=body)
        for warning in made.get("Warnings") or ():
            log.info("Docker on container %s: %s", name, warning)
        return str(made["Id"])

    def start(self, container_id: str) -> None:
        """A running one is no error."""
        self._connection.call("POST", f"/containers/{path_part(container_id)}/start")

    def kill(self, container_id: str, signal: str = "SIGKILL") -> None:
        """Send a signal. One that does not run or is gone is no error."""
        path = f"/containers/{path_part(container_id)}/kill"
        try:
            self._connection.call("POST", path, query={"signal": signal}, fine=(404,))
        except DaemonError as error:
            if "not running" not in error.text:
                raise

    def remove(self, container_id: str) -> None:
        """Kill and remove it, with its unnamed volumes. One that is gone is no error; a removal that somebody
        else began is waited for."""
        try:
            self._connection.call(
                "DELETE",
                f"/containers/{path_part(container_id)}",
                query={"force": "1", "v": "1"},
                patience_s=self._timeout_s + 10,  # the daemon's own patience with a process that will not die
                fine=(404,),
            )
        except DaemonError as error:
            if error.status != 409 or "in progress" not in error.text:
                raise
            self._until_gone(container_id, error)

    def _until_gone(self, container_id: str, error: DaemonError) -> None:
        deadline = time.monotonic() + self._timeout_s
        while self.inspect(container_id) is not None:
            if time.monotonic() > deadline:
                raise error
            time.sleep(0.05)

    def wait(self, container_id: str, timeout_s: float) -> Json | None:
        """How it ended (``StatusCode``), None when it still runs after ``timeout_s`` seconds.

        :raises DaemonError: status 404, it is gone.
        """
        path = f"/containers/{path_part(container_id)}/wait"
        query = {"condition": "not-running"}
        try:
            return self._object("POST", path, query=query, patience_s=max(timeout_s, 0.001))
        except DaemonGone as gone:
            if gone.reason != TIMED_OUT:
                raise
            return None

    def inspect(self, container_id: str) -> Json | None:
        """All about it; None: no such container."""
        return self._object_or_none(f"/containers/{path_part(container_id)}/json")

    def containers(self, labels: Sequence[str]) -> list[Json]:
        """Summaries of all containers, running or not, that carry these labels (``key`` or ``key=value``)."""
        query = {"all": "1", "filters": json.dumps({"label": list(labels)})}
        return self._list("/containers/json", query)

    def stats(self, container_id: str) -> Json | None:
        """One sample; None when the container is gone or not running. Takes up to two seconds on old engines."""
        path = f"/containers/{path_part(container_id)}/stats"
        found = self._object_or_none(path, query={"stream": "0", "one-shot": "1"}, fine=(404, 409))
        return found if found and found.get("memory_stats") else None

    def logs(self, container_id: str, *, since: str | None, follow: bool) -> Stream[Piece]:
        """Its output, from the beginning or right after the piece whose ``since`` is given.

        Following ends orderly when the container has ended, and also when the daemon is shut down.

        :raises DaemonError: status 404, it is gone; or its log driver cannot be read.
        """
        found = self.inspect(container_id)
        if found is None:
            raise DaemonError(404, f"No such container: {container_id}")
        query = {"stdout": "1", "stderr": "1", "timestamps": "1", "tail": "all"}
        query |= {"follow": "1"} if follow else {}
        if begin := log_start(since):
            query["since"] = begin
        decode = log_pieces(since, tty=bool(found["Config"].get("Tty")))
        return self._connection.stream("GET", f"/containers/{path_part(container_id)}/logs", query, decode)

    def events(
        self, since: float | None, labels: Sequence[str], *, network: str | None = None
    ) -> Stream[dict[str, Any]]:
        """What happens to containers with these labels, from ``since`` (seconds since 1970) or from now on.

        :param network: also whatever is taken off the network of this name, which the daemon tells without labels.
        """
        filters: dict[str, list[str]] = {"type": ["container"], "label": list(labels)}
        if network is not None:
            filters = {"type": ["container", "network"], "event": list(_TOLD)}
        query = {"filters": json.dumps(filters)}
        if since is not None:
            query["since"] = f"{since:.6f}"
        decode = json_lines if network is None else only_of(labels, network)
        return self._connection.stream("GET", "/events", query, decode)

    # --- networks ------------------------------------------------------------------------------------

    def networks(self, name: str) -> list[Json]:
        """All networks of exactly this name; old daemons allow several."""
        query = {"filters": json.dumps({"name": [name]})}  # which finds every name that contains it
        return [network for network in self._list("/networks", query) if network.get("Name") == name]

    def create_network(self, name: str, *, internal: bool, labels: Mapping[str, str]) -> str:
        """Make a bridge network; returns its id.

        :raises DaemonError: status 409, there is one of this name. Old daemons do not always notice.
        """
        body = {
            "Name": name,
            "Driver": "bridge",
            "CheckDuplicate": True,
            "Internal": internal,
            "Labels": dict(labels),
        }
        return str(self._object("POST", "/networks/create", body=body)["Id"])

    def connect(self, network: str, container_id: str) -> None:
        """Attach a container; one that is attached is no error."""
        path = f"/networks/{path_part(network)}/connect"
        try:
            self._connection.call("POST", path, body={"Container": container_id})
        except DaemonError as error:
            if (
                "already" not in error.text
            ):  # "endpoint with name … already exists"; Podman: "already connected"
                raise

    def remove_network(self, name: str) -> None:
        """By name or id; one that is gone is no error.

        :raises DaemonError: status 403, containers are attached to it.
        """
        self._connection.call("DELETE", f"/networks/{path_part(name)}", fine=(404,))

    # --- images --------------------------------------------------------------------------------------

    def image(self, ref: str) -> Json | None:
        """All about an image, None when it is not here. ``ref``: name with tag or digest, or id."""
        return self._object_or_none(f"/images/{path_part(ref)}/json")

    def images(self) -> list[Json]:
        """Summaries of all images that are here."""
        return self._list("/images/json")

    def remove_image(self, ref: str) -> None:
        """:raises DaemonError: status 404, it is not here; 409, a container uses it."""
        self._connection.call("DELETE", f"/images/{path_part(ref)}")

    def pull(self, repository: str, tag: str) -> Stream[dict[str, Any]]:
        """Fetch an image; yields the daemon's reports (``status``, ``id``, ``progressDetail``).

        :param tag: a tag, or a digest such as ``sha256:…``; never empty, that would mean all tags.
        :raises DaemonError: at once or later while reading: it cannot be had.
        """
        if not tag:
            raise DaemonError(400, f"image '{repository}' is named without a tag")
        query = {"fromImage": repository, "tag": tag}
        return self._connection.stream(
            "POST", "/images/create", query, json_lines, patience_s=_REGISTRY_S, registry=repository
        )

    # --- answers -------------------------------------------------------------------------------------

    def _object(self, method: str, path: str, **how: Any) -> Json:
        found = self._connection.call(method, path, **how)
        if not isinstance(found, dict):
            raise DaemonError(None, f"its answer to {method} {path} is no JSON object")
        return found

    def _object_or_none(
        self, path: str, *, query: Mapping[str, str] | None = None, fine: Sequence[int] = (404,)
    ) -> Json | None:
        found = self._connection.call("GET", path, query=query, fine=fine)
        if found is not None and not isinstance(found, dict):
            raise DaemonError(None, f"its answer to GET {path} is no JSON object")
        return found

    def _list(self, path: str, query: Mapping[str, str] | None = None) -> list[Json]:
        found = self._connection.call("GET", path, query=query)
        return [entry for entry in found or () if isinstance(entry, dict)]
