"""Nothing of a model file is ever rendered: a template in one can take all memory and, in places, run code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import llamaman

ROOT = Path(llamaman.__file__).parent
PAGES = ROOT / "dashboard" / "pages"
#: What makes a template of a string, under the names of Jinja2 and Flask.
RENDERERS = {
    "render_template_string",
    "from_string",
    "stream_template_string",
    "NativeEnvironment",
    "Template",
}


def rendered_by(tree: ast.AST) -> Iterator[str]:
    """Every way in which this code could render a template that is not a file of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "jinja2")
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.split(".")[0] == "jinja2":
                yield module
            elif module.split(".")[0] == "flask":
                yield from (alias.name for alias in node.names if alias.name in RENDERERS)
        elif isinstance(node, ast.Attribute) and node.attr in RENDERERS - {"Template"}:
            yield node.attr
        elif isinstance(node, ast.Constant) and node.value == "jinja2":  # importlib.import_module("jinja2")
            yield "jinja2"


def test_only_our_own_pages_use_a_template_engine() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): sorted(ways)
        for path in ROOT.rglob("*.py")
        if PAGES not in path.parents and (ways := set(rendered_by(ast.parse(path.read_text("utf-8")))))
    }
    assert found == {}


def test_our_pages_render_no_strings() -> None:
    for path in PAGES.rglob("*.py"):
        ways = set(rendered_by(ast.parse(path.read_text("utf-8"))))
        assert not ways & RENDERERS, path


@pytest.mark.parametrize(
    "code",
    [
        "import jinja2.sandbox",
        "def f():\n    from jinja2 import Environment",
        "from flask import render_template_string",
        "environment.from_string(text)",
        "import_module('jinja2')",
    ],
)
def test_every_way_is_found(code: str) -> None:
    assert list(rendered_by(ast.parse(code)))
