"""An example plugin: `POST /ask` answers a question; `GET /api/ask` says how often each model did.

It has one of everything that most plugins need: a dialect, a setting, a counter fed by ``post_forward``, a
job that stores the counter, a collection to store it in, and a management route that shows it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamaman import Access, Collection, Job, RouteSet, Setting, access, hookimpl

if TYPE_CHECKING:
    from flask import Response

    from llamaman import Dialect, ForwardRecord, PluginKernel

TALLY = "ask.tally"


class Plugin:
    """The hooks. What the entry point names may be a module, or an object such as this one."""

    def __init__(self) -> None:
        self._kernel: PluginKernel | None = None
        self._lock = threading.Lock()  # hooks run on several threads
        self._new: Counter[str] = Counter()  # answers per model that are not stored yet

    @hookimpl
    def setting_declare(self) -> Sequence[Setting]:
        """Becomes `ask.max_tokens`."""
        return (Setting("max_tokens", "int", 64, "Tokens of an answer.", minimum=1, maximum=4096),)

    @hookimpl
    def collection_declare(self) -> Sequence[Collection]:
        """Documents `model -> answers`."""
        return (Collection(TALLY),)

    @hookimpl
    def route_register(self, kernel: PluginKernel) -> Sequence[Dialect | RouteSet]:
        """What is served. Heavy imports belong here, not at the top."""
        from llamaman_ask.dialect import Ask

        self._kernel = kernel
        return (Ask(lambda: kernel.setting("ask.max_tokens")), self._management())

    @hookimpl
    def job_declare(self) -> Sequence[Job]:
        """Store the counter now and then: nothing is written per request."""
        return (Job("ask.store-tally", 5.0, self.store),)

    @hookimpl
    def post_forward(self, record: ForwardRecord) -> None:
        """Count; called for the requests of every dialect."""
        if record.dialect == "ask" and record.outcome == "complete":
            with self._lock:
                self._new[record.model] += 1

    @hookimpl
    def shutdown(self) -> None:
        """Store what is left. An argument that is not needed may be left out."""
        self.store()

    def store(self) -> None:
        """Add what is new to what is stored. Blocks, so it runs on the jobs' pool."""
        with self._lock:
            new, self._new = self._new, Counter()
        if not new or self._kernel is None:
            return
        tally = self._kernel.collection(TALLY)
        for model, count in new.items():
            known = tally.get(model)
            tally.put(model, count + (known.value if known else 0), expected=known.version if known else 0)

    def _management(self) -> RouteSet:
        from flask import Blueprint, jsonify

        blueprint = Blueprint("ask", __name__)

        @blueprint.get("/api/ask")
        @access(Access.VIEW)
        def tally() -> Response:
            assert self._kernel is not None
            counts = Counter({each.key: each.value for each in self._kernel.collection(TALLY).list()})
            with self._lock:
                counts += self._new
            return jsonify(counts)

        return RouteSet(blueprint)


plugin = Plugin()
