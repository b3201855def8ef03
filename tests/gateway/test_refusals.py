"""What the audit log hears of those whom the door turns away."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamaman.core.audit import Audit
from llamaman.errors import Forbidden, LlamaManError, NotFound
from llamaman.gateway.refusals import recorder
from llamaman.gateway.request import Request
from llamaman.records import NOBODY


def refused(folder: Path, path: str, error: LlamaManError) -> list[dict[str, Any]]:
    """The log's entries after one refusal."""
    request = SimpleNamespace(
        head=SimpleNamespace(method="POST", path=path),
        surface=SimpleNamespace(name="manage"),
        address="192.0.2.7",
    )
    audit = Audit(folder / "audit")
    try:
        recorder(audit)(cast(Request, request), error, NOBODY)
        assert audit.flush()
        return audit.read()
    finally:
        audit.close()


def test_a_refusal_is_recorded_with_where_to_from_where_and_why(tmp_path: Path) -> None:
    [entry] = refused(tmp_path, "/api/users", Forbidden("no"))
    assert (entry["action"], entry["object"], entry["address"], entry["outcome"]) == (
        "request.refused", "POST /api/users", "192.0.2.7", "refused",
    )  # fmt: skip
    assert entry["detail"] == "403: no; manage listener"


def test_what_is_no_refusal_is_not_recorded(tmp_path: Path) -> None:
    assert refused(tmp_path, "/api/users", NotFound("no")) == []


@pytest.mark.parametrize("path", ["/setup/c0de-of-this-run", "/setup/c0de-of-this-run/"])
def test_a_set_up_code_in_the_path_stays_out_of_the_log(tmp_path: Path, path: str) -> None:
    [entry] = refused(tmp_path, path, Forbidden("no"))
    assert entry["object"] == "POST /setup/***"
    assert "c0de" not in str(entry)
