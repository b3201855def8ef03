"""The distributions of this checkout fit together, and no committed file depends on one machine."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from llamaman.version import __version__

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
ENTRY_GROUPS = {"llamaman.plugins", "llamaman.storage"}
#: The one file that may name the folder beside the checkout where a test server may lie.
KNOWS_THE_LAB = ".ci/run"


@cache
def pyproject(folder: Path) -> dict[str, Any]:
    """The parsed pyproject.toml of `folder`."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def distribution(folder: Path) -> str:
    """The distribution's name."""
    return str(pyproject(folder)["project"]["name"])


def package(folder: Path) -> Path:
    """The folder of the plugin's import package."""
    return folder / f"llamaman_{folder.name}"


@cache
def committed() -> tuple[Path, ...]:
    """Every file that git keeps or would add; all but what we generate where there is no git."""
    names: list[str] = []
    if shutil.which("git"):
        command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        names = [name for name in listed.stdout.split("\0") if name]
    if not names:
        kept_out = re.compile(r"(^|/)(\.(?!ci/)\w+|__pycache__)/")
        everything = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*"))
        names = [name for name in everything if not kept_out.search(name)]
    return tuple(ROOT / name for name in names if (ROOT / name).is_file())


def extras() -> dict[str, list[Requirement]]:
    """The root's extras."""
    table = pyproject(ROOT)["project"]["optional-dependencies"]
    return {name: [Requirement(text) for text in texts] for name, texts in table.items()}


def test_there_are_plugins_to_check() -> None:
    assert {path.name for path in PLUGINS} >= {"store_json", "api_openai"}


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda path: path.name)
class TestEveryPlugin:
    """What each folder under plugins/ promises."""

    def test_names_follow_the_folder(self, folder: Path) -> None:
        assert distribution(folder) == f"llamaman-{folder.name.replace('_', '-')}"
        assert package(folder).is_dir()

    def test_has_a_readme_types_and_a_licence(self, folder: Path) -> None:
        assert (folder / "README.md").read_text(encoding="utf-8").startswith("# ")
        assert (package(folder) / "py.typed").is_file()
        assert pyproject(folder)["project"]["license"] == "Apache-2.0"

    def test_takes_its_version_from_the_kernel(self, folder: Path) -> None:
        assert pyproject(folder)["project"]["dynamic"] == ["version"]
        source = folder / pyproject(folder)["tool"]["hatch"]["version"]["path"]
        assert source.resolve() == ROOT / "llamaman" / "version.py"
        keys = pyproject(folder)["tool"]["uv"]["cache-keys"]
        assert {"file": "../../llamaman/version.py"} in keys, "uv would keep showing an old version"

    def test_is_installed_with_the_kernels_version(self, folder: Path) -> None:
        installed = importlib.metadata.version(distribution(folder))
        assert installed == importlib.metadata.version("llamaman") == __version__, "run `make venv`"

    def test_requires_this_kernel_and_no_other_plugin(self, folder: Path) -> None:
        needs = [Requirement(text) for text in pyproject(folder)["project"]["dependencies"]]
        ours = [need for need in needs if need.name.startswith("llamaman")]
        assert [need.name for need in ours] == ["llamaman"]
        assert_pinned_to_this_minor_version(ours[0].specifier)
        assert pyproject(folder)["tool"]["uv"]["sources"]["llamaman"] == {"workspace": True}

    def test_declares_entry_points_that_load(self, folder: Path) -> None:
        groups = pyproject(folder)["project"]["entry-points"]
        assert groups
        assert set(groups) <= ENTRY_GROUPS
        installed = importlib.metadata.distribution(distribution(folder)).entry_points
        for group, entries in groups.items():
            for name, target in entries.items():
                assert target == package(folder).name, "discovery loads the package, hooks and all"
                expected = folder.name.removeprefix("store_") if group == "llamaman.storage" else folder.name
                assert name == expected
                (point,) = installed.select(group=group, name=name)
                assert point.load().__name__ == target

    def test_is_in_an_extra_a_uv_source_and_local_txt(self, folder: Path) -> None:
        name = distribution(folder)
        found = [need for needs in extras().values() for need in needs if need.name == name]
        assert found, f"no extra of the root offers {name}"
        for need in found:
            assert_pinned_to_this_minor_version(need.specifier)
        assert pyproject(ROOT)["tool"]["uv"]["sources"][name] == {"workspace": True}
        constraints = (ROOT / "plugins" / "local.txt").read_text(encoding="utf-8").splitlines()
        assert f"{name} @ file://${{PWD}}/plugins/{folder.name}" in constraints

    def test_is_type_checked(self, folder: Path) -> None:
        assert str(package(folder).relative_to(ROOT)) in pyproject(ROOT)["tool"]["mypy"]["files"]


def assert_pinned_to_this_minor_version(specifier: SpecifierSet) -> None:
    """`~=X.Y.0`: this version and later fixes of it, not the next minor version."""
    version = Version(__version__)
    assert specifier.contains(version)
    assert not specifier.contains(f"{version.major}.{version.minor + 1}.0")


def test_extras_offer_only_plugins_that_lie_here() -> None:
    ours = {distribution(folder) for folder in PLUGINS} | {"llamaman"}
    named = {need.name for needs in extras().values() for need in needs if need.name.startswith("llamaman")}
    assert named <= ours
    constraints = (ROOT / "plugins" / "local.txt").read_text(encoding="utf-8")
    assert set(re.findall(r"^(llamaman[\w-]*) @", constraints, flags=re.MULTILINE)) == ours - {"llamaman"}


def test_the_extra_all_contains_every_other_extra() -> None:
    (everything,) = extras()["all"]
    assert everything.extras == set(extras()) - {"all"}


def test_the_kernel_requires_no_plugin() -> None:
    """A base dependency on a plugin is a cycle that breaks `pip install -e .`."""
    needs = [Requirement(text).name for text in pyproject(ROOT)["project"]["dependencies"]]
    assert not [name for name in needs if name.startswith("llamaman")]


def test_the_installed_distributions_agree() -> None:
    import sys

    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_committed_file_depends_on_one_machine() -> None:
    """Neither the folder beside the checkout, but for CI's script, nor a path that only one machine has."""
    lab = "/".join(("shared", "lab"))
    machine = re.compile(r"(?<![\w.])/(?:work|root|home/[a-z]+)/[\w.]")
    wrong = []
    for path in committed():
        name = path.relative_to(ROOT).as_posix()
        if name in ("uv.lock", "LICENSE"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if (lab in line and name != KNOWS_THE_LAB) or machine.search(line):
                wrong.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)
