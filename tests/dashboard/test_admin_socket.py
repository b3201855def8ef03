"""Where the admin socket may lie: a folder that is ours alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamaman.errors import ConfigError
from llamaman.gateway.admin_socket import candidates, prepare_runtime_dir, socket_path, why_unsafe


def test_the_folder_is_made_for_us_alone(tmp_path: Path) -> None:
    folder = prepare_runtime_dir(tmp_path / "run" / "llamaman")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_an_existing_folder_is_narrowed(tmp_path: Path) -> None:
    folder = tmp_path / "llamaman"
    folder.mkdir()
    folder.chmod(0o755)
    assert prepare_runtime_dir(folder) == folder
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("problem", ["a file", "a link", "open to others"])
def test_a_folder_that_others_could_swap_is_refused_by_name(tmp_path: Path, problem: str) -> None:
    folder = tmp_path / "llamaman"
    if problem == "a file":
        folder.write_text("")
    elif problem == "a link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(ConfigError) as caught:
        prepare_runtime_dir(folder)
    assert str(folder) in caught.value.message
    assert "XDG_RUNTIME_DIR" in caught.value.message


def test_a_folder_of_another_account_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    folder = tmp_path / "llamaman"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    assert why_unsafe(folder) == "it belongs to uid 12345"
    with pytest.raises(ConfigError, match="12345"):
        prepare_runtime_dir(folder)


def test_a_named_folder_is_the_only_one_and_the_default_has_others_to_fall_back_to() -> None:
    assert candidates(Path("/somewhere/llamaman")) == (Path("/somewhere/llamaman"),)
    default = candidates(Path("/run/llamaman"))
    assert default[0] == Path("/run/llamaman")
    assert Path(f"/run/user/{os.geteuid()}/llamaman") in default


@pytest.mark.parametrize("node", ["n" * 128, "a/b", "../up"])
def test_a_name_that_makes_no_socket_address_is_hashed(tmp_path: Path, node: str) -> None:
    path = socket_path(Path("/run/llamaman"), node)
    assert path.parent == Path("/run/llamaman")
    assert len(os.fsencode(path)) <= 103
    assert path != socket_path(Path("/run/llamaman"), node + "x")
