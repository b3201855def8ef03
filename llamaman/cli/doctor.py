"""``doctor``: the manager's own findings where one answers, else those of this shell's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from llamaman.cli.output import emit_json, escape, json_option, say

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "cyan"}


@click.command()
@click.option("--security", is_flag=True, help="Also who can reach and do what.")
@json_option
def doctor(security: bool, as_json: bool) -> int:
    """Check the installation; each finding comes with its cure.

    A running manager checks itself. Where none answers, the checks use the environment of this shell, which
    should be the manager's. Nothing is changed; files made for a trial are removed. Exit status 1 when a check
    failed, 0 otherwise, warnings included.
    """
    report = _report(security)
    if as_json:
        emit_json(report)
    else:
        _show(report)
    return 1 if report["failed"] else 0


def _report(security: bool) -> dict[str, Any]:
    """The manager's report, or ours in the same shape.

    :raises Unreachable: the manager that the environment names does not answer: this machine is not in question.
    """
    from llamaman.client import Ambiguous, Unreachable, find_manager
    from llamaman.errors import ConfigError

    try:
        client = find_manager(os.environ)
        report: dict[str, Any] = client.call(
            "GET", "/api/doctor", query={"security": "true"} if security else None
        )
    except ConfigError:  # it is among the findings then
        return _own(security)
    except Ambiguous:
        raise
    except Unreachable:
        if os.environ.get("LLAMAMAN_URL", "").strip():
            raise
        return _own(security)
    return report


def _own(security: bool) -> dict[str, Any]:
    from llamaman.doctor import diagnose_environment, failed

    findings = diagnose_environment(os.environ, security=security)
    return {
        "source": "environment",
        "node": None,
        "failed": failed(findings),
        "findings": [finding.as_dict() for finding in findings],
    }


def _show(report: Mapping[str, Any]) -> None:
    if report["source"] == "manager":
        say(f"node {report['node']} says of itself:")
    else:
        say("no manager of this account answers; checked with the environment of this shell:")
    findings: Sequence[Mapping[str, Any]] = report["findings"]
    width = max((len(finding["check"]) for finding in findings), default=0)
    for finding in findings:
        status = finding["status"]
        word = click.style(status.ljust(4), fg=_STYLES.get(status))
        click.echo(f"{word}  {escape(finding['check']).ljust(width)}  {escape(finding['what'])}")
        if finding["cure"]:
            click.echo(f"{'':4}  {'':{width}}  -> {escape(finding['cure'])}")
    counts = [(status, sum(finding["status"] == status for finding in findings)) for status in _STYLES]
    say(", ".join(f"{count} {status}" for status, count in counts if count))
