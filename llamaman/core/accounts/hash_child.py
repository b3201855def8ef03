"""The process that hashes one password and ends. Run as a plain file by ``hasher.py``; imports none of our code.

A process of its own, at a low priority: a thread of ours that hashes for 0.3 s on a machine with two cores
would make every stream stutter. It reads one JSON object from stdin and writes one to stdout; the password is
never in its arguments or its environment. The arguments are the folders from which modules are imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys

MEMORY_KIB, PASSES, LANES = 64 * 1024, 3, 1

#: What an imported scrypt hash may ask of us: bytes (it takes 128 * N * r, and Werkzeug's own ask for 32 MiB), and
#: how often that is filled. OpenSSL refuses more than the first.
_SCRYPT_MEMORY = 256 << 20
_SCRYPT_LANES = 16

#: A process at 0 gets ten times the processor time of one at 10, and seventy times that of one at 19, where a login
#: would take half a minute while engines compute on every processor.
NICENESS = 10


def hash_password(password: bytes) -> str:
    """An argon2id hash in its standard text form."""
    from argon2.low_level import Type, hash_secret

    return hash_secret(password, os.urandom(16), PASSES, MEMORY_KIB, LANES, 32, Type.ID).decode()


def verify(known: str, password: bytes) -> bool:
    """Whether this is the password.

    :raises ValueError: the hash is of no kind that we know, or damaged.
    """
    if known.startswith("scrypt:"):
        return _verify_scrypt(known, password)
    from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError
    from argon2.low_level import Type, verify_secret

    try:
        return verify_secret(known.encode(), password, Type.ID)
    except VerifyMismatchError:
        return False
    except (VerificationError, InvalidHashError) as error:
        raise ValueError(f"not an argon2id hash: {error}") from error


def _verify_scrypt(known: str, password: bytes) -> bool:
    """``scrypt:N:r:p$salt$hexdigest``, the form in which Werkzeug stores it."""
    import hashlib
    import hmac

    method, salt, expected = known.split("$", 2)
    n, r, p = (int(number) for number in method.split(":")[1:])
    if p > _SCRYPT_LANES:
        raise ValueError(f"a scrypt hash with p={p} is refused")
    digest = hashlib.scrypt(password, salt=salt.encode(), n=n, r=r, p=p, maxmem=_SCRYPT_MEMORY)
    return hmac.compare_digest(digest.hex(), expected)


def _step_back() -> None:
    """Take a tenth of the processor time that others get, and all that nobody wants.

    ``hasher.py`` gives it a session of its own. Where the kernel groups sessions (sched_autogroup, sched(7)),
    niceness counts inside such a group alone, and the groups share evenly; a group has a niceness of its own.
    """
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():  # a session that is not ours alone is not ours to slow down
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as group:
            group.write(str(NICENESS))


def main() -> None:
    """Answer the one question on stdin."""
    sys.path[:0] = sys.argv[1:]
    _step_back()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the password
    question = json.load(sys.stdin.buffer)
    password = question["password"].encode("utf-8", "surrogatepass")
    known = question["known"]
    answer = {"hash": hash_password(password)} if known is None else {"right": verify(known, password)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
