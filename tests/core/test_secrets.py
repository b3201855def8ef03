"""The root secret is random, private and constant; what is derived from it is separate per purpose."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from llamaman.core.redact import redact
from llamaman.core.secrets import FILE, RootSecret, hkdf_sha256, root_secret
from llamaman.errors import ConfigError, StoreCorrupt


def test_hkdf_gives_the_values_of_rfc_5869() -> None:
    """Test cases 1 and 3 of appendix A."""
    key = bytes.fromhex("0b" * 22)
    first = hkdf_sha256(
        key, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"), 42, bytes.fromhex("000102030405060708090a0b0c")
    )
    assert first.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    third = hkdf_sha256(key, b"", 42)
    assert third.hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


@pytest.mark.parametrize("length", [0, 8161])
def test_hkdf_refuses_impossible_lengths(length: int) -> None:
    with pytest.raises(ValueError, match="8160"):
        hkdf_sha256(b"x", b"", length)


def test_a_random_root_is_made_once_and_kept_private(tmp_path: Path) -> None:
    first = root_secret(tmp_path, None)
    again = root_secret(tmp_path, None)
    assert first.derive("tokens") == again.derive("tokens")
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    (tmp_path / "other").mkdir()
    assert root_secret(tmp_path / "other", None).derive("tokens") != first.derive("tokens")


def test_secret_key_is_the_root_and_leaves_no_file(tmp_path: Path) -> None:
    given = root_secret(tmp_path, "a long operator secret")
    assert given.derive("tokens") == RootSecret(b"a long operator secret").derive("tokens")
    assert os.listdir(tmp_path) == []


def test_purposes_are_separate() -> None:
    root = RootSecret(b"x" * 32)
    assert root.derive("tokens") != root.derive("csrf")
    assert len(root.derive("tokens", 16)) == 16


def test_an_instance_key_belongs_to_one_generation_of_one_instance() -> None:
    root = RootSecret(b"x" * 32)
    keys = {root.instance_key(name, generation) for name in ("a", "b") for generation in (1, 2)}
    assert len(keys) == 4
    assert all(len(bytes.fromhex(key)) == 32 for key in keys)
    assert RootSecret(b"x" * 32).instance_key("a", 1) == root.instance_key("a", 1)


def test_the_root_shows_nowhere(tmp_path: Path) -> None:
    root = root_secret(tmp_path, None)
    text = (tmp_path / FILE).read_text().strip()
    assert text not in repr(root)
    assert text not in redact(f"it is {text}")
    root_secret(tmp_path, "operator-secret-value")
    assert "operator-secret-value" not in redact("SECRET is operator-secret-value")


def _readable(path: Path) -> None:
    path.chmod(0o640)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("damage", [_readable, _link])
def test_a_file_that_others_may_know_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    root_secret(tmp_path, None)
    damage(tmp_path / FILE)
    with pytest.raises(ConfigError, match=FILE):
        root_secret(tmp_path, None)


@pytest.mark.parametrize("text", ["", "\n", "00" * 31, "zz" * 32])
def test_a_broken_file_is_never_replaced_by_itself(tmp_path: Path, text: str) -> None:
    path = tmp_path / FILE
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(StoreCorrupt, match=FILE):
        root_secret(tmp_path, None)
    assert path.read_text() == text
