"""Whose process holds the other end of a loopback connection: asked of the real tables."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamaman.gateway.peer_owner import owner_of

OTHER_UID = 12345


@contextmanager
def connected(family: int, listen: str, connect: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(client's end, server's end) of a connection."""
    with socket.socket(family) as server:
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((listen, 0))
        server.listen()
        with socket.create_connection((connect, server.getsockname()[1])) as client:
            ours, _ = server.accept()
            with ours:
                yield client, ours


@pytest.mark.parametrize(
    ("family", "listen", "connect"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
)
def test_our_own_connection_is_ours(family: int, listen: str, connect: str) -> None:
    with connected(family, listen, connect) as (_, ours):
        peer, local = ours.getpeername()[:2], ours.getsockname()[:2]
        assert owner_of(peer, local) == os.geteuid()
        assert owner_of((peer[0].removeprefix("::ffff:"), peer[1]), local) == os.geteuid()


def test_a_connection_that_is_not_there_has_no_owner() -> None:
    with connected(socket.AF_INET, "127.0.0.1", "127.0.0.1") as (_, ours):
        peer, local = ours.getpeername(), ours.getsockname()
        assert owner_of(peer, (local[0], local[1] ^ 1)) is None
        assert owner_of(("127.0.0.2", peer[1]), local) is None


def test_a_connection_that_its_process_has_closed_has_no_owner() -> None:
    """The tables go on showing it, with uid 0."""
    with connected(socket.AF_INET, "127.0.0.1", "127.0.0.1") as (client, ours):
        peer, local = ours.getpeername(), ours.getsockname()
        client.close()
        assert ours.recv(1) == b""
        assert owner_of(peer, local) is None


def test_without_tables_nobody_can_tell(tmp_path: Path) -> None:
    assert owner_of(("127.0.0.1", 1), ("127.0.0.1", 2), [tmp_path / "none"]) is None


@pytest.mark.real("another account")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another account")
def test_another_accounts_connection_is_theirs() -> None:
    program = (
        f"import os, socket, sys; os.setuid({OTHER_UID}); "
        "s = socket.socket(); s.connect(('127.0.0.1', int(sys.argv[1]))); sys.stdin.read()"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen(
            [sys.executable, "-c", program, str(server.getsockname()[1])], stdin=subprocess.PIPE
        ) as child,
    ):
        server.settimeout(60)
        ours, _ = server.accept()
        with ours:
            assert owner_of(ours.getpeername(), ours.getsockname()) == OTHER_UID
        assert child.stdin is not None
        child.stdin.close()
        child.wait(60)
