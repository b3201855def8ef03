"""The one Flask app: a gate that denies by default, errors that are always JSON, and the mounted route sets.

Read by the kernel, which starts it behind ``server.py``. Importing this module imports Flask; the front
door is up before anyone does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from llamaman.access import Access
from llamaman.core.accounts.cookies import cookie_name
from llamaman.core.auth import authorise
from llamaman.dashboard import audit_trail, rest
from llamaman.dashboard.http import error_response, unexpected_response
from llamaman.dashboard.mount import Seal, mount
from llamaman.dashboard.openapi import Described, document
from llamaman.dashboard.operation import operation_of
from llamaman.dashboard.services import Services
from llamaman.dashboard.sudo import require_sudo
from llamaman.errors import LlamaManError, MethodNotAllowed, NotFound, PluginError, Unauthorized
from llamaman.gateway.caller import HEADER, unseal
from llamaman.limits import MANAGEMENT_BODY
from llamaman.records import Identity, RouteSet
from llamaman.version import __version__

log = logging.getLogger(__name__)

#: Who the core's own routes belong to in ``llamaman routes``.
CORE = "llamaman"

_SEAL = "llamaman.seal"

RouteRow = dict[str, str]


def create_app(
    kernel: Services,
    secret: bytes,
    *,
    plugin_routes: Mapping[str, Sequence[RouteSet]] | None = None,
    on_broken: Callable[[str, str], None] | None = None,
    loop_routes: Callable[[], Sequence[RouteRow]] | None = None,
) -> Flask:
    """Assemble the app.

    :param secret: seals the caller's identity on the hop, see :mod:`llamaman.gateway.caller`.
    :param plugin_routes: plugin name -> its route sets; mounted in the order of names.
    :param on_broken: told plugin and reason for every refused plugin; all its routes stay out.
    :param loop_routes: the routes that the event loop serves, shown by ``/api/routes`` beside ours.
    """
    require_auth = _require_auth(kernel)
    seal = Seal()

    def bare() -> Flask:
        return _bare_app(
            secret, seal, require_auth, lambda identity: require_sudo(kernel, identity), _still_counts(kernel)
        )

    app = bare()
    app.extensions[_SEAL] = seal
    audit_trail.attach(app, kernel, _pattern)

    def all_routes() -> list[RouteRow]:
        # What the loop serves too, it serves first: its row is the true one.
        rows = [*app_routes(app), *(loop_routes() if loop_routes else ())]
        return sorted({_row_order(row): row for row in rows}.values(), key=_row_order)

    def api_document() -> dict[str, Any]:
        cookie = cookie_name(kernel.accounts.install_id, secure=False)
        return document(all_routes(), described(app), version=__version__, cookie=cookie)

    mount(app, seal, CORE, rest.route_sets(kernel, all_routes, api_document), bare)
    for owner in sorted(plugin_routes or {}):
        try:
            mount(app, seal, owner, (plugin_routes or {})[owner], bare)
        except PluginError as error:
            log.error("%s; its routes stay out", error.message)  # noqa: TRY400 - the sentence is the cause
            if on_broken:
                on_broken(owner, error.reason)
    return app


def app_routes(app: Flask) -> list[RouteRow]:
    """Every route that Flask serves: method, path, surface, level and plugin."""
    seal: Seal = app.extensions[_SEAL]
    rows = [
        {
            "method": method,
            "path": _pattern(rule.rule),
            "surface": "manage",
            "level": seal.levels[rule.endpoint].value,
            "plugin": seal.owners[rule.endpoint],
        }
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    ]
    return sorted(rows, key=_row_order)


def described(app: Flask) -> dict[tuple[str, str], Described]:
    """(method, path) of every route that Flask serves -> what its view says about itself."""
    found: dict[tuple[str, str], Described] = {}
    names: set[str] = set()
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD"}):
            name = rule.endpoint if rule.endpoint not in names else f"{method.lower()}:{rule.rule}"
            names.add(name)
            view = app.view_functions[rule.endpoint]
            found[method, _pattern(rule.rule)] = Described(name, operation_of(view))
    return found


def _pattern(rule: str) -> str:
    """A Flask rule in the form of the loop's patterns: ``{name}`` is a segment, ``{name...}`` the rest."""
    return re.sub(
        r"<(?:([a-z]+):)?([a-z_]+)>", lambda m: f"{{{m[2]}{'...' if m[1] == 'path' else ''}}}", rule
    )


def _row_order(row: RouteRow) -> tuple[str, str, str]:
    return row["path"], row["method"], row["surface"]


def _require_auth(kernel: Services) -> Callable[[], bool]:
    return lambda: bool(kernel.settings.get("require_auth"))


def _still_counts(kernel: Services) -> Callable[[Identity], bool]:
    return lambda identity: kernel.keys.is_live(identity) and kernel.accounts.sessions.is_live(identity)


def _nothing() -> None:
    """The view of an unknown path."""


def _bare_app(
    secret: bytes,
    seal: Seal,
    require_auth: Callable[[], bool],
    confirmed: Callable[[Identity], None],
    still_counts: Callable[[Identity], bool],
) -> Flask:
    """Flask with the gate first and our errors, and nothing mounted.

    :param confirmed: raises SudoRequired for a session whose password was not confirmed lately.
    :param still_counts: whether the caller's key or session is live: the front door asked before the body came.
    """
    app = Flask("llamaman", static_folder=None, template_folder=None)
    app.config.update(PROVIDE_AUTOMATIC_OPTIONS=False, MAX_CONTENT_LENGTH=MANAGEMENT_BODY)
    app.url_map.merge_slashes = False
    app.json.sort_keys = False  # type: ignore[attr-defined]  # the default provider's documented attribute

    @app.before_request
    def gate() -> Response | None:
        """Deny by default. Returns its refusals: what is raised, an error handler could turn into a 200."""
        caller = unseal(request.headers.get(HEADER), secret)
        if caller is None:
            refused = jsonify({"error": "this socket belongs to the front door; use its port"})
            refused.status_code = 403
            return refused
        g.caller = caller
        level = Access.VIEW  # an unknown path: strangers learn nothing, callers get their 404
        if request.url_rule is not None:
            level = seal.levels.get(request.endpoint or "", Access.ADMIN)
        try:
            if level is not Access.PUBLIC and not still_counts(caller.identity):
                raise Unauthorized("this key or session has ended while the request came in")
            if request.url_rule is not None or caller.identity.kind == "none":
                authorise(caller.identity, level, require_auth=require_auth())
            described_as = operation_of(app.view_functions.get(request.endpoint or "", _nothing))
            if described_as is not None and described_as.sudo:
                confirmed(caller.identity)
        except LlamaManError as error:
            return error_response(error)
        return None

    @app.after_request
    def finish(response: Response) -> Response:
        if response.is_streamed and not response.direct_passthrough:
            owner = seal.owners.get(request.endpoint or "", "?")
            problem = PluginError(owner, f"{request.path} answered with a stream; use a StreamRoute")
            response.close()
            return unexpected_response(problem)
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    app.register_error_handler(LlamaManError, error_response)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, unexpected_response)
    return app


def _http_error(error: HTTPException) -> Response:
    """Flask's own errors, as ours."""
    code = error.code or 500
    if code == 404:
        return error_response(NotFound(f"{request.path} does not exist; 'llamaman routes' lists what does"))
    if code == 405:
        allowed = sorted(set(getattr(error, "valid_methods", None) or ()) - {"OPTIONS"})
        sentence = f"{request.path} takes {', '.join(allowed)}, not {request.method}"
        response = error_response(MethodNotAllowed(sentence))
        response.headers["Allow"] = ", ".join(allowed)
        return response
    body: dict[str, Any] = {"error": (error.description or error.name).rstrip(".")}
    if code == 413:
        body = {"error": f"the request body is larger than {MANAGEMENT_BODY} bytes"}
    response = jsonify(body)
    response.status_code = code
    return response
