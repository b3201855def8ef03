"""What an engine says of files reaches no client: members that hold paths, and paths in errors."""

from __future__ import annotations

import json

import pytest

from llamaman.gateway.host_paths import names_only, without_paths


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"cannot open /srv/models/a-b.gguf (no such file)", b"cannot open a-b.gguf (no such file)"),
        (b"\"failed: '/models/x/y.gguf'\"", b"\"failed: 'y.gguf'\""),
        (b"a=/a/b, b=/c/d/e", b"a=b, b=e"),
        (b"see https://example.org/a/b and image/png", b"see https://example.org/a/b and image/png"),
        (b"use /v1/chat/completions or /props", b"use /v1/chat/completions or /props"),
        (b"1/2/3 and a/b/c and 5 / 7", b"1/2/3 and a/b/c and 5 / 7"),
    ],
)
def test_a_path_in_an_error_becomes_the_name_of_its_file(said: bytes, told: bytes) -> None:
    assert names_only(said) == told


def test_members_that_hold_paths_are_left_out_at_any_depth() -> None:
    body = {
        "path": "/a",
        "x": [{"model_path": "/b", "y": {"args": ["/c"], "z": 1}}],
        "chat_template": "/d/e ä",
    }
    assert json.loads(without_paths(json.dumps(body).encode())) == {
        "x": [{"y": {"z": 1}}],
        "chat_template": "/d/e ä",
    }


@pytest.mark.parametrize("body", [b"", b"no json", b'{"path": "/a"'])
def test_what_is_no_json_stays_as_it_is(body: bytes) -> None:
    assert without_paths(body) == body
