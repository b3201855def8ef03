"""What ties an instance to the process of its engine: the client, the watch for its end, and who looks after it.

Used by the supervisor, on the event loop, which alone decides when it is tied and let go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from llamaman.core import messages as m
from llamaman.core.errands import Errands
from llamaman.core.instance import Instance
from llamaman.core.services import Services
from llamaman.records import Exit, Handle


class Attachment:
    """At most one process at a time; ``post`` is the supervisor's inbox, ``background`` begins a task there."""

    def __init__(
        self,
        instance: Instance,
        services: Services,
        errands: Errands,
        post: Callable[[m.Message], None],
        background: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
    ) -> None:
        self._instance = instance
        self._s = services
        self._errands = errands
        self._post = post
        self._background = background
        self._unwatch: Callable[[], None] | None = None
        self._readiness: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def attach(self, handle: Handle) -> None:
        """Be able to talk to a process, and be told when it ends."""
        instance = self._instance
        instance.handle = handle
        instance.api_key = self._s.api_key(instance.id, handle.generation).encode()
        instance.client = self._s.connect(handle.address)
        generation = instance.generation
        loop = asyncio.get_running_loop()

        def exited(exit_: Exit) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody wants to know any more
                loop.call_soon_threadsafe(self._post, m.Exited(generation, exit_))

        watch = self._s.runtime(instance.runtime).watch
        self._unwatch = await self._s.inspect(watch, handle, exited)

    def await_ready(self) -> None:
        """Ask until it answers or will not."""
        self._readiness = self._background(self._errands.await_ready(self._instance.generation))

    def look_after(self) -> None:
        """See that it goes on, now that it is ready."""
        self._watch = self._background(self._errands.watch(self._instance.generation))

    def hurry(self) -> None:
        """It is about to be ended: wait for no answer of it any more."""
        if self._readiness:
            self._readiness.cancel()
        if self._instance.client:
            self._instance.client.abort()

    def detach(self) -> None:
        """Neither watch it nor talk to it any more."""
        self.unwatch()
        if self._readiness:
            self._readiness.cancel()
            self._readiness = None
        if self._watch:
            self._watch.cancel()
            self._watch = None
        client, self._instance.client = self._instance.client, None
        if client:
            client.abort()
            self._background(client.close())

    def unwatch(self) -> None:
        """Not be told of its end any more."""
        if self._unwatch:
            self._unwatch()
            self._unwatch = None
