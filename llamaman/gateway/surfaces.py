"""Which routes each listener serves on the event loop, laid out once at boot.

The surfaces differ only in their tables: inference everywhere, streams and management on the management
listener and the admin socket, llama-server's own endpoints bare on instance ports and by model elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from llamaman.access import Access
from llamaman.gateway.dialect import Dialect, InferenceRoute
from llamaman.gateway.routes import RouteRow, Table
from llamaman.records import StreamRoute

#: Patterns of plugins that strangers may have.
REVIEWED_PUBLIC: frozenset[str] = frozenset()

METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})

#: What is below ``/api/`` of management. Flask serves it, after the tables here have been asked.
MANAGEMENT = frozenset(
    {
        "api-keys",
        "audit",
        "doctor",
        "events",
        "images",
        "instances",
        "llamaman",
        "me",
        "models",
        "next-port",
        "openapi.json",
        "plugins",
        "presets",
        "requests",
        "routes",
        "runtimes",
        "sessions",
        "settings",
        "setup-link",
        "system-info",
        "users",
        "why",
    }
)

#: Clients of Ollama read their features off this number; ours is in /api/llamaman/version.
OLLAMA_VERSION = "0.32.0"


@dataclass(frozen=True, slots=True)
class Fixed:
    """An answer that never changes."""

    body: bytes
    content_type: bytes = b"application/json"


@dataclass(frozen=True, slots=True)
class Inference:
    """A route of a dialect.

    :ivar others: by the name of a header, what serves the requests that carry it instead.
    """

    dialect: Dialect
    route: InferenceRoute
    level: Access
    others: dict[bytes, Inference] = field(default_factory=dict)

    def of(self, headers: Sequence[tuple[bytes, bytes]]) -> Inference:
        """What serves a request with these headers, whose names are in lower case."""
        if self.others:
            for name, _ in headers:
                if other := self.others.get(name):
                    return other
        return self


Entry = Fixed | Inference | StreamRoute

HEALTH = Fixed(b'{"status":"ok"}')
VERSION = Fixed(json.dumps({"version": OLLAMA_VERSION}).encode())
GREETING = Fixed(b"Ollama is running", b"text/plain; charset=utf-8")


@dataclass(slots=True)
class Tables:
    """One table per surface."""

    manage: Table[Entry] = field(default_factory=Table)
    proxy: Table[Entry] = field(default_factory=Table)
    instance: Table[Entry] = field(default_factory=Table)
    admin: Table[Entry] = field(default_factory=Table)

    def rows(self) -> list[RouteRow]:
        """Every route of the loop with its surfaces."""
        found: dict[tuple[str, str], RouteRow] = {}
        for surface in ("manage", "proxy", "instance", "admin"):
            table: Table[Entry] = getattr(self, surface)
            for method, pattern, owner in table.rows():
                entry = table.match(method, pattern)
                row = found.get((method, pattern))
                surfaces = (*row.surfaces, surface) if row else (surface,)
                level = _level(entry.target) if entry else Access.MANAGE
                found[method, pattern] = RouteRow(method, pattern, surfaces, level, owner)
        return sorted(found.values(), key=lambda row: (row.path, row.method))

    def listing(self) -> list[dict[str, str]]:
        """The same, a row per surface, as ``/api/routes`` shows it."""
        return [
            {
                "method": row.method,
                "path": row.path,
                "surface": surface,
                "level": row.level.value,
                "plugin": row.plugin,
            }
            for row in self.rows()
            for surface in row.surfaces
        ]


def _level(entry: Entry) -> Access:
    if isinstance(entry, Fixed):
        return Access.PUBLIC
    return entry.level if isinstance(entry, Inference) else entry.access


def build_tables(
    dialects: Sequence[tuple[str, Dialect]],
    native: Dialect,
    streams: Sequence[tuple[str, StreamRoute]],
    *,
    on_broken: Callable[[str, str], None],
) -> Tables:
    """Lay out the surfaces.

    :param dialects: (plugin name, dialect); their paths win over llama-server's own.
    :param on_broken: told plugin and reason when a route is taken, malformed or open to strangers; that dialect
        or stream stays out.
    """
    tables = Tables()
    for table in (tables.manage, tables.proxy, tables.instance, tables.admin):
        table.add("GET", "/health", HEALTH, "llamaman")
    for table in (tables.manage, tables.proxy):
        table.add("GET", "/api/version", VERSION, "llamaman")
    tables.proxy.add("GET", "/", GREETING, "llamaman")
    shared: list[tuple[str, Dialect, InferenceRoute]] = []
    for owner, dialect in dialects:
        problem = _problem(dialect, (tables.manage, tables.proxy, tables.instance))
        if problem:
            on_broken(owner, problem)
            continue
        for route in dialect.routes:
            if route.header:
                shared.append((owner, dialect, route))
                continue
            for surface in route.surfaces:
                entry = Inference(dialect, route, route.access)
                getattr(tables, surface).add(route.method, route.pattern, entry, owner)
    for owner, dialect, route in shared:
        for surface in route.surfaces:
            entry = Inference(dialect, route, route.access)
            if problem := _share(getattr(tables, surface), owner, entry):
                on_broken(owner, problem)
    for route in native.routes:
        for surface in route.surfaces:
            table = getattr(tables, surface)
            if table.match(route.method, route.pattern) is None:
                table.add(route.method, route.pattern, Inference(native, route, route.access), "llamaman")
    for owner, stream in streams:
        problem = _stream_problem(owner, stream, (tables.manage, tables.admin))
        if problem:
            on_broken(owner, problem)
            continue
        for table in (tables.manage, tables.admin):
            table.add(stream.method, stream.pattern, stream, owner)
    return tables


def _share(table: Table[Entry], owner: str, entry: Inference) -> str | None:
    """Add a route that has a path for the requests with a header; for all where nobody serves the others.

    Returns why that cannot be, or None.
    """
    route = entry.route
    if (other := table.owner(route.method, route.pattern)) is None:
        table.add(route.method, route.pattern, entry, owner)
        return None
    found = table.match(route.method, route.pattern)
    base = found.target if found else None
    if not isinstance(base, Inference) or base.route.pattern != route.pattern or route.header in base.others:
        return f"route {route.method} {route.pattern} is '{other}', which does not share it"
    base.others[route.header] = entry
    return None


def _problem(dialect: Dialect, tables: Sequence[Table[Entry]]) -> str | None:
    """Why a dialect cannot be served, or None."""
    declared: object = dialect.routes
    if not isinstance(declared, (list, tuple)):
        return f"dialect '{dialect.name}' has no list of routes, but {type(declared).__name__}"
    for route in declared:
        if not isinstance(route, InferenceRoute):
            return f"dialect '{dialect.name}' declares {type(route).__name__}, not an InferenceRoute"
        if reason := _malformed(route.method, route.pattern, route.access):
            return reason
    if reason := _taken(tables, [(r.method, r.pattern) for r in declared if not r.header]):
        return reason
    hidden = [r for r in declared if "manage" in r.surfaces and _over_management(r.pattern)]
    return _hides(hidden[0]) if hidden else None


def _stream_problem(owner: str, stream: StreamRoute, tables: Sequence[Table[Entry]]) -> str | None:
    """Why a stream cannot be served, or None."""
    if reason := _malformed(stream.method, stream.pattern, stream.access):
        return reason
    if stream.access is Access.INFERENCE:  # which is open to everybody while require_auth is off
        return f"stream {stream.pattern} asks for INFERENCE; use VIEW, MANAGE or ADMIN"
    if reason := _taken(tables, [(stream.method, stream.pattern)]):
        return reason
    return _hides(stream) if owner != "llamaman" and _over_management(stream.pattern) else None


def _malformed(method: object, pattern: object, level: object) -> str | None:
    """Why a route cannot be declared like this, or None. Plugins are not type-checked, so everything may come."""
    if not isinstance(pattern, str) or not pattern.startswith("/") or not _well_braced(pattern):
        return f"route {pattern!r} is not a path such as /v1/chat or /v1/models/{{name}}"
    if method not in METHODS:
        return f"route {pattern} has the method {method!r}; it may be {', '.join(sorted(METHODS))}"
    if not isinstance(level, Access):
        return f"route {pattern} has the access level {level!r}; use a member of llamaman.Access"
    # Plugins cannot decide what is PUBLIC; a person who reviews adds it to the list.
    if level is Access.PUBLIC and pattern not in REVIEWED_PUBLIC:
        return f"route {pattern} is PUBLIC, and not on the reviewed list of such routes"
    return None


def _well_braced(pattern: str) -> bool:
    """Whether braces hold whole segments and a name; only the last may stand for several (``{name...}``)."""
    *before, last = pattern.split("/")
    return all(
        not {"{", "}"} & set(segment) or (segment[0] + segment[-1] == "{}" and segment[1:-1].isidentifier())
        for segment in (*before, last.replace("...}", "}") if last.startswith("{") else last)
    )


def _hides(route: InferenceRoute | StreamRoute) -> str:
    return f"route {route.method} {route.pattern} would hide routes of LlamaMan's own management"


def _taken(tables: Sequence[Table[Entry]], routes: Sequence[tuple[str, str]]) -> str | None:
    """Why these routes cannot be added to all of the tables, or None."""
    seen: Table[None] = Table()  # which knows that /a/{x} and /a/{y} are one route
    for method, pattern in routes:
        for table in tables:
            if owner := table.owner(method, pattern):
                return f"route {method} {pattern} is already served by '{owner}'"
        if seen.owner(method, pattern):
            return f"route {method} {pattern} is declared twice"
        seen.add(method, pattern, None, "this")
    return None


def _over_management(pattern: str) -> bool:
    """Whether some path of the pattern belongs to management, which is looked up after what the loop serves."""
    _, first, *rest = [*pattern.split("/"), ""]
    if not _may_be(first, {"api"}):
        return False
    return first.endswith("...}") or (bool(rest) and _may_be(rest[0], MANAGEMENT))


def _may_be(segment: str, names: Collection[str]) -> bool:
    return segment.startswith("{") or segment in names
