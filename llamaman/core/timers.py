"""The timers of one supervisor. A timer only posts; what that means is decided when the message is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from llamaman.core import messages as m

Name = Literal["drain", "idle", "retry"]


class Timers:
    """At most one of each name; ``post`` is the supervisor's inbox."""

    def __init__(self, post: Callable[[m.Message], None]) -> None:
        self._post = post
        self._armed: dict[Name, asyncio.TimerHandle] = {}

    def arm(self, name: Name, delay_s: float, message: m.Message) -> None:
        """Post ``message`` in so many seconds, instead of what this timer was to post."""
        self.cancel(name)
        self._armed[name] = asyncio.get_running_loop().call_later(delay_s, self._post, message)

    def cancel(self, name: Name) -> None:
        """Not any more; one that is not armed is no error."""
        if timer := self._armed.pop(name, None):
            timer.cancel()

    def cancel_all(self) -> None:
        """None of them any more."""
        for name in tuple(self._armed):
            self.cancel(name)
