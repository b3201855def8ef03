"""The models that are loaded when LlamaMan starts, one after the other, as if somebody had asked for each."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from llamaman.core.library_contract import Library
from llamaman.errors import LlamaManError
from llamaman.gateway.pool import Pools, Wish

log = logging.getLogger("llamaman.gateway")


async def preload(names: Iterable[str], library: Library, pools: Pools) -> None:
    """Load each; what cannot be loaded is logged, with the reason, and keeps no other from being loaded.

    None of them makes another model leave: a list longer than LLAMAMAN_MAX_MODELS ends where that is reached.
    """
    for name in names:
        try:
            model = library.find(name)
            wish = Wish(model, weight=0, launcher="preload", embedding=model.embedding)
            pool = pools.of(model.path)
            grant = pool.try_now(wish) or await pool.wait(wish)
        except LlamaManError as error:
            log.warning("setting preload: '%s' was not loaded: %s", name, error.message)
        else:
            grant.release()
