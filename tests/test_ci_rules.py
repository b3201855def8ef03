"""A test that needs a real part is skipped on a user's machine and fails in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CASES = """
import pytest

@pytest.mark.real
def test_needs_an_engine():
    pytest.skip("no engine here")

def test_needs_another_system():
    pytest.skip("not on this system")

@pytest.mark.real
@pytest.mark.xfail(reason="known")
def test_is_known_to_fail():
    assert False
"""


def outcome(folder: Path, *, ci: str, cases: str = CASES) -> tuple[int, str]:
    """Exit status and output of a separate pytest run over `cases` under this repository's conftest."""
    shutil.copy(ROOT / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = real\n", encoding="utf-8")
    (folder / "test_cases.py").write_text(cases, encoding="utf-8")
    environment = {**os.environ, "CI": ci}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rfs", str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_missing_real_part_is_a_skip_on_a_users_machine(tmp_path: Path) -> None:
    status, output = outcome(tmp_path, ci="")
    assert status == 0, output
    assert "2 skipped, 1 xfailed" in output


def test_a_missing_real_part_is_a_failure_in_ci(tmp_path: Path) -> None:
    status, output = outcome(tmp_path, ci="true")
    assert status == 1
    assert "1 failed, 1 skipped, 1 xfailed" in output
    assert "no engine here" in output


@pytest.mark.parametrize(("ci", "expected"), [("", 5), ("true", 2)])
def test_a_module_that_skips_itself_is_a_failure_in_ci(tmp_path: Path, ci: str, expected: int) -> None:
    cases = "import pytest\npytest.skip('nothing of it can run', allow_module_level=True)\n"
    status, output = outcome(tmp_path, ci=ci, cases=cases)
    assert status == expected, output
    assert "nothing of it can run" in output
