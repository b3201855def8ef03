"""``audit``: who did what, newest last, as a log reads."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from llamaman.cli.connect import manager
from llamaman.cli.output import clock, emit_json, json_option, moment, table
from llamaman.client import Client
from llamaman.limits import AUDIT_SHOWN

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command()
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many, the newest."
)
@click.option("--actor", help="Only what this caller did, such as session:ada.")
@click.option("--action", help="Only this action.")
@click.option("--outcome", type=click.Choice(["ok", "refused", "failed"]), help="Only what ended so.")
@click.option(
    "--since", metavar="WHEN", help="Only what is newer: 30m, 12h, 7d, or a time such as 2031-01-31T12:00Z."
)
@json_option
def audit(
    limit: int, actor: str | None, action: str | None, outcome: str | None, since: str | None, as_json: bool
) -> None:
    """Show who did what, from where, and how it ended."""
    wanted = {"actor": actor, "action": action, "outcome": outcome}
    query = {name: value for name, value in wanted.items() if value is not None}
    start = None if since is None else point_in_time(since)
    found = list(_newest(manager(), query, limit, start))[::-1]
    if as_json:
        emit_json(found)
        return
    heads = ("AT", "ACTOR", "ADDRESS", "ACTION", "OBJECT", "OUTCOME", "DETAIL")
    rows = [
        (
            clock(item["at"]),
            item["actor"],
            item["address"],
            item["action"],
            item["object"],
            item["outcome"],
            " ".join(filter(None, (_changes(item["changes"]), item["detail"]))),
        )
        for item in found
    ]
    table(heads, rows)


def point_in_time(text: str) -> float:
    """``12h`` before now, or an ISO-8601 time (this machine's zone unless it names one), in epoch seconds.

    :raises click.UsageError: neither.
    """
    number, unit = text[:-1], text[-1:]
    if unit in _UNITS and number.isascii() and number.isdecimal():
        return time.time() - int(number) * _UNITS[unit]
    found = moment(text)
    if found is None:
        raise click.UsageError(
            f"--since '{text}' is neither 30m, 12h or 7d nor a time such as 2031-01-31T12:00Z"
        )
    return found


def _newest(
    client: Client, query: dict[str, str], limit: int, start: float | None
) -> Iterator[Mapping[str, Any]]:
    """The newest entries first, page by page."""
    before: str | None = None
    while limit > 0:
        page = {**query, "limit": str(min(limit, AUDIT_SHOWN))}
        if before is not None:
            page["before"] = before
        answer = client.call("GET", "/api/audit", query=page)
        for item in answer["entries"][:limit]:
            if start is not None and (moment(item["at"]) or 0.0) < start:
                return
            limit -= 1
            yield item
        if answer["next"] is None:
            return
        before = str(answer["next"])


def _changes(changes: object) -> str:
    """``role: viewer -> admin``; what has another shape is shown as it is."""
    if not isinstance(changes, Mapping):
        return ""
    parts = []
    for name, value in changes.items():
        if isinstance(value, Mapping) and set(value) == {"old", "new"}:
            parts.append(f"{name}: {value['old']} -> {value['new']}")
        else:
            parts.append(f"{name}: {value}")
    return "; ".join(parts)
