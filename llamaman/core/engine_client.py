"""What the kernel needs of an HTTP client to an engine; the gateway's upstream client fits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from llamaman.records import Address


class EngineUnreachable(Exception):
    """Base of what an engine client raises when the engine cannot be talked to."""


class EngineResponse(Protocol):
    """An answer whose head has arrived."""

    status: int

    async def read_all(self, limit: int) -> bytes:
        """The whole body, at most ``limit`` bytes."""


class EngineClient(Protocol):
    """Connections to one generation of one engine."""

    async def request(
        self,
        method: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes = b"",
        *,
        silence_s: float,
    ) -> EngineResponse:
        """Send one request; raises when the engine refuses, breaks or stays silent."""

    async def close(self) -> None:
        """Close idle connections."""

    def abort(self) -> None:
        """Drop every connection now."""


Connect = Callable[[Address], EngineClient]
