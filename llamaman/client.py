"""How the CLI talks to a manager: its admin socket on this machine, or LLAMAMAN_URL with LLAMAMAN_API_KEY.

Plain ``http.client``: it starts fast, follows no redirect and sends the key nowhere but to the URL it was
told. Every failure is a :class:`LlamaManError` with one sentence: :class:`Unreachable` when nobody
answered,
:class:`Refused` with the manager's own sentence otherwise.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from llamaman.errors import LlamaManError

ANSWER_LIMIT: Final = 64 << 20
CONNECT_S: Final = 10.0
#: A stop drains before it answers.
ANSWER_S: Final = 960.0
#: The log stream says something every 15 s.
STREAM_SILENCE_S: Final = 60.0


class Unreachable(LlamaManError):
    """No manager answered. The CLI ends with status 3."""

    code = "unreachable"


class Ambiguous(Unreachable):
    """Several managers run here, and nothing says which is meant."""


class Refused(LlamaManError):
    """The manager answered with an error, in its own words."""

    def __init__(self, status: int, message: str, *, confirm: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.confirm = confirm


@dataclass(frozen=True, slots=True)
class Client:
    """One manager. Either ``socket`` or ``url`` is set.

    :ivar connect_s: seconds that connecting may take. :ivar answer_s: seconds that an answer may take.
    """

    socket: Path | None = None
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    connect_s: float = CONNECT_S
    answer_s: float = ANSWER_S

    def call(self, method: str, path: str, body: Any = None, query: Mapping[str, str] | None = None) -> Any:
        """Send a request and return the answer's JSON.

        :param path: decoded; it is quoted here.
        :raises Unreachable: nobody answered. :raises Refused: the manager said no.
        """
        connection, answer = self._send(method, path, body, query, self.answer_s)
        try:
            data = answer.read(ANSWER_LIMIT + 1)
        except (OSError, HTTPException) as error:
            raise Unreachable(f"the manager broke off its answer: {error}") from None
        finally:
            connection.close()
        if len(data) > ANSWER_LIMIT:
            raise Unreachable(f"the answer is larger than {ANSWER_LIMIT} bytes")
        return self._judge(answer, data)

    def events(self, path: str, query: Mapping[str, str] | None = None) -> Iterator[Any]:
        """The ``data:`` objects of a server-sent event stream, until the manager ends it.

        :raises Unreachable: nobody answered, or the stream fell silent. :raises Refused: the manager said no.
        """
        connection, answer = self._send("GET", path, None, query, STREAM_SILENCE_S)
        try:
            if answer.status != 200:
                self._judge(answer, answer.read(ANSWER_LIMIT))
            while line := answer.readline(ANSWER_LIMIT):
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        except (OSError, HTTPException, ValueError) as error:
            raise Unreachable(f"the stream broke off: {error or type(error).__name__}") from None
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: Any, query: Mapping[str, str] | None, silence_s: float
    ) -> tuple[HTTPConnection, HTTPResponse]:
        headers = {"Accept": "application/json", "Connection": "close"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        if self.api_key and self.url:
            headers["Authorization"] = f"Bearer {self.api_key}"
        target = quote(path) + (f"?{urlencode(query)}" if query else "")
        connection = self._connection()
        try:
            connection.connect()
            connection.sock.settimeout(silence_s)
            connection.request(method, self._prefix() + target, body=data, headers=headers)
            return connection, connection.getresponse()
        except (OSError, HTTPException) as error:
            connection.close()
            raise Unreachable(
                f"cannot reach the manager at {self.url or self.socket}: {_cause(error)}"
            ) from None

    def _connection(self) -> HTTPConnection:
        if self.socket is not None:
            return _UnixConnection(self.socket, self.connect_s)
        parts = urlsplit(self.url or "")
        host = parts.hostname or "localhost"
        if parts.scheme == "https":
            context = ssl.create_default_context()
            return HTTPSConnection(host, parts.port, timeout=self.connect_s, context=context)
        return HTTPConnection(host, parts.port, timeout=self.connect_s)

    def _prefix(self) -> str:
        return urlsplit(self.url).path.rstrip("/") if self.url else ""

    def _judge(self, answer: HTTPResponse, data: bytes) -> Any:
        try:
            value = json.loads(data)
        except ValueError:
            where = self.url or self.socket
            raise Refused(
                answer.status, f"{where} answered {answer.status} and no JSON; is it llamaman?"
            ) from None
        if answer.status < 400:
            return value
        said = value.get("error") if isinstance(value, dict) else None
        message = said if isinstance(said, str) else f"status {answer.status}"
        if answer.status == 401 and self.url:
            message += "; set LLAMAMAN_API_KEY to a key that may do this"
        if isinstance(value, dict) and isinstance(value.get("detail"), str):
            message = f"{message}\n{value['detail']}"
        confirm = isinstance(value, dict) and value.get("confirm_required") is True
        raise Refused(answer.status, message, confirm=confirm)


class _UnixConnection(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def find_manager(environ: Mapping[str, str]) -> Client:
    """The manager that the environment names, else the one that runs on this machine under this account.

    :raises Unreachable: there is none, or more than one. :raises ConfigError: a variable is wrong.
    """
    from llamaman.core.config import ClientConfig
    from llamaman.gateway.admin_socket import candidates, socket_path

    config = ClientConfig.from_environ(environ)
    if config.llamaman_url:
        return Client(url=config.llamaman_url, api_key=config.llamaman_api_key)
    folders = [folder for folder in candidates(config.runtime_dir) if _trusted(folder)]
    node = environ.get("LLAMAMAN_NODE_NAME", "").strip()
    found = [socket_path(folder, node) for folder in folders] if node else []
    if not any(path.exists() for path in found):
        found = [path for folder in folders for path in sorted(folder.glob("*.sock"))]
    alive = [path for path in found if _answers(path)]
    if len(alive) == 1:
        return Client(socket=alive[0])
    if alive:
        nodes = ", ".join(path.stem for path in alive)
        raise Ambiguous(f"several managers run here ({nodes}); set LLAMAMAN_NODE_NAME to the one you mean")
    looked = ", ".join(str(folder) for folder in candidates(config.runtime_dir))
    raise Unreachable(
        f"no manager of this account runs here (looked in {looked}); start one with 'llamaman serve', "
        "or set LLAMAMAN_URL and LLAMAMAN_API_KEY"
    )


def _trusted(folder: Path) -> bool:
    """Only a folder of ours (or root's) holds a manager that we may tell secrets to."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return status.st_uid in (os.geteuid(), 0) or os.geteuid() == 0


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_S)
        try:
            probe.connect(str(path))
        except OSError:  # left behind by a manager that was killed
            return False
    return True


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
