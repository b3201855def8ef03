"""Which surface serves what: the tables of the front door as they are built at boot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import pytest

from llamaman.access import Access
from llamaman.gateway.dialect import Dialect, InferenceRoute
from llamaman.gateway.endpoints import ASSETS, ENDPOINTS
from llamaman.gateway.native import Native
from llamaman.gateway.surfaces import Fixed, Inference, Tables, build_tables
from llamaman.records import Identity, StreamRoute

from .small_pipeline import Scripted


class Some(Scripted):
    """A dialect with the routes of a test."""

    def __init__(self, *routes: InferenceRoute) -> None:
        self.routes = routes  # type: ignore[assignment] # a class attribute of the base


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def _open(identity: Identity, values: Mapping[str, str]) -> AsyncIterator[bytes]:
    return _nothing()


LOGS = StreamRoute("GET", "/api/instances/{id}/logs/stream", Access.MANAGE, _open)
CHAT = InferenceRoute("POST", "/v1/chat/completions")


def tables(
    *dialects: tuple[str, Dialect], streams: tuple[tuple[str, StreamRoute], ...] = (("llamaman", LOGS),)
) -> tuple[Tables, list[tuple[str, str]]]:
    broken: list[tuple[str, str]] = []
    built = build_tables(
        dialects, Native(), streams, on_broken=lambda plugin, reason: broken.append((plugin, reason))
    )
    return built, broken


def serves(built: Tables, surface: str, method: str, path: str) -> bool:
    return getattr(built, surface).match(method, path) is not None


def test_inference_is_served_everywhere_but_on_the_admin_socket() -> None:
    built, _ = tables(("p", Some(CHAT)))
    surfaces = [s for s in ("manage", "proxy", "instance", "admin") if serves(built, s, "POST", CHAT.pattern)]
    assert surfaces == ["manage", "proxy", "instance"]


def test_streams_of_management_are_served_where_management_is() -> None:
    built, _ = tables()
    path = "/api/instances/abc/logs/stream"
    assert [s for s in ("manage", "proxy", "instance", "admin") if serves(built, s, "GET", path)] == [
        "manage",
        "admin",
    ]


def test_health_is_public_everywhere() -> None:
    built, _ = tables()
    for surface in ("manage", "proxy", "instance", "admin"):
        match = getattr(built, surface).match("GET", "/health")
        assert isinstance(match.target, Fixed)
        assert match.target.body == b'{"status":"ok"}'


def test_the_engines_own_endpoints_are_served_on_instance_ports_and_by_model_elsewhere() -> None:
    built, _ = tables()
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("{id_slot}", "0")
        ours = path == "/health"  # LlamaMan's own, everywhere
        assert serves(built, "instance", endpoint.method, path) is (endpoint.instance or ours), endpoint
        assert not serves(built, "instance", endpoint.method, "/upstream/m" + path), endpoint
        for surface in ("manage", "proxy"):
            assert serves(built, surface, endpoint.method, path) is (endpoint.by_model or ours), endpoint
            assert serves(built, surface, endpoint.method, "/upstream/m" + path), endpoint
        assert not serves(built, "admin", endpoint.method, "/upstream/m" + path), endpoint


def test_only_inference_is_served_by_the_model_of_a_body() -> None:
    for endpoint in ENDPOINTS:
        assert not endpoint.by_model or (endpoint.access, endpoint.method) == (Access.INFERENCE, "POST")


def test_the_engines_own_page_is_on_instance_ports_alone() -> None:
    built, _ = tables()
    for asset in ASSETS:
        path = asset.path.replace("{file...}", "a/b.js")
        match = built.instance.match("GET", path)
        assert match is not None
        assert isinstance(match.target, Inference)
        assert match.target.level is Access.PUBLIC
        for surface in ("manage", "proxy", "admin"):
            found = getattr(built, surface).match("GET", path)
            assert found is None or isinstance(found.target, Fixed)
        assert not serves(built, "manage", "GET", "/upstream/m" + path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/slots/0"),
        ("POST", "/slots"),
        ("POST", "/slots/0/1"),
        ("GET", "/v1/stream"),
        ("POST", "/models/load"),
        ("GET", "/tools"),
        ("POST", "/cors-proxy"),
        ("DELETE", "/props"),
        ("GET", "/sw.js"),
        ("POST", "/v1/chat/completions/control"),
    ],
)
def test_what_is_not_listed_is_not_passed_through(method: str, path: str) -> None:
    built, _ = tables(("p", Some(CHAT)))
    assert not serves(built, "instance", method, path)


def test_a_dialect_wins_over_the_engines_own_endpoint_on_an_instance_port() -> None:
    dialect = Some(InferenceRoute("POST", "/completion"))
    built, broken = tables(("p", dialect))
    match = built.instance.match("POST", "/completion")
    assert match is not None
    assert isinstance(match.target, Inference)
    assert match.target.dialect is dialect
    assert broken == []


LIST = InferenceRoute("GET", "/v1/models/{model...}", body="none")
LIST_OF_ANOTHER = InferenceRoute("GET", "/v1/models/{model...}", body="none", header=b"other-version")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_apis_share_a_path_by_a_header_of_one_of_them(order: tuple[int, int]) -> None:
    one, other = Some(LIST), Some(LIST_OF_ANOTHER)
    both = (("one", one), ("other", other))
    built, broken = tables(*(both[index] for index in order))
    assert broken == []
    for surface in (built.manage, built.proxy, built.instance):
        match = surface.match("GET", "/v1/models/a/b")
        assert match is not None
        assert isinstance(match.target, Inference)
        assert match.target.of([(b"accept", b"*/*")]).dialect is one
        assert match.target.of([(b"accept", b"*/*"), (b"other-version", b"1")]).dialect is other


def test_a_route_by_header_serves_everybody_where_it_is_alone() -> None:
    other = Some(LIST_OF_ANOTHER)
    match = tables(("other", other))[0].proxy.match("GET", "/v1/models/a")
    assert match is not None
    assert isinstance(match.target, Inference)
    assert match.target.of([]).dialect is other


@pytest.mark.parametrize(
    "route",
    [
        InferenceRoute("GET", "/health", body="none", header=b"x"),
        InferenceRoute("GET", "/v1/models/{id...}", body="none", header=b"x"),
        LIST_OF_ANOTHER,
    ],
    ids=["no-dialects", "other-names", "same-header"],
)
def test_what_cannot_be_shared_is_told(route: InferenceRoute) -> None:
    _, broken = tables(("one", Some(LIST)), ("other", Some(LIST_OF_ANOTHER)), ("third", Some(route)))
    assert {plugin for plugin, _ in broken} == {"third"}
    assert "does not share it" in broken[0][1]


@pytest.mark.parametrize(
    "route",
    [
        CHAT,
        InferenceRoute("GET", "/health", body="none"),
        InferenceRoute("GET", "/api/version", body="none"),
        InferenceRoute("GET", "/", body="none"),
    ],
)
def test_a_dialect_that_claims_a_taken_route_stays_out_whole(route: InferenceRoute) -> None:
    other = InferenceRoute("POST", "/other")
    built, broken = tables(("first", Some(CHAT)), ("second", Some(other, route)))
    ((plugin, reason),) = broken
    assert plugin == "second"
    assert "already served by" in reason
    for surface in ("manage", "proxy", "instance"):
        assert not serves(built, surface, "POST", "/other")
        assert serves(built, surface, "GET", "/health")


def test_a_dialect_that_declares_a_route_twice_stays_out() -> None:
    built, broken = tables(("p", Some(CHAT, CHAT)))
    assert broken == [("p", "route POST /v1/chat/completions is declared twice")]
    assert not serves(built, "proxy", "POST", CHAT.pattern)


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (InferenceRoute("GET", "/open", Access.PUBLIC), "PUBLIC"),
        (InferenceRoute("GET", "/open", "view"), "access level 'view'"),  # type: ignore[arg-type] # the mistake
        (InferenceRoute("get", "/lower"), "method 'get'"),
        (InferenceRoute("GET", "no-slash"), "is not a path"),
        (InferenceRoute("GET", "/a/{b"), "is not a path"),
        (InferenceRoute("GET", "/a/x{b}"), "is not a path"),
        (InferenceRoute("GET", "/a/{}"), "is not a path"),
        (InferenceRoute("GET", "/a/{...}"), "is not a path"),
        (InferenceRoute("GET", "/{a...}/b"), "is not a path"),
        (InferenceRoute("POST", "/{any...}"), "management"),
        (InferenceRoute("GET", None), "is not a path"),  # type: ignore[arg-type] # the mistake
        (InferenceRoute("GET", "/api/instances"), "management"),
        (InferenceRoute("POST", "/api/settings/{name}"), "management"),
        (InferenceRoute("POST", "/{any}/{thing}"), "management"),
        ("/v1/text", "not an InferenceRoute"),
        (LOGS, "declares StreamRoute"),
    ],
)
def test_a_dialect_with_a_route_that_cannot_be_declared_stays_out_whole(
    route: InferenceRoute, reason: str
) -> None:
    built, broken = tables(("good", Some(CHAT)), ("bad", Some(InferenceRoute("POST", "/other"), route)))
    ((plugin, said),) = broken
    assert (plugin, reason in said) == ("bad", True), said
    assert {row.plugin for row in built.rows()} == {"good", "llamaman"}
    assert not serves(built, "proxy", "POST", "/other")


def test_a_dialect_without_a_list_of_routes_stays_out() -> None:
    dialect = Some()
    dialect.routes = None  # type: ignore[assignment] # the mistake
    _, broken = tables(("p", dialect))
    assert broken == [("p", "dialect 'scripted' has no list of routes, but NoneType")]


def test_routes_that_differ_in_the_names_of_their_values_are_one_route() -> None:
    _, broken = tables(("p", Some(InferenceRoute("POST", "/a/{x}"), InferenceRoute("POST", "/a/{y}"))))
    assert broken == [("p", "route POST /a/{y} is declared twice")]


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (StreamRoute("GET", "/api/feed", Access.PUBLIC, _open), "PUBLIC"),
        (StreamRoute("GET", "/api/feed", Access.INFERENCE, _open), "INFERENCE"),
        (StreamRoute("GET", "/api/feed", "view", _open), "access level 'view'"),  # type: ignore[arg-type] # the mistake
        (StreamRoute("GET", "feed", Access.VIEW, _open), "is not a path"),
        (StreamRoute("GET", "/api/instances/{id}", Access.VIEW, _open), "management"),
        (StreamRoute("GET", "/health", Access.VIEW, _open), "already served by 'llamaman'"),
    ],
)
def test_a_stream_that_cannot_be_declared_stays_out(stream: StreamRoute, reason: str) -> None:
    built, broken = tables(streams=(("llamaman", LOGS), ("bad", stream)))
    ((plugin, said),) = broken
    assert (plugin, reason in said) == ("bad", True), said
    assert {row.plugin for row in built.rows()} == {"llamaman"}


@pytest.mark.parametrize("level", [Access.VIEW, Access.MANAGE, Access.ADMIN])
def test_a_stream_that_asks_for_a_management_level_is_served(level: Access) -> None:
    built, broken = tables(streams=(("p", StreamRoute("GET", "/api/feed", level, _open)),))
    assert broken == []
    assert serves(built, "manage", "GET", "/api/feed")
    assert serves(built, "admin", "GET", "/api/feed")


def test_a_stream_that_claims_a_taken_route_stays_out() -> None:
    other = StreamRoute("GET", "/api/instances/{any}/logs/stream", Access.VIEW, _open)
    built, broken = tables(streams=(("llamaman", LOGS), ("late", other)))
    assert [plugin for plugin, _ in broken] == ["late"]
    match = built.manage.match("GET", "/api/instances/x/logs/stream")
    assert match is not None
    assert match.target is LOGS


def test_every_route_is_listed_with_surfaces_and_level() -> None:
    built, _ = tables(("p", Some(CHAT, InferenceRoute("GET", "/v1/models", Access.VIEW, body="none"))))
    rows = {(row.method, row.path): row for row in built.rows()}
    assert rows["POST", CHAT.pattern].surfaces == ("manage", "proxy", "instance")
    assert rows["POST", CHAT.pattern].plugin == "p"
    assert rows["GET", "/v1/models"].level is Access.VIEW
    assert rows["GET", LOGS.pattern].level is Access.MANAGE
    assert rows["GET", "/health"].level is Access.PUBLIC
    assert rows["GET", "/slots"].level is Access.VIEW
    assert rows["POST", "/props"].level is Access.MANAGE
    assert rows["POST", "/lora-adapters"].level is Access.MANAGE
    assert {"method": "GET", "path": "/", "surface": "proxy", "level": "public", "plugin": "llamaman"} in (
        built.listing()
    )


def test_nothing_that_changes_shared_state_is_open_to_inference() -> None:
    for endpoint in ENDPOINTS:
        if endpoint.method == "POST" and endpoint.path in ("/props", "/lora-adapters"):
            assert endpoint.access is Access.MANAGE
        if endpoint.path in ("/slots", "/metrics"):
            assert endpoint.access is Access.VIEW
