"""The way to a Docker daemon: requests, long answers, and what to do when it went away or came back changed.

Read by daemon.py. The only module that uses the Docker SDK, which it imports with the first request. Guarantees: a
request ends with an answer, :class:`DaemonGone` or :class:`DaemonError`; any thread may ask; a daemon that was away
is asked again which version of the API it speaks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

from llamaman.runtimes.docker.faults import (
    BROKEN,
    CLOSED,
    NOT_A_SOCKET,
    REFUSED,
    DaemonError,
    DaemonGone,
    reason_of,
    transport_errors,
)
from llamaman.runtimes.docker.stream import Stream

log = logging.getLogger(__name__)
T = TypeVar("T")

_SOCKET: Final = Path("/var/run/docker.sock")
_POOL: Final = 64  # connections that are kept; more only cost a new one each


@dataclass(frozen=True, slots=True)
class _Client:
    """A client of the SDK and the version of the API that its daemon speaks."""

    http: Any
    version: str


def default_host(environ: Mapping[str, str]) -> str:
    """Where the daemon is: DOCKER_HOST, else the machine's socket, else that of a rootless daemon of our user.

    The context of the Docker command-line client plays no part: it changes with the shell of whoever uses it.
    """
    if host := environ.get("DOCKER_HOST"):
        return host
    own = Path(environ.get("XDG_RUNTIME_DIR", "/nowhere"), "docker.sock")
    return f"unix://{own}" if not _SOCKET.exists() and own.is_socket() else f"unix://{_SOCKET}"


class Connection:
    """Made without connecting."""

    def __init__(self, host: str, environ: Mapping[str, str], timeout_s: float) -> None:
        """
        :param host: an address as DOCKER_HOST holds it.
        :param environ: where DOCKER_TLS_VERIFY and DOCKER_CERT_PATH are read.
        """
        self._host = f"unix://{host}" if host.startswith("/") else host
        self._environ = environ
        self.timeout_s = timeout_s
        self._current: _Client | None = None
        self._streams: weakref.WeakSet[Stream[Any]] = weakref.WeakSet()
        self._closed = False

    @property
    def address(self) -> str:
        """The path of the socket, or the address without user and password."""
        parts = urlsplit(self._host)
        if self.is_local:
            return f"/{(parts.netloc + parts.path).lstrip('/')}"
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def is_local(self) -> bool:
        """Whether it leads to a socket of this machine."""
        return self._host.startswith(("unix:", "http+unix:"))

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        patience_s: float | None = None,
        fine: Sequence[int] = (),
    ) -> Any:
        """The decoded answer to one request; None for an empty one and for a status in ``fine``.

        Asked twice where that changes nothing: on a connection that went stale, and when the daemon came back as
        another version.

        :param patience_s: seconds for the answer; None: ``timeout_s``.
        :param fine: statuses that are no error.
        """
        times = (self.timeout_s, patience_s or self.timeout_s)
        for last in (False, True):
            kept = self._current
            client = kept or self._connect()
            try:
                answer = _send(client, method, path, query, body, times)
            except transport_errors() as error:
                self._drop(client)
                reason = self._reason(error)
                if not last and kept and method == "GET" and reason == BROKEN:
                    continue
                raise DaemonGone(reason) from error
            if answer.status_code in fine:
                return None
            try:
                _refuse(answer)
            except DaemonError as error:
                if last or not _is_other_version(error):
                    raise
                self._drop(client)
                continue
            return _decoded(answer) if answer.content else None
        raise AssertionError("the second try returns or raises")

    def stream(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        decode: Callable[[Iterator[bytes]], Iterator[T]],
        *,
        patience_s: float | None = None,
        registry: str | None = None,
    ) -> Stream[T]:
        """An answer that goes on, on a connection of its own.

        :param patience_s: seconds until it begins; None: ``timeout_s``.
        :param registry: the repository for which credentials of the Docker configuration are sent along.
        """
        version = (self._current or self._connect()).version
        own = _Client(self._new_client(), version)
        times = (self.timeout_s, patience_s or self.timeout_s)
        with contextlib.ExitStack() as undo:
            undo.callback(own.http.close)
            headers = _credentials(own.http, registry) if registry else {}
            try:
                answer = _send(own, method, path, query, None, times, stream=True, headers=headers)
                _refuse(answer)
            except transport_errors() as error:
                self._forget()
                raise DaemonGone(self._reason(error)) from error
            except DaemonError as error:
                if _is_other_version(error):
                    self._forget()
                raise
            stream = Stream(answer, decode, release=own.http.close, on_gone=self._forget)
            undo.pop_all()
        self._streams.add(stream)
        if self._closed:  # close() may have looked at the set before
            stream.close()
        return stream

    def close(self) -> None:
        """End all streams and connections; later calls raise DaemonGone."""
        self._closed = True
        for stream in list(self._streams):
            stream.close()
        current, self._current = self._current, None
        if current is not None:
            current.http.close()

    # --- connecting ----------------------------------------------------------------------------------

    def _connect(self) -> _Client:
        """Ask for the newest version of the API that the daemon speaks. Two threads may do so at once."""
        http = self._new_client()
        try:
            answer = http.get(f"{http.base_url}/version", timeout=self.timeout_s)
        except transport_errors() as error:
            http.close()
            raise DaemonGone(self._reason(error)) from error
        _refuse(answer)
        found = _decoded(answer)
        if not isinstance(found, dict) or "ApiVersion" not in found:
            raise DaemonGone("what answers there is no Docker daemon")
        client = _Client(http, str(found["ApiVersion"]))
        self._current = client
        return client

    def _new_client(self) -> Any:
        """A client of the SDK that has not connected yet."""
        if self._closed:
            raise DaemonGone(CLOSED)
        _refuse_scheme(self._host)
        import docker
        import docker.errors
        import docker.utils
        from requests.adapters import HTTPAdapter

        known = {"DOCKER_HOST": self._host}
        if not self.is_local:  # a socket knows no TLS, whatever is set
            names = ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")
            known |= {name: self._environ[name] for name in names if name in self._environ}
        try:
            http = docker.APIClient(
                **docker.utils.kwargs_from_env(known),
                version="1.24",  # given so that nothing is asked yet; _connect finds the real one
                timeout=self.timeout_s,
                max_pool_size=_POOL,
            )
        except docker.errors.DockerException as error:
            raise DaemonGone(reason_of(error)) from error
        http.trust_env = False  # proxies of the environment lead to the internet, not to a daemon
        if not self.is_local:
            for scheme in ("http://", "https://"):
                http.mount(scheme, HTTPAdapter(pool_maxsize=_POOL))
        return http

    def _drop(self, client: _Client) -> None:
        """Connect anew next time. Not closed: other threads may have an answer on the way."""
        if self._current is client:
            self._current = None

    def _forget(self) -> None:
        self._current = None

    def _reason(self, error: Exception) -> str:
        if self._closed:
            return CLOSED
        reason = reason_of(error)
        # Docker makes a folder of a socket that did not exist when it was mounted.
        return NOT_A_SOCKET if reason == REFUSED and self.is_local and Path(self.address).is_dir() else reason


def path_part(name: str) -> str:
    """A name as part of a path.

    :raises DaemonError: it would lead to another path.
    """
    if not all(name.split("/")) or {".", ".."}.intersection(name.split("/")):
        raise DaemonError(400, f"'{name}' is no valid name")
    return quote(name, safe="/:@")


# --- one request -------------------------------------------------------------------------------------


def _send(
    client: _Client,
    method: str,
    path: str,
    query: Mapping[str, str] | None,
    body: Mapping[str, Any] | None,
    times: tuple[float, float],
    *,
    stream: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Any:
    sent = dict(headers or {})
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        sent["Content-Type"] = "application/json"
    url = f"{client.http.base_url}/v{client.version}{path}"
    return client.http.request(
        method, url, params=query, data=data, headers=sent, timeout=times, stream=stream
    )


def _refuse(answer: Any) -> None:
    """:raises DaemonError: the status says so."""
    status = int(answer.status_code)
    if status < 400:
        return
    text = answer.text
    with contextlib.suppress(ValueError, KeyError, TypeError):  # not in Docker's form: shown as it is
        text = answer.json()["message"]
    raise DaemonError(status, str(text) or f"HTTP status {status}")


def _decoded(answer: Any) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise DaemonError(
            int(answer.status_code), "its answer is no JSON; is this a Docker daemon?"
        ) from error


def _is_other_version(error: DaemonError) -> bool:
    """It was replaced by an older or a much newer one since it was asked for its version."""
    return error.status == 400 and "client version" in error.text and "too" in error.text


def _refuse_scheme(host: str) -> None:
    """:raises DaemonGone: an address of a kind that this does not speak."""
    if host.startswith("ssh:"):
        raise DaemonGone(
            "ssh:// is not supported; forward the socket with"
            " `ssh -nNT -L /run/user/1000/docker.sock:/var/run/docker.sock HOST`"
            " and set DOCKER_HOST=unix:///run/user/1000/docker.sock"
        )
    if host.startswith("npipe:"):
        raise DaemonGone(
            "npipe:// is not supported; run LlamaMan inside WSL, or let Docker listen on a tcp:// address"
        )


def _credentials(client: Any, repository: str) -> dict[str, str]:
    """The header with the credentials that ``docker login`` left for a repository's registry, if any."""
    import docker.auth
    import docker.errors

    try:
        registry, _ = docker.auth.resolve_repository_name(repository)
        header = docker.auth.get_config_header(client, registry)
    except docker.errors.InvalidRepository as error:
        raise DaemonError(400, str(error)) from error
    except docker.errors.DockerException as error:
        log.warning("pulling %s without credentials: %s", repository, error)
        return {}
    if not header:
        return {}
    return {"X-Registry-Auth": header.decode() if isinstance(header, bytes) else header}
