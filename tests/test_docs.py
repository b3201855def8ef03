"""The documentation says what the code does: generated pages are fresh, examples are real, commands exist."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from llamaman import errors
from llamaman.core.config import VARIABLES
from llamaman.core.launch_options import OPTIONS
from llamaman.core.settings_table import CORE_SETTINGS
from llamaman.gateway.metrics_table import FAMILIES
from llamaman.hookspecs import HOOKS
from llamaman.testing.manager import Manager

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
GENERATED = [
    "configuration",
    "plugins",
    *(
        f"reference/{name}"
        for name in ("cli", "errors", "hooks", "launch-options", "limits", "metrics", "routes", "settings")
    ),
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_SHELL = re.compile(r"^```(?:shell|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def make_docs() -> Iterator[ModuleType]:
    """scripts/make_docs.py, imported as when it runs."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import make_docs

    yield make_docs
    sys.path.remove(str(ROOT / "scripts"))
    for name in ("make_docs", "docs_limits", "docs_markdown", "docs_metrics", "docs_surface"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def generated(make_docs: ModuleType) -> dict[Path, str]:
    """Every generated page as it should be."""
    pages: dict[Path, str] = make_docs.generated()
    return pages


def page(name: str) -> str:
    """A committed page of the reference."""
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


# --- generated pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_as_the_code_declares(name: str, generated: dict[Path, str]) -> None:
    path = ROOT / "docs" / f"{name}.md"
    assert path.read_text(encoding="utf-8") == generated[path], "the code changed: run make docs and commit"


def test_every_generated_page_is_known_here(generated: dict[Path, str]) -> None:
    assert {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in generated} == set(
        GENERATED
    )
    assert {path.stem for path in REFERENCE.iterdir()} == {Path(n).name for n in GENERATED if "/" in n}


def test_the_reference_leaves_nothing_out() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    expected = {
        "hooks": [f"\n## {name}\n" for name in HOOKS],
        "settings": [f"\n| `{each.name}` |" for each in CORE_SETTINGS],
        "launch-options": [f"\n| `{each.name}` |" for each in OPTIONS],
        "errors": [f"\n| `{each.__name__}` | {getattr(each, 'status', '')} |" for each in kinds],
        "cli": [f"\n## llamaman {name}\n" for name in commands()],
        "metrics": [f"\n| `{each.name}` | {each.kind} |" for each in FAMILIES],
    }
    for name, needles in expected.items():
        text = page(name)
        assert needles
        assert [each for each in needles if text.count(each) != 1] == [], name


def test_the_page_of_routes_is_what_a_manager_serves(tmp_path: Path) -> None:
    """The generator lays the tables out itself; here a real manager is asked."""
    with Manager(tmp_path / "m") as manager:
        served = {
            (row["method"], row["path"], row["surface"], row["level"], row["plugin"])
            for row in manager.manage("GET", "/api/routes")
        }
    rows = re.findall(
        r"^\| (\w+) \| `(/\S*)` \| ([\w, ]+) \| (\w+) \| (\w+) \|$", page("routes"), re.MULTILINE
    )
    documented = {
        (method, path, surface, level, plugin)
        for method, path, surfaces, level, plugin in rows
        for surface in surfaces.split(", ")
    }
    # Flask does not know that the admin socket leads to it too, and lists one surface.
    missing = served - documented
    assert not missing
    assert {row for row in documented - served if row[2] != "admin"} == set()


def test_a_file_shown_in_the_guide_is_shown_whole(make_docs: ModuleType) -> None:
    guide = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    shown = re.findall(r"<!-- file: (\S+) -->", guide)
    own = [path for path in (ROOT / "tests" / "example_plugin").rglob("*") if path.suffix in (".py", ".toml")]
    assert {ROOT / name for name in shown} == {path for path in own if path.name != "conftest.py"}
    for name in shown:
        assert (ROOT / name).read_text(encoding="utf-8") in guide
    stale = guide.replace("class Ask:", "class Asks:")
    assert make_docs.with_files(stale) == guide


# --- prose ----------------------------------------------------------------------------------------------


def commands() -> dict[str, click.Command]:
    """Every command by its full name."""
    from llamaman.cli.root import cli

    def below(group: click.Group, before: str) -> Iterator[tuple[str, click.Command]]:
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            assert command is not None
            if isinstance(command, click.Group):
                yield from below(command, f"{before}{name} ")
            else:
                yield f"{before}{name}", command

    return dict(below(cli, ""))


def shell_lines(path: Path) -> list[str]:
    """The commands in a page's shell blocks, continued lines joined."""
    blocks = "".join(_SHELL.findall(path.read_text(encoding="utf-8"))).replace("\\\n", " ")
    return [line for line in blocks.splitlines() if line.strip()]


SHOWN = [
    pytest.param(line[line.index("llamaman ") :], id=f"{path.name}: {line[:60]}")
    for path in PAGES
    for line in shell_lines(path)
    if re.match(r"(?:[A-Z_]+=\S+ )*llamaman ", line)
]


def test_the_guides_show_commands() -> None:
    assert len(SHOWN) > 20


@pytest.mark.parametrize("line", SHOWN)
def test_a_command_in_the_guides_exists_and_takes_what_it_is_given(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    known = commands()
    name = next((n for n in (" ".join(words[:2]), words[0]) if n in known), None)
    assert name, f"no command fits '{line}'"
    rest = words[len(name.split()) :]
    known[name].make_context(name, rest)  # raises UsageError at an unknown option or a missing argument


def test_the_guides_name_no_variable_that_is_not_read() -> None:
    known = {variable.env for variable in VARIABLES}
    known |= {f"{variable.env}_FILE" for variable in VARIABLES if variable.secret}
    known |= {"LLAMAMAN_TEST_CHROMIUM"}  # of the tests themselves: tests/e2e/browser
    patterns = re.compile(r"\b(?:LLAMAMAN|LLAMA|MODELS|DATA|LOGS)_[A-Z_]+\b")
    for path in (path for path in PAGES if path.parent != REFERENCE):
        found = set(patterns.findall(path.read_text(encoding="utf-8")))
        assert found <= known, path.name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file) if file else path
        assert other.exists(), f"{path.name} links to {target}"
        if anchor:
            assert re.search(rf"^#+ {anchor}$", other.read_text(encoding="utf-8"), re.MULTILINE), target


def test_the_guides_name_no_hook_that_is_not_there() -> None:
    guide = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    picture = re.split(r"^## ", guide, flags=re.MULTILINE)
    (life,) = (part for part in picture if part.startswith("When hooks are called"))
    named = {name for name in HOOKS if re.search(rf"\b{name}\b", life)}
    assert named == set(HOOKS), "every hook has its place in the picture, or is named as not called yet"


def sentences(path: Path) -> Iterator[str]:
    """The texts of a module that are not docstrings, formatted ones without their values."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node.value


def test_a_command_that_a_sentence_of_the_program_offers_exists() -> None:
    offered: set[str] = set()
    for path in sorted((ROOT / "llamaman").rglob("*.py")):
        for text in sentences(path):
            offered |= set(re.findall(r"(?:'|`|: )llamaman ([a-z-]+(?: [a-z-]+)?)", text))
    known = commands()
    assert {each for each in offered if each not in known and each.split()[0] not in known} == set()
