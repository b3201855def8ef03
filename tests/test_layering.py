"""Which room may import which, read from the source: also imports inside functions, not those for types alone.

The picture is in docs/architecture.md. A new room or an arrow that is missing here is a decision: make it here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = {"access", "errors", "limits", "records", "runtime", "version"}
KERNEL = BASE | {"hookspecs", "core"}
MIDDLE = {"runtimes", "library", "gateway"}
OUTER = {
    "boot",
    "builtin",
    "dashboard",
    "house",
    "cli",
    "client",
    "serve",
    "demo",
    "demo_model",
    "demo_server",
    "__main__",
}

#: room: what it may import of llamaman besides itself. "" is the package's own __init__, the public API.
ALLOWED: dict[str, set[str]] = {
    "version": set(),
    "access": set(),
    "errors": {"access"},
    "limits": set(),
    "records": {"access", "errors"},
    "runtime": {"errors", "records"},
    "hookspecs": BASE,
    "core": BASE | {"hookspecs"},
    "runtimes": KERNEL,
    "library": KERNEL,
    "gateway": KERNEL,
    "doctor": KERNEL | MIDDLE,
    "dashboard": KERNEL | MIDDLE | {"doctor"},
    "": KERNEL | {"gateway"},  # re-exports the contracts that plugins implement, wherever they are written
    "builtin": KERNEL | MIDDLE,  # what LlamaMan registers through its own hooks
    "client": KERNEL | MIDDLE,
    "cli": KERNEL | MIDDLE | OUTER | {"dashboard", "doctor"},
    "boot": KERNEL | MIDDLE | {"builtin"},
    "house": KERNEL | MIDDLE | {"dashboard"},
    "serve": KERNEL | MIDDLE | {"boot", "house"},
    "demo": KERNEL | MIDDLE | {"", "demo_model", "demo_server"},
    "demo_model": {"testing"},  # the tiny model, as a last resort
    "demo_server": set(),
    "__main__": {"cli"},
    "testing": KERNEL | MIDDLE | {"", "client", "dashboard", "serve"},  # test helpers may look everywhere
}
#: Single arrows between rooms of one level, each with its reason.
REVIEWED = {
    (
        "gateway/log_stream.py",
        "runtimes.logfiles",
    ): "it follows the files that the runtime writes and rotates",
}
NOT_IN_THE_KERNEL = {
    "flask",
    "werkzeug",
    "waitress",
    "jinja2",
    "docker",
    "sqlalchemy",
    "httptools",
    "xllamacpp",
}


def is_for_types_alone(node: ast.AST) -> bool:
    """Whether `node` is an `if TYPE_CHECKING:` block, which does not exist at run time."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that `tree` imports at run time, at any depth; names of a `from` import are appended."""
    for node in ast.iter_child_nodes(tree):
        if is_for_types_alone(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room they point to"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(path: Path) -> str:
    """The first step below llamaman/: `core` for core/ports.py, `cli` for cli.py, "" for __init__.py."""
    first = path.relative_to(ROOT / "llamaman").parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def is_ours(module: str) -> bool:
    """Whether an imported name lies in the kernel's package."""
    return module.partition(".")[0] == "llamaman"


def target_room(module: str) -> str:
    """The room that `module` (as given by `imports`) lies in; "" for names of the public API."""
    name = module.split(".")[1] if "." in module else ""
    return name if name in ALLOWED else ""


FILES = sorted((ROOT / "llamaman").rglob("*.py"))
PLUGIN_FILES = sorted(ROOT.glob("plugins/*/llamaman_*/**/*.py"))


def test_every_room_has_a_rule() -> None:
    assert {room_of(path) for path in FILES} <= set(ALLOWED)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    wrong = []
    for path in FILES:
        if room_of(path) != room:
            continue
        name = path.relative_to(ROOT / "llamaman").as_posix()
        for module in filter(is_ours, imports(parsed(path))):
            reviewed = any(file == name and module.startswith(f"llamaman.{to}") for file, to in REVIEWED)
            if target_room(module) not in ALLOWED[room] | {room} and not reviewed:
                wrong.append(f"llamaman/{name} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_the_kernel_knows_no_web_framework_no_docker_and_no_sql() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in FILES
        if room_of(path) in BASE | {"core", "hookspecs"}
        for module in imports(parsed(path))
        if module.split(".")[0] in NOT_IN_THE_KERNEL
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_storage_driver_choice_uses_stevedore() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if any(module.split(".")[0] == "stevedore" for module in imports(parsed(path)))
    }
    assert len(users) <= 1, users


def test_reviewed_arrows_still_exist() -> None:
    for file, to in REVIEWED:
        modules = list(imports(parsed(ROOT / "llamaman" / file)))
        assert any(module.startswith(f"llamaman.{to}") for module in modules), (
            f"{file} no longer imports {to}"
        )


def test_plugins_import_the_public_api_alone() -> None:
    """Never llamaman.core or another room, and never another plugin."""
    assert PLUGIN_FILES
    wrong = []
    for path in PLUGIN_FILES:
        own = path.relative_to(ROOT / "plugins").parts[1]
        for module in imports(parsed(path)):
            first = module.split(".")[0]
            another = first.startswith("llamaman_") and first != own
            inside = first == "llamaman" and target_room(module) != ""
            if another or inside:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    from llamaman.core import ports", ["llamaman.core.ports"]),
        ("try:\n    import flask\nexcept ImportError: pass", ["flask"]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import flask", ["typing.TYPE_CHECKING"]),
    ],
)
def test_imports_are_found_at_any_depth_except_for_types(source: str, expected: list[str]) -> None:
    assert list(imports(ast.parse(source))) == expected
