"""Password hashes that cost nothing, for tests that log in and are about something else.

The real hasher takes 64 MiB and a process for each of hundreds of logins, and has tests of its own.
"""

from __future__ import annotations

import hashlib

from llamaman.core.accounts.hasher import Hasher, dummy_hash, normalised


class QuickHasher(Hasher):
    """Takes the place of :class:`Hasher`; its hashes look like argon2id's, and imported scrypt is really checked."""

    def hash(self, password: str) -> str:
        """SHA-256 of the password, in the form of our argon2id hashes, with a new salt."""
        return f"{dummy_hash().rpartition('$')[0]}${_digest(password)}"

    def verify(self, known: str, password: str) -> bool:
        """Whether :meth:`hash` made ``known`` of this password, or Werkzeug's scrypt did."""
        if known.startswith("scrypt:"):
            return super().verify(known, password)
        return known.endswith(f"${_digest(password)}")


def _digest(password: str) -> str:
    return hashlib.sha256(normalised(password).encode("utf-8", "surrogatepass")).hexdigest()
