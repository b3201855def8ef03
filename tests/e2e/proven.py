"""Which environment variables a test shows the effect of: ``@proves("LLAMA_IMAGE")`` above it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

_MARKED = re.compile(r"^@proves\(([^)]*)\)", re.MULTILINE)
_NAME = re.compile(r'"([A-Z_]+)"')


def proves(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a test as the one that shows what these variables do."""
    assert names
    return lambda test: test


def proven() -> set[str]:
    """Every variable named by a mark in any end-to-end test."""
    texts = (path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    return {name for text in texts for marked in _MARKED.findall(text) for name in _NAME.findall(marked)}
