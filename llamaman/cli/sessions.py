"""``sessions``: the logins of browsers."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

import click

from llamaman.cli.complete import user_names
from llamaman.cli.connect import manager
from llamaman.cli.output import age, clock, emit_json, json_option, say, table
from llamaman.client import Client, Refused


@click.group()
def sessions() -> None:
    """List or end logins."""


@sessions.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the sessions that are open."""
    found = manager().call("GET", "/api/sessions")
    if as_json:
        emit_json(found)
        return
    heads = ("ID", "USER", "CREATED", "LAST SEEN", "EXPIRES", "ADDRESS", "BROWSER")
    rows = [
        (
            item["id"],
            item["user"],
            age(item["created_at"]),
            age(item["last_seen_at"]),
            clock(item["expires_at"]),
            item["address"],
            item["agent"],
        )
        for item in found
    ]
    table(heads, rows)


@sessions.command()
@click.argument("session_id", metavar="[ID]", required=False)
@click.option("--user", metavar="NAME", help="Every session of this user.", shell_complete=user_names)
@click.option("--all", "every", is_flag=True, help="Every session of everybody.")
@json_option
def end(session_id: str | None, user: str | None, every: bool, as_json: bool) -> None:
    """End the session ID, or all of a user, or all; their open streams end too."""
    if [session_id is not None, user is not None, every].count(True) != 1:
        raise click.UsageError("say which: an ID from 'llamaman sessions list', or --user NAME, or --all")
    client = manager()
    if session_id is not None:
        client.call("DELETE", f"/api/sessions/{session_id}")
        ended = [session_id]
    else:
        wanted = [item for item in client.call("GET", "/api/sessions") if every or _is_of(item, user or "")]
        if user is not None and not wanted:
            _require_user(client, user)
        ended = [item["id"] for item in wanted if _end(client, item["id"])]
    if as_json:
        emit_json({"ended": ended})
    else:
        say(f"{len(ended)} session{'' if len(ended) == 1 else 's'} ended")


def _is_of(item: Mapping[str, Any], user: str) -> bool:
    return _folded(str(item["user"])) == _folded(user)


def _folded(name: str) -> str:
    """Names that differ in letter case or code points alone are one user."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _require_user(client: Client, name: str) -> None:
    """A misspelt name must not look like a user without sessions."""
    if not any(_folded(item["name"]) == _folded(name) for item in client.call("GET", "/api/users")):
        raise click.ClickException(f"no user is called '{name}'; 'llamaman users list' shows them")


def _end(client: Client, session_id: str) -> bool:
    """Whether it was still open."""
    try:
        client.call("DELETE", f"/api/sessions/{session_id}")
    except Refused as refusal:
        if refusal.status == 404:
            return False
        raise
    return True
