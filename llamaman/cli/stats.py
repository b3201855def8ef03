"""``stats``: what running models use of CPU and memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from llamaman.cli.connect import manager
from llamaman.cli.output import emit_json, json_option, table

_HEADS = ("ID", "MODEL", "CPU %", "CPUS", "MEMORY", "LIMIT", "MEMORY %", "GPUS")
_EVERY_S = 3.0


@click.command()
@click.option("-w", "--watch", is_flag=True, help=f"Again every {_EVERY_S:.0f} seconds, until interrupted.")
@json_option
def stats(watch: bool, as_json: bool) -> None:
    """Show what running models use of CPU and memory; 100 % is one processor."""
    client = manager()
    while True:
        found = client.call("GET", "/api/instances/container-stats")
        if as_json:
            emit_json(found)
        else:
            names = {item["id"]: item["model"] for item in client.call("GET", "/api/instances")}
            if watch:  # writes nothing where the output is no terminal
                click.clear()
            table(_HEADS, [_row(id, names.get(id), use) for id, use in found.items()])
        if not watch:
            return
        time.sleep(_EVERY_S)


def _row(id: str, model: str | None, use: Mapping[str, Any]) -> tuple[object, ...]:
    used, limit = use["mem_used_mb"], use["mem_limit_mb"]
    share = None if used is None or not limit else f"{100 * used / limit:.0f}"
    cpu = None if use["cpu_pct"] is None else f"{use['cpu_pct']:.1f}"
    cpus = None if use["num_cpus"] is None else f"{use['num_cpus']:g}"
    return (id[:8], model, cpu, cpus, _size(used), _size(limit), share, ", ".join(use["gpus"]))


def _size(mib: float | None) -> str | None:
    if mib is None:
        return None
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
