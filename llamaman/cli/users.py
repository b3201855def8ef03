"""``users`` and ``setup-link``: the people who may log in."""

from __future__ import annotations

from typing import Any

import click

from llamaman.access import Role
from llamaman.cli.complete import user_names
from llamaman.cli.connect import manager
from llamaman.cli.output import age, confirmed, emit_json, json_option, say, table
from llamaman.cli.passwords import read_password

_ROLE = click.Choice([role.value for role in Role])
_STDIN = click.option(
    "--password-stdin", "from_stdin", is_flag=True, help="Read the password from standard input's first line."
)
_NAME = click.argument("name", shell_complete=user_names)


@click.group()
def users() -> None:
    """List, create and change the people who may log in.

    A changed role or password, and disabling, end the user's sessions and open streams at once.
    """


@users.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the users. LAST LOGIN is known since the manager's start."""
    found = manager().call("GET", "/api/users")
    if as_json:
        emit_json(found)
        return
    heads = ("NAME", "ROLE", "STATE", "CREATED", "PASSWORD", "LAST LOGIN", "SESSIONS")
    rows = [
        (
            item["name"],
            item["role"],
            "disabled" if item["disabled"] else "active",
            age(item["created_at"]),
            age(item["password_changed_at"]),
            age(item["last_login_at"]),
            item["sessions"],
        )
        for item in found
    ]
    table(heads, rows)


@users.command()
@click.argument("name")
@click.option(
    "--role",
    type=_ROLE,
    required=True,
    help="viewer reads, manager also launches and calls models, admin does everything.",
)
@_STDIN
@json_option
def create(name: str, role: str, from_stdin: bool, as_json: bool) -> None:
    """Create the user NAME. The password is asked for twice."""
    password = read_password(from_stdin, name)
    made = manager().call("POST", "/api/users", {"name": name, "password": password, "role": role})
    _done(as_json, made, f"user '{made['name']}' may log in as {made['role']}")


@users.command()
@_NAME
@_STDIN
@json_option
def passwd(name: str, from_stdin: bool, as_json: bool) -> None:
    """Give NAME another password."""
    answer = _change(name, password=read_password(from_stdin, name))
    _done(as_json, answer, f"user '{answer['name']}' has another password, and must log in anew")


@users.command()
@_NAME
@click.argument("role", type=_ROLE)
@json_option
def role(name: str, role: str, as_json: bool) -> None:
    """Make NAME a viewer, manager or admin."""
    answer = _change(name, role=role)
    _done(as_json, answer, f"user '{answer['name']}' is {answer['role']} now, and must log in anew")


@users.command()
@_NAME
@json_option
def disable(name: str, as_json: bool) -> None:
    """Keep NAME out until enabled again; everything else about the user stays."""
    answer = _change(name, disabled=True)
    _done(as_json, answer, f"user '{answer['name']}' is disabled; sessions and open streams end")


@users.command()
@_NAME
@json_option
def enable(name: str, as_json: bool) -> None:
    """Let NAME log in again."""
    answer = _change(name, disabled=False)
    _done(as_json, answer, f"user '{answer['name']}' may log in again")


@users.command()
@_NAME
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def rm(name: str, yes: bool, as_json: bool) -> None:
    """Delete NAME for good."""
    confirmed(yes, f"Delete the user '{name}' for good?")
    answer = manager().call("DELETE", f"/api/users/{name}")
    _done(as_json, answer, f"user '{name}' is deleted")


@click.command("setup-link")
@json_option
def setup_link(as_json: bool) -> None:
    """Print the link that creates the first user, while there is none.

    The link holds a secret, which is new with every start of the manager and ends with the first user.
    """
    answer = manager().call("GET", "/api/setup-link")
    if as_json:
        emit_json(answer)
    elif answer["link"] is None:
        say("a user exists already, so there is nothing to set up; 'llamaman users list' shows who")
    else:
        click.echo(answer["link"])


def _change(name: str, **changes: Any) -> Any:
    return manager().call("PATCH", f"/api/users/{name}", changes)


def _done(as_json: bool, answer: Any, sentence: str) -> None:
    if as_json:
        emit_json(answer)
    else:
        say(sentence)
