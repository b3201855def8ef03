"""What the audit log is told of a start."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from llamaman.core.launch_events import command_line
from llamaman.records import Engine, LaunchPlan


def plan(kind: Literal["binary", "image"], path: str) -> LaunchPlan:
    return LaunchPlan(
        instance_id="i",
        node="n",
        install="s",
        generation=1,
        engine=Engine("e", kind, path),
        model_path=Path("/m/tiny.gguf"),
        alias="tiny",
        options={},
        flags=("--ctx-size", "512"),
        env={},
        host="127.0.0.1",
        port=0 if kind == "image" else 9000,
        log_path=Path("/l/i.log"),
        config_hash="h",
        api_key="secret",
    )


@pytest.mark.parametrize(
    ("kind", "engine", "where"),
    [
        ("binary", "/opt/llama-server", ["--host", "127.0.0.1", "--port", "9000"]),
        ("image", "ghcr.io/x/llama:server", []),  # its port is none of this machine
    ],
)
def test_a_command_line_names_engine_model_and_an_address_only_where_this_machine_has_it(
    kind: Literal["binary", "image"], engine: str, where: list[str]
) -> None:
    words = command_line(plan(kind, engine))
    assert words == [engine, "--model", "/m/tiny.gguf", *where, "--alias", "tiny", "--ctx-size", "512"]
