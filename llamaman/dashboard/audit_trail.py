"""Every management request that changes something, and every one that is refused, as an entry of the audit log.

Attached to the app after the gate. Logins are not recorded here but by the event bus, which knows who it was; here
a stranger's request counts only when it is refused, so that strangers cannot fill the log with what is allowed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask, Response, g, has_request_context, request

from llamaman.core.audit import Outcome
from llamaman.core.audit_events import changes_of
from llamaman.core.events import Event
from llamaman.dashboard.audit_names import name_of
from llamaman.dashboard.services import Services
from llamaman.gateway.caller import Caller
from llamaman.gateway.refusals import shown_path

log = logging.getLogger(__name__)

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_REFUSALS = frozenset({401, 403, 421, 429})

#: Topics whose events, published while a request is served, say what the request has changed.
_TOPICS = frozenset({"settings", "keys", "users"})


def attach(app: Flask, kernel: Services, pattern_of: Callable[[str], str]) -> None:
    """Record what this app answers.

    A view may set ``g.audit_changes`` (a mapping) and ``g.audit_object`` where it knows better.

    :param pattern_of: a Flask rule -> the pattern that ``/api/routes`` shows.
    """
    is_listening = False

    @app.before_request
    def listen() -> None:
        nonlocal is_listening
        if not is_listening:  # with the first request: a table of routes is made without a bus
            is_listening = True
            kernel.events.subscribe(None, _note)

    @app.after_request
    def record(response: Response) -> Response:
        caller: Caller | None = g.get("caller")
        if caller is None:
            return response
        try:
            if _counts(caller, response):
                _record(kernel, caller, response, pattern_of)
        except Exception:  # the change is made, and its answer is owed
            log.exception("%s %s could not be recorded in the audit log", request.method, request.path)
        return response


def _note(event: Event) -> None:
    """Events are published in the thread of the request that causes them."""
    if event.topic in _TOPICS and has_request_context():
        g.audit_changes = {**g.get("audit_changes", {}), **changes_of(event)}


def _counts(caller: Caller, response: Response) -> bool:
    status = response.status_code
    if status in _REFUSALS:
        # A failed login comes from the bus, with the name.
        return not (status == 401 and request.path == "/login")
    if caller.identity.kind == "none":
        return status >= 500
    # A link may log out, too.
    return request.method not in _READING or (request.path == "/logout" and status == 302)


def _record(kernel: Services, caller: Caller, response: Response, pattern_of: Callable[[str], str]) -> None:
    identity, rule = caller.identity, request.url_rule
    body = response.get_json(silent=True) if response.is_json else None
    said: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    outcome = _outcome(response)
    details = [str(said["error"])] if outcome != "ok" and "error" in said else []
    if identity.key_id:
        details.append(f"key {identity.key_id}")
    kernel.audit.record(
        "logout"
        if request.path == "/logout"
        else name_of(request.method, pattern_of(rule.rule) if rule else "?"),
        actor=identity.actor,
        address=caller.peer,
        object=str(g.get("audit_object") or _object(response, said)),
        changes=g.get("audit_changes"),
        outcome=outcome,
        detail="; ".join(details),
    )


def _outcome(response: Response) -> Outcome:
    if response.status_code >= 500 or (response.is_streamed and not response.direct_passthrough):
        return "failed"
    return "refused" if response.status_code >= 400 else "ok"


def _object(response: Response, said: Mapping[str, Any]) -> str:
    """What the request was about: what its path names, or what it has made."""
    if request.url_rule is None:
        return shown_path(request.path)
    values = {name: value for name, value in (request.view_args or {}).items() if name != "code"}
    if values:
        return " ".join(str(value) for value in values.values())
    return str(said.get("id") or said.get("name") or "") if response.status_code == 201 else ""
