"""What somebody who has taken over a container can reach from there: a real process in its network namespace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

#: Reads wishes, tells what became of each. Root in there may do more than an engine could: it has no walls.
_PROGRAM = """\
import errno, http.client, json, sys
told = []
for host, port, path, key, seconds in json.load(sys.stdin):
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    try:
        connection.request("GET", path, headers={"Authorization": "Bearer " + key} if key else {})
        answer = connection.getresponse()
        told.append([answer.status, answer.read().decode(errors="replace"), None])
    except OSError as error:
        told.append([None, "", errno.errorcode.get(error.errno, type(error).__name__)])
    connection.close()
json.dump(told, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Wish:
    """One GET. ``host``: an address."""

    host: str
    port: int
    path: str = "/"
    key: str = ""
    seconds: float = 10


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of it: an answer, or the name of the error, such as ENETUNREACH or TimeoutError."""

    status: int | None
    body: str
    error: str | None


def from_inside(container: Any, *wishes: Wish) -> list[Heard]:
    """Ask from the network namespace of a running container.

    :param container: as Docker inspects it.
    """
    if os.geteuid() != 0 or shutil.which("nsenter") is None:
        pytest.skip("only root with nsenter (util-linux) can enter a container's network")
    done = subprocess.run(
        ["nsenter", "-t", str(container["State"]["Pid"]), "-n", sys.executable, "-I", "-c", _PROGRAM],
        input=json.dumps([[wish.host, wish.port, wish.path, wish.key, wish.seconds] for wish in wishes]),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [Heard(*each) for each in json.loads(done.stdout)]
