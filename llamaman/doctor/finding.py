"""What a check found. Read by every check here, by the REST view and by the command line's table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    :ivar check: its short name, the same in every version: ``ports``, ``data-dir``.
    :ivar status: ``fail`` is what keeps LlamaMan from working or opens it to strangers, ``skip`` was not checked.
    :ivar what: one sentence about what is so. It holds no secret.
    :ivar cure: what to do, such as a command to run; None where nothing needs to be done.
    """

    check: str
    status: Status
    what: str
    cure: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        """The finding as JSON."""
        return {"check": self.check, "status": self.status, "what": self.what, "cure": self.cure}


def ok(check: str, what: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", what)


def warn(check: str, what: str, cure: str) -> Finding:
    """It works, and an administrator should know."""
    return Finding(check, "warn", what, cure)


def fail(check: str, what: str, cure: str) -> Finding:
    """It does not work, or is not safe."""
    return Finding(check, "fail", what, cure)


def skip(check: str, why: str) -> Finding:
    """Nobody could look; ``why`` completes "not checked:"."""
    return Finding(check, "skip", f"not checked: {why}")


def failed(findings: Iterable[Finding]) -> bool:
    """Whether anything failed; warnings do not count."""
    return any(finding.status == "fail" for finding in findings)
