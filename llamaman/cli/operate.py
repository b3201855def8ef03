"""``why``, ``requests`` and ``events``: what is going on, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from llamaman.cli.complete import targets
from llamaman.cli.connect import manager
from llamaman.cli.output import age, clock, emit_json, escape, json_option, say, table

_EVENTS_SHOWN = 10


@click.command()
@click.argument("target", shell_complete=targets)
@json_option
def why(target: str, as_json: bool) -> None:
    """Say why TARGET, a model or an instance's id, is as it is, with the facts and what happened last."""
    answer = manager().call("GET", "/api/why", query={"target": target})
    if as_json:
        emit_json(answer)
        return
    click.echo(escape(answer["answer"]))
    facts = [(name, answer.get(name)) for name in ("kind", "state", "reason", "actor")]
    facts.append(("since", _ago(answer.get("since"))))
    facts += [(f"breaker {name}", value) for name, value in (answer.get("breaker") or {}).items()]
    click.echo()
    table(("FACT", "VALUE"), [(name, value) for name, value in facts if value is not None])
    if answer.get("instances"):
        click.echo()
        heads = ("INSTANCE", "STATE", "ACTIVE", "QUEUED", "REASON")
        table(heads, [_instance(item) for item in answer["instances"]])
    if answer.get("events"):
        click.echo()
        recent = answer["events"][:_EVENTS_SHOWN]
        table(
            ("AGE", "EVENT", "ACTOR", "REASON"),
            [(age(event["at"]), event["kind"], event["actor"], event["reason"]) for event in recent],
        )

    lines = (answer.get("detail") or {}).get("log_lines")
    if lines:
        click.echo("\nThe end of its log:")
        for line in lines:
            click.echo(f"  {escape(line.rstrip(), keep=chr(9))}")


@click.group()
def requests() -> None:
    """List or cancel requests that are being answered."""


@requests.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the inference requests in flight."""
    found = manager().call("GET", "/api/requests")
    if as_json:
        emit_json(found)
        return
    heads = ("ID", "MODEL", "INSTANCE", "ACTOR", "ADDRESS", "API", "PHASE", "SECONDS", "PROMPT", "ANSWER")
    rows = [
        (
            item["id"],
            item["model"],
            (item["instance_id"] or "")[:8],
            item["actor"],
            item["address"],
            item["dialect"],
            item["phase"],
            None if item["seconds"] is None else f"{item['seconds']:.1f}",
            item["prompt_tokens"],
            item["completion_tokens"],
        )
        for item in found
    ]
    table(heads, rows)


@requests.command()
@click.argument("request_id", metavar="ID")
@json_option
def cancel(request_id: str, as_json: bool) -> None:
    """End the request ID; its client gets an error, and the engine stops working on it."""
    answer = manager().call("DELETE", f"/api/requests/{request_id}")
    if as_json:
        emit_json(answer)
    else:
        say(f"request {request_id} is cancelled")


@click.command()
@click.option("--topic", help="instances, models, presets, keys, settings ... [instances; all with --follow]")
@click.option("-f", "--follow", is_flag=True, help="Show what happens from now on, until interrupted.")
@json_option
def events(topic: str | None, follow: bool, as_json: bool) -> None:
    """Show what happened, newest last."""
    client = manager()
    if not follow:
        found = client.call("GET", "/api/events", query={"topic": topic or "instances"})
        if as_json:
            emit_json(found)
        else:
            table(("AT", "TOPIC", "EVENT", "ACTOR", "SUBJECT", "REASON"), [_event(item) for item in found])
        return
    for item in client.events("/api/events/stream", None if topic is None else {"topic": topic}):
        if as_json:
            emit_json(item)
        else:
            click.echo("  ".join(escape(cell or "-") for cell in _event(item)))


def _event(item: Mapping[str, Any]) -> tuple[str | None, ...]:
    data = item["data"]
    subject = data.get("instance_id") or data.get("model") or data.get("name") or data.get("id")
    what = None if subject is None else str(subject)
    return clock(item["at"]), item["topic"], item["kind"], item["actor"], what, item["reason"]


def _instance(item: Mapping[str, Any]) -> tuple[object, ...]:
    return item["id"][:8], item["state"], item["active"], item["queued"], item["reason"]


def _ago(since: object) -> str | None:
    passed = age(since)
    return None if passed is None else f"{passed} ago"
