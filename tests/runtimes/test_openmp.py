"""The embedded engine's OpenMP library: only where the environment carries a copy."""

from __future__ import annotations

from pathlib import Path

from llamaman.runtimes.openmp import engine_environment


def test_a_copy_in_the_environment_is_put_on_the_loaders_path(tmp_path: Path) -> None:
    folder = tmp_path / "lib" / "llamaman-openmp"
    folder.mkdir(parents=True)
    (folder / "libgomp.so.1").touch()
    assert engine_environment(tmp_path) == {"LD_LIBRARY_PATH": str(folder)}


def test_without_a_copy_the_systems_library_is_used(tmp_path: Path) -> None:
    assert engine_environment(tmp_path) == {}
