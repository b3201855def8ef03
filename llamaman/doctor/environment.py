"""Whether the environment variables say something that makes sense. Every problem is a finding of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llamaman.core.config import VARIABLES, Config
from llamaman.core.config_variables import read_variables
from llamaman.doctor.finding import Finding, fail, ok, warn
from llamaman.errors import ConfigError

CHECK = "environment"
_CURE = "correct it where the manager's environment is set; docs/configuration.md lists what is allowed"
_PLACEHOLDER = "unnamed"


def check_environment(environ: Mapping[str, str]) -> tuple[list[Finding], Config | None]:
    """The findings, and a configuration for the other checks.

    What is wrong counts there as unset, so that one wrong variable does not hide what else is wrong; None when
    even that makes no configuration.
    """
    values, problems = read_variables(VARIABLES, environ)
    findings = [_problem(problem) for problem in problems]
    usable = dict(environ)
    for item in VARIABLES:
        if item.attribute not in values:
            usable.pop(item.env, None)
            usable.pop(f"{item.env}_FILE", None)
            if item.required:
                usable[item.env] = _PLACEHOLDER
    try:
        config = Config.from_environ(usable)
    except ConfigError as error:
        return findings + [_problem(line) for line in error.message.splitlines()], None
    return findings + check_warnings(config.warnings, clean=not findings), config


def check_warnings(warnings: Iterable[str], *, clean: bool = True) -> list[Finding]:
    """What the configuration itself remarks."""
    found = [warn(CHECK, warning, _CURE) for warning in warnings]
    return found or ([ok(CHECK, "every variable that is set can be read")] if clean else [])


def _problem(problem: str) -> Finding:
    """A problem's further lines are the command that cures it."""
    what, _, cure = problem.partition("\n")
    return fail(CHECK, what, " ".join(cure.split()) or _CURE)
