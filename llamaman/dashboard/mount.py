"""How route sets get into the Flask app: checked on a scratch app first, then mounted and sealed.

Read by whoever wonders why a plugin's routes were refused. A refused plugin loses all its routes, the others
keep theirs. This guards against forgetting and against accidents; plugins are trusted code, not jailed code.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any

from llamaman.access import ACCESS_ATTRIBUTE, Access
from llamaman.errors import PluginError
from llamaman.records import RouteSet

if TYPE_CHECKING:
    from flask import Flask

#: Rules that may be open to strangers. Adding one here is a security review.
REVIEWED_OPEN = frozenset(
    ("llamaman", rule)
    for rule in (
        "/api/version",
        "/login",
        "/logout",
        "/setup",
        "/setup/<code>",
        "/static/llamaman.css",
        "/static/llamaman.svg",
    )
)

_REGISTRIES = (
    "before_request_funcs",
    "after_request_funcs",
    "teardown_request_funcs",
    "error_handler_spec",
    "url_value_preprocessors",
    "url_default_functions",
    "template_context_processors",
)
_PLAIN_REGISTRIES = ("teardown_appcontext_funcs", "shell_context_processors", "url_build_error_handlers")
_HTTP_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"})
_CONVERTER = re.compile(r"<(?:[^:<>]+:)?[^<>]+>")


class Seal:
    """Each mounted endpoint's level and owner. The gate reads it; only :func:`mount` writes."""

    def __init__(self) -> None:
        self.levels: dict[str, Access] = {}
        self.owners: dict[str, str] = {}


def mount(
    app: Flask, seal: Seal, owner: str, route_sets: Sequence[RouteSet], scratch_app: Callable[[], Flask]
) -> None:
    """Mount one owner's route sets, all of them or none.

    :param scratch_app: makes an app like ``app`` before anything was mounted, gate included.
    :raises PluginError: what is wrong, naming the owner; ``app`` is unchanged.
    :raises RuntimeError: the set behaved differently the second time; the app cannot be trusted any more.
    """
    levels = _try(app, owner, route_sets, scratch_app())
    before = _app_wide(app)
    for route_set in route_sets:
        app.register_blueprint(route_set.blueprint)
    if _app_wide(app) != before:
        raise RuntimeError(
            f"plugin '{owner}' changed the app when mounted, but not when tried; refusing to serve"
        )
    for endpoint, level in levels.items():
        seal.levels[endpoint] = level
        seal.owners[endpoint] = owner


def _try(app: Flask, owner: str, route_sets: Sequence[RouteSet], scratch: Flask) -> dict[str, Access]:
    """Mount on a scratch app and judge the result; returns each endpoint's level."""
    before = _app_wide(scratch)
    known = set(scratch.view_functions)
    levels: dict[str, Access] = {}
    for route_set in route_sets:
        if not isinstance(route_set, RouteSet):
            raise PluginError(owner, f"route_register returned {type(route_set).__name__}, not a RouteSet")
        try:
            scratch.register_blueprint(route_set.blueprint)
        except (Exception, SystemExit) as error:  # whatever a plugin's own registration code does
            reason = f"its blueprint '{route_set.blueprint.name}' could not be mounted: {error}"
            raise PluginError(owner, reason) from error
        for endpoint in set(scratch.view_functions) - known:
            levels[endpoint] = _level(owner, scratch.view_functions[endpoint], route_set.access)
        known = set(scratch.view_functions)
    changed = sorted(name for name, value in _app_wide(scratch).items() if value != before.get(name))
    if changed:
        raise PluginError(
            owner, f"its blueprint changes the whole app ({', '.join(changed)}); keep to its own routes"
        )
    taken = sorted(set(scratch.blueprints) & set(app.blueprints))
    if taken:
        raise PluginError(owner, f"the blueprint name '{taken[0]}' is taken")
    _refuse_clashes(app, owner, scratch)
    for rule in scratch.url_map.iter_rules():
        level = levels[rule.endpoint]
        if level in (Access.PUBLIC, Access.INFERENCE) and (owner, rule.rule) not in REVIEWED_OPEN:
            reason = f"{rule.rule} asks for access level {level.value}, which only reviewed routes have"
            raise PluginError(owner, f"{reason}; use VIEW, MANAGE or ADMIN")
    return levels


def _refuse_clashes(app: Flask, owner: str, scratch: Flask) -> None:
    served = set(_served(app))
    own: set[tuple[str, str]] = set()
    for place in _served(scratch):
        if place in served or place in own:
            raise PluginError(
                owner, f"{place[0]} {place[1]} is already served; the first one would win silently"
            )
        own.add(place)


def _served(app: Flask) -> Iterator[tuple[str, str]]:
    """(method, rule with its variables' names and types left out) of every rule."""
    for rule in app.url_map.iter_rules():
        for method in rule.methods or ():
            yield method, _CONVERTER.sub("<>", rule.rule)


def _level(owner: str, view: Callable[..., Any], default: Access) -> Access:
    name = getattr(view, "__name__", repr(view))
    if _streams(view):
        raise PluginError(
            owner, f"the view '{name}' streams, which would hold a thread; return a StreamRoute"
        )
    view_class = getattr(view, "view_class", None)
    for method in _HTTP_METHODS if view_class else ():
        if hasattr(getattr(view_class, method.lower(), None), ACCESS_ATTRIBUTE):
            raise PluginError(
                owner, f"'{name}' marks a method of a class; mark the function of as_view() instead"
            )
    level = getattr(view, ACCESS_ATTRIBUTE, default)
    if not isinstance(level, Access):
        raise PluginError(
            owner, f"the view '{name}' has the access level {level!r}; use a member of llamaman.Access"
        )
    return level


def _streams(view: Callable[..., Any]) -> bool:
    """Whether a view visibly streams; what hides it better is caught when it answers."""
    inner = inspect.unwrap(view)
    if (
        inspect.isgeneratorfunction(inner)
        or inspect.iscoroutinefunction(inner)
        or inspect.isasyncgenfunction(inner)
    ):
        return True
    code = getattr(inner, "__code__", None)
    return isinstance(code, CodeType) and any("stream_with_context" in part.co_names for part in _codes(code))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _app_wide(app: Flask) -> dict[str, object]:
    """A comparable picture of everything in an app that is not one blueprint's own."""
    picture: dict[str, object] = {}
    for name in _REGISTRIES:
        picture[name] = repr(_copied(getattr(app, name).get(None)))
    for name in _PLAIN_REGISTRIES:
        picture[name] = repr(getattr(app, name))
    picture["config"] = repr(sorted(app.config.items(), key=lambda item: item[0]))
    picture["extensions"] = sorted(app.extensions)
    picture["wsgi_app"] = repr(app.wsgi_app)
    picture["classes"] = (app.request_class, app.response_class, app.session_interface, app.json)
    picture["converters"] = sorted(app.url_map.converters)
    environment = app.jinja_env
    picture["templates"] = (
        sorted(environment.filters),
        sorted(environment.globals),
        sorted(environment.tests),
    )
    picture["own attributes"] = sorted(name for name in vars(app) if callable(vars(app)[name]))
    return picture


def _copied(registry: object) -> object:
    """Without the default dictionaries that reading creates."""
    if isinstance(registry, dict):
        return {key: _copied(value) for key, value in registry.items() if value}
    return list(registry) if isinstance(registry, list) else registry
