"""Which real engines the tests of this run can use.

For fixtures: every test that is given an engine runs once per engine. The embedded engine is always there
(the development install brings it); a llama-server binary is, when LLAMA_SERVER_BIN names one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TestEngine:
    """An engine to run tests with.

    :ivar name: ``llama-server`` or ``embedded``, as in :class:`llamaman.records.Engine`.
    :ivar binary: the program, or None for the embedded engine.
    :ivar missing: why it cannot be used, or None.
    """

    __test__ = False  # not a test class, whatever pytest makes of its name

    name: str
    binary: Path | None
    missing: str | None = None


def available_engines() -> tuple[TestEngine, ...]:
    """Both engines; one that cannot run here says so in ``missing``, for a skip that is counted."""
    return (_llama_server(), _embedded())


def _llama_server() -> TestEngine:
    named = os.environ.get("LLAMA_SERVER_BIN", "")
    if not named:
        return TestEngine("llama-server", None, "set LLAMA_SERVER_BIN to a llama-server to run this test")
    binary = Path(named)
    if not os.access(binary, os.X_OK):
        return TestEngine("llama-server", None, f"LLAMA_SERVER_BIN names {binary}, which cannot be executed")
    return TestEngine("llama-server", binary)


def _embedded() -> TestEngine:
    from llamaman.runtimes.engines import embedded_version

    if embedded_version() is None:
        return TestEngine(
            "embedded", None, "install xllamacpp to run this test: pip install 'llamaman[embedded]'"
        )
    return TestEngine("embedded", None)
