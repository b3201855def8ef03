"""Whom the door turned away, for the audit log: invalid keys, foreign pages and hosts, strangers, too many at once.

Read by the front door and the pipeline, on the event loop. What Flask refuses, Flask records. A flood costs two
lines a minute and caller, since the action is always the same one, whatever path is tried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llamaman.core.audit import Audit
from llamaman.errors import LlamaManError
from llamaman.gateway.request import Request
from llamaman.records import NOBODY, Identity

if TYPE_CHECKING:
    from llamaman.gateway.pipeline import Identify

ACTION = "request.refused"
_STATUSES = frozenset({401, 403, 421, 429})

#: Told a refused request, the refusal and who was refused, as far as that is known.
Refused = Callable[[Request, LlamaManError, Identity], None]


def shown_path(path: str) -> str:
    """A path as it may be recorded: the one below ``/setup/`` is the code that makes an administrator."""
    return "/setup/***" if path.startswith("/setup/") else path


def nobody_is_told(request: Request, error: LlamaManError, identity: Identity) -> None:
    """For doors without an audit log."""


def recorder(audit: Audit) -> Refused:
    """What records refusals in an audit log; everything else that is raised at the door passes silently."""

    def record(request: Request, error: LlamaManError, identity: Identity) -> None:
        if error.status not in _STATUSES:
            return
        head = request.head
        audit.record(
            ACTION,
            actor=identity.actor,
            address=request.address,
            object=f"{head.method} {shown_path(head.path)}",
            outcome="refused",
            detail=f"{error.status}: {error.message}; {request.surface.name} listener",
        )

    return record


def watched(identify: Identify, refused: Refused) -> Identify:
    """The same, telling whom it refuses. For inference, whose later refusals are everyday matters."""

    def identify_and_tell(request: Request, *, shared: bool) -> Identity:
        try:
            return identify(request, shared=shared)
        except LlamaManError as error:
            refused(request, error, NOBODY)
            raise

    return identify_and_tell
