"""The model list as Anthropic's clients know it, and its pages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamaman import InvalidField, InvalidRequest, ModelNotFound
from llamaman.testing.dialect_script import MODELS
from llamaman.testing.views import instance_view
from llamaman_api_anthropic.models import entries, one, page

ALPHA, BETA, FOLDER = MODELS
#: Entries a, b, c, ... of a list.
MANY: list[dict[str, Any]] = [{"id": letter} for letter in "abcde"]


def test_an_entry_is_what_anthropics_clients_demand() -> None:
    assert entries(MODELS)[0] == {
        "type": "model",
        "id": "alpha",
        "display_name": "alpha",
        "created_at": "2023-11-14T22:13:20Z",
        "lifecycle": "active",
        "max_input_tokens": 4096,
        "max_tokens": 4096,
    }
    assert [entry["id"] for entry in entries(MODELS)] == ["alpha", "beta"], "what cannot run is left out"


@pytest.mark.parametrize(
    ("modified", "told"), [(1e18, "9999-01-01T00:00:00Z"), (-1e18, "1970-01-01T00:00:00Z")]
)
def test_a_files_time_may_be_anything(modified: float, told: str) -> None:
    (entry,) = entries([replace(ALPHA, modified=modified)])
    assert entry["created_at"] == told


def test_its_own_client_takes_an_entry_under_strict_validation() -> None:
    types = pytest.importorskip("anthropic.types")
    for entry in entries(MODELS, (instance_view(ALPHA),)):
        types.ModelInfo.model_validate(entry)


def test_the_context_is_that_of_the_preset() -> None:
    (entry,) = entries((ALPHA,), (), {ALPHA.path: {"ctx_size": 2048}})
    assert entry["max_input_tokens"] == 2048


def test_one_model_is_found_by_what_clients_call_it() -> None:
    assert one("ALPHA:latest", MODELS)["id"] == "ALPHA:latest"
    for name in ("folder", "nobody"):
        with pytest.raises(ModelNotFound):
            one(name, MODELS)
    assert one("x", [replace(ALPHA, aliases=("x",))])["display_name"] == "alpha"


@pytest.mark.parametrize(
    ("query", "ids", "has_more"),
    [
        (b"", "abcde", False),
        (b"limit=2", "ab", True),
        (b"limit=2&after_id=b", "cd", True),
        (b"limit=2&after_id=d", "e", False),
        (b"after_id=e", "", False),
        (b"limit=2&before_id=e", "cd", True),
        (b"limit=2&before_id=c", "ab", False),
        (b"before_id=a", "", False),
        (b"lifecycle%5B%5D=active", "abcde", False),
        (b"lifecycle=retired", "", False),
        (b"something=else", "abcde", False),
    ],
)
def test_a_list_comes_in_pages(query: bytes, ids: str, has_more: bool) -> None:
    found = page(MANY, query)
    assert [entry["id"] for entry in found["data"]] == list(ids)
    assert found["has_more"] is has_more
    assert (found["first_id"], found["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))


def test_a_page_has_twenty_entries_unless_the_client_says_otherwise() -> None:
    many = [{"id": str(number)} for number in range(30)]
    assert len(page(many, b"")["data"]) == 20
    assert len(page(many, b"limit=1000")["data"]) == 30


@pytest.mark.parametrize(
    "query", [b"limit=0", b"limit=1001", b"limit=many", b"limit=-1", b"after_id=z", b"before_id=z"]
)
def test_a_page_that_cannot_be_is_refused_by_name(query: bytes) -> None:
    with pytest.raises(InvalidField, match=query.partition(b"=")[0].decode()):
        page(MANY, query)


def test_a_query_that_cannot_be_read_is_refused() -> None:
    for query in (b"limit=%ff", b"&".join([b"a=b"] * 70), b"\xff=1"):
        with pytest.raises(InvalidRequest):
            page(MANY, query)
