"""``ps``, ``stop``, ``restart``, ``rm`` and ``logs``. INSTANCE: an id, its start, a model or a port."""

from __future__ import annotations

import click

from llamaman.cli.complete import instances
from llamaman.cli.connect import instance_id, manager
from llamaman.cli.output import age, emit_json, escape, json_option, say, table


@click.command()
@json_option
def ps(as_json: bool) -> None:
    """List the instances."""
    found = manager().call("GET", "/api/instances")
    if as_json:
        emit_json(found)
        return
    heads = ("ID", "MODEL", "PORT", "STATUS", "ENGINE", "ACTIVE", "QUEUED", "CONTEXT", "STARTED", "REASON")
    rows = [
        (
            item["id"][:8],
            item["model"],
            item["port"],
            item["status"],
            item["engine"],
            item["queue"]["active"],
            item["queue"]["queued"],
            item["context_length"],
            age(item["started_at"]),
            item["reason"],
        )
        for item in found
    ]
    table(heads, rows)


@click.command()
@click.argument("instance", shell_complete=instances)
@click.option("--force", is_flag=True, help="Do not wait for running requests.")
@json_option
def stop(instance: str, force: bool, as_json: bool) -> None:
    """Stop INSTANCE; it stays in the list and can be restarted."""
    client = manager()
    found = instance_id(client, instance)
    client.call("DELETE", f"/api/instances/{found}", query={"force": "true"} if force else None)
    _done(as_json, found, "stopped")


@click.command()
@click.argument("instance", shell_complete=instances)
@click.option("--yes", is_flag=True, help="Also when more models would run than LLAMAMAN_MAX_MODELS says.")
@json_option
def restart(instance: str, yes: bool, as_json: bool) -> None:
    """Start INSTANCE again under its id and port, with its preset as saved now."""
    client = manager()
    found = instance_id(client, instance)
    body = {"confirm_overcommit": True} if yes else {}
    answer = client.call("POST", f"/api/instances/{found}/restart", body)
    if as_json:
        emit_json(answer)
    else:
        say(f"instance {found} is {answer['status']} on port {answer['port']}")


@click.command()
@click.argument("instance", shell_complete=instances)
@json_option
def rm(instance: str, as_json: bool) -> None:
    """Forget INSTANCE, which must be stopped or failed."""
    client = manager()
    found = instance_id(client, instance)
    client.call("DELETE", f"/api/instances/{found}/remove")
    _done(as_json, found, "removed")


@click.command()
@click.argument("instance", shell_complete=instances)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until interrupted.")
@json_option
def logs(instance: str, follow: bool, as_json: bool) -> None:
    """Show the last 100 lines of INSTANCE's log."""
    client = manager()
    found = instance_id(client, instance)
    path = f"/api/instances/{found}/logs"
    frames = client.events(f"{path}/stream") if follow else iter([client.call("GET", path)])
    for frame in frames:
        if as_json:
            emit_json(frame)
            continue
        for line in frame["lines"]:
            click.echo(escape(line.rstrip("\r\n"), keep="\t"))


def _done(as_json: bool, found: str, status: str) -> None:
    if as_json:
        emit_json({"id": found, "status": status})
    else:
        say(f"instance {found} is {status}")
