"""Writing down what has happened to one instance, and trying again as long as that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from llamaman.core.instance import Instance
from llamaman.errors import LlamaManError

log = logging.getLogger("llamaman.supervisor")

FIRST_WRITE_PAUSE_S = 2.0
LONGEST_WRITE_PAUSE_S = 60.0


class Notes:
    """The record of one instance in the store."""

    def __init__(
        self,
        instance: Instance,
        persist: Callable[[Instance], Awaitable[None]],
        background: Callable[[Coroutine[Any, Any, Any]], object],
    ) -> None:
        self._instance = instance
        self._persist = persist
        self._background = background
        self._trying_again = False

    async def must(self) -> None:
        """Store it now; raises what stands in the way."""
        await self._persist(self._instance)

    async def may(self, what: str) -> None:
        """Store it now if that can be done; ``what`` is named in the log where it cannot."""
        try:
            await self.must()
        except LlamaManError as error:
            log.warning("instance %s: %s could not be stored: %s", self._instance.id, what, error.message)

    async def will(self) -> None:
        """Store it; as long as that fails, try again now and then."""
        try:
            await self.must()
        except LlamaManError as error:
            log.warning(
                "instance %s: what happened could not be stored: %s", self._instance.id, error.message
            )
            if not self._trying_again:
                self._trying_again = True
                self._background(self._again())

    async def _again(self) -> None:
        pause = FIRST_WRITE_PAUSE_S
        while True:
            await asyncio.sleep(pause)
            try:
                await self.must()
            except LlamaManError:
                pause = min(pause * 2, LONGEST_WRITE_PAUSE_S)
            else:
                self._trying_again = False
                return
