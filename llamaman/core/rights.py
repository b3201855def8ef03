"""Giving up rights before another program is started. For whoever starts processes."""

from __future__ import annotations

_PR_SET_NO_NEW_PRIVS = 38


def set_no_new_privs() -> bool:
    """Forbid this thread and all it starts to gain rights by executing a file; False where unsupported.

    It cannot be taken back, so a program is started from a thread that lives for that alone.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
