"""The root secret and what is derived from it. It never leaves this module: not in repr, logs, argv or answers.

Derived with HKDF-SHA256 (RFC 5869) per purpose, so that a leaked engine key says nothing about tokens at rest.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import shlex
import stat
from pathlib import Path

from llamaman.core.datadir import write_private
from llamaman.core.redact import hide
from llamaman.errors import ConfigError, StoreCorrupt

log = logging.getLogger("llamaman.secrets")

FILE = "root.secret"
_SIZE = 32


class RootSecret:
    """The installation's root of keys: SECRET_KEY if given, else a random file in DATA_DIR."""

    __slots__ = ("_root",)

    def __init__(self, root: bytes) -> None:
        self._root = root

    def __repr__(self) -> str:
        return "RootSecret(***)"

    def derive(self, purpose: str, length: int = 32) -> bytes:
        """Return ``length`` bytes (at most 8160) that belong to ``purpose`` alone."""
        return hkdf_sha256(self._root, f"llamaman/{purpose}".encode(), length)

    def instance_key(self, instance_id: str, generation: int) -> str:
        """The API key of one generation of one engine: 64 hexadecimal digits, the same after a restart."""
        message = f"{instance_id}|{generation}".encode()
        return hmac.new(self.derive("instance"), message, hashlib.sha256).hexdigest()


def root_secret(data_dir: Path, secret_key: str | None) -> RootSecret:
    """Return the root secret, making and storing a random one on the first start.

    :raises ConfigError: the file may be read by others, is not ours, or cannot be written.
    :raises StoreCorrupt: the file does not hold a secret.
    """
    if secret_key:
        hide(secret_key)
        return RootSecret(secret_key.encode())
    path = data_dir / FILE
    try:
        text = _read_private(path)
    except FileNotFoundError:
        if (data_dir / "store.json").exists():
            log.warning("%s is new although the store is not: stored tokens must be entered again", path)
        text = secrets.token_hex(_SIZE)
        try:
            write_private(path, f"{text}\n".encode())
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    hide(text)
    return RootSecret(bytes.fromhex(text))


def hkdf_sha256(key: bytes, info: bytes, length: int, salt: bytes = b"") -> bytes:
    """RFC 5869: extract, then expand to ``length`` bytes."""
    if not 0 < length <= 255 * 32:
        raise ValueError(f"HKDF-SHA256 gives 1 to 8160 bytes, not {length}")
    pseudorandom = hmac.new(salt or bytes(32), key, hashlib.sha256).digest()
    block, result = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.new(pseudorandom, block + info + bytes([counter]), hashlib.sha256).digest()
        result += block
    return result[:length]


def _read_private(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; it must be a plain file of ours"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ConfigError(
                f"{path} may be known to others (uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}). "
                f"If nobody read it: chmod 600 {shlex.quote(str(path))}; else remove it, and stored tokens must "
                "be entered again"
            )
        data = file.read(1024)
    text = data.decode("ascii", "replace").strip()
    try:
        if len(bytes.fromhex(text)) == _SIZE:
            return text
    except ValueError:
        pass
    raise StoreCorrupt(
        f"{path} does not hold a secret ({len(data)} bytes). Restore it from a backup; or remove it, and stored tokens "
        "must be entered again"
    )
