"""What llama-server blames itself for, though the request is at fault, is told as the request's fault."""

from __future__ import annotations

import json

import pytest

from llamaman.gateway.dialect import Result
from llamaman.gateway.engine_faults import is_context_full, put_right


def said(status: int, message: object) -> bytes:
    return json.dumps({"error": {"code": status, "message": message, "type": "server_error"}}).encode()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, "Failed to parse messages: Missing 'role' in message: {}"),
        (500, "Failed to parse tools: [json.exception.type_error.302] type must be array"),
        (500, "vector::_M_range_check: __n (which is 9) >= this->size() (which is 3)"),
        (500, "input (900 tokens) is too large to process. increase the physical batch size"),
        (501, "Infill is not supported by this model: prefix token is missing. "),
        (501, "This server does not support embeddings. Start it with `--embeddings`"),
    ],
)
def test_what_trying_again_does_not_change_is_a_400(status: int, message: str) -> None:
    got, body = put_right(status, said(status, message))
    assert got == 400
    assert json.loads(body) == {"error": {"code": 400, "message": message, "type": "invalid_request_error"}}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, said(500, None)),
        (500, b"Internal Server Error"),
        (500, b"[]"),
        (501, b'{"error":"no"}'),
        (503, said(503, "Failed to parse messages")),
        (400, said(400, "Failed to parse messages")),
    ],
)
def test_everything_else_is_told_as_it_was_said(status: int, body: bytes) -> None:
    assert put_right(status, body) == (status, body)


def test_a_context_that_others_have_filled_is_recognised() -> None:
    assert is_context_full(Result(500, said(500, "Context size has been exceeded.")))
    assert not is_context_full(Result(500, said(500, "Compute error.")))
    assert not is_context_full(Result(200, b'{"content":"Context size has been exceeded."}'))
    assert not is_context_full(Result(400, said(400, "Context size has been exceeded.")))
