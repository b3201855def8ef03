"""``serve`` and ``demo``: the commands that are a manager instead of talking to one."""

from __future__ import annotations

import os

import click


@click.command()
def serve() -> int:
    """Run the manager until it is told to end (SIGTERM, Ctrl-C).

    It is configured by environment variables; LLAMAMAN_NODE_NAME is required.
    """
    from llamaman.core.config import Config

    config = Config.from_environ(os.environ)
    from llamaman.serve import run

    return run(config)


@click.command()
def demo() -> int:
    """Set up a small model, launch it and stream one answer through the front door.

    DEMO_EXIT=1 ends after that.
    """
    from llamaman.demo import run

    return run()
