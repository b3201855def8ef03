"""``llamaman serve``: one manager process, from its signals to its exit status."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from llamaman.boot import build_kernel
from llamaman.core.config import Config
from llamaman.core.redact import install_logging
from llamaman.errors import ConfigError, StoreCorrupt
from llamaman.gateway.listeners import PortTaken
from llamaman.house import SHUTDOWN_GRACE_S, House

log = logging.getLogger("llamaman")

EXIT_CONFIG = 78
SWITCH_INTERVAL_S = 0.0005


def run(config: Config) -> int:
    """Serve until told to end; returns the exit status.

    Configuration problems end it with 78 (EX_CONFIG) and one sentence that says what to do.
    """
    install_logging(config.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # a busy thread else starves the event loop for 5 ms at a time
    try:
        import uvloop

        return uvloop.run(_serve(config))
    except (ConfigError, StoreCorrupt, PortTaken) as error:
        print(f"llamaman: {error}", file=sys.stderr)
        return EXIT_CONFIG


async def _serve(config: Config) -> int:
    kernel = build_kernel(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    house = House(kernel)
    try:
        await house.open()
        await stop.wait()
        log.info("ending: running answers get %g s, then the engines are stopped", SHUTDOWN_GRACE_S)
    finally:
        await house.close()
        kernel.store.close()
        kernel.data_dir.close()
    return 0
