"""The route table: literal paths, patterns, and that two plugins never share a route."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaman.errors import PluginError
from llamaman.gateway.routes import Table


def table() -> Table[str]:
    routes: Table[str] = Table()
    routes.add("GET", "/", "root", "core")
    routes.add("GET", "/a", "literal", "core")
    routes.add("POST", "/a", "posted", "core")
    routes.add("GET", "/a/{x}", "one", "p")
    routes.add("GET", "/a/{x}/b/{y}", "two", "p")
    routes.add("GET", "/a/fixed", "fixed", "core")
    routes.add("GET", "/rest/{all...}", "rest", "p")
    routes.add("GET", "/rest/{x}", "single", "p")
    routes.add("GET", "/rest/{x}/named/{y...}", "deep", "p")
    return routes


@pytest.mark.parametrize(
    ("path", "target", "values"),
    [
        ("/", "root", {}),
        ("/a", "literal", {}),
        ("/a/1", "one", {"x": "1"}),
        ("/a/fixed", "fixed", {}),  # a literal path wins over a pattern
        ("/a/ä b%2F", "one", {"x": "ä b%2F"}),
        ("/a/1/b/2", "two", {"x": "1", "y": "2"}),
        ("/rest/1/2", "rest", {"all": "1/2"}),
        ("/rest/1/2/3 4/5", "rest", {"all": "1/2/3 4/5"}),
        ("/rest/1", "single", {"x": "1"}),  # one segment wins over the rest of a path
    ],
)
def test_a_path_finds_its_target_and_its_values(path: str, target: str, values: dict[str, str]) -> None:
    match = table().match("GET", path)
    assert match is not None
    assert (match.target, dict(match.values)) == (target, values)


@pytest.mark.parametrize(
    "path",
    [
        "/b",
        "/a/",
        "/rest",
        "/rest/",
        "/rest/1/",
        "/rest/1//2",
        "/a//b/2",
        "/a/1/c/2",
        "/a/1/b",
        "/a/1/b/2/3",
        "",
        "/A",
    ],
)
def test_other_paths_find_nothing(path: str) -> None:
    assert table().match("GET", path) is None


def test_the_method_counts() -> None:
    match = table().match("POST", "/a")
    assert match is not None
    assert match.target == "posted"
    assert table().match("DELETE", "/a") is None
    assert table().match("POST", "/a/1") is None


def test_the_methods_of_a_path_are_known_for_a_405() -> None:
    assert table().methods("/a") == ["GET", "POST"]
    assert table().methods("/a/1") == ["GET"]
    assert table().methods("/nowhere") == []


@pytest.mark.parametrize(
    ("method", "pattern", "owner"),
    [
        ("GET", "/a", "core"),
        ("GET", "/a/{x}", "p"),
        ("GET", "/a/{other}", "p"),
        ("GET", "/a/{p}/b/{q}", "p"),
        ("GET", "/rest/{other...}", "p"),
    ],
)
def test_a_taken_route_is_refused_naming_both(method: str, pattern: str, owner: str) -> None:
    assert table().owner(method, pattern) == owner
    with pytest.raises(PluginError, match=f"'late'.*already served by '{owner}'"):
        table().add(method, pattern, "again", "late")


def test_every_route_is_listed_with_its_owner() -> None:
    assert ("GET", "/a/{x}/b/{y}", "p") in list(table().rows())
    assert len(list(table().rows())) == 9


@given(st.text(max_size=30))
def test_any_path_is_matched_or_not_and_never_breaks(path: str) -> None:
    match = table().match("GET", path)
    assert match is None or match.target
    table().methods(path)
