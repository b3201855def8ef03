"""What keeps an engine process away from the rest of the machine, and what does not.

For the instance card and ``llamaman doctor``: a model file is data from strangers, parsed by a large C++
program, so what is missing is said and never assumed.
"""

from __future__ import annotations

import os
from collections.abc import Collection


def missing_isolation(user: str | None, no_sandbox: str | None, limited: Collection[str]) -> tuple[str, ...]:
    """Sentences about what is missing for processes started here.

    :param user: the configured LLAMA_SERVER_USER.
    :param no_sandbox: why there is no sandbox, or None.
    :param limited: which of ``memory`` and ``cpus`` can be limited here.
    """
    notes = []
    if no_sandbox is not None:
        notes.append(f"no isolation of files and network, the engine may do what its user may: {no_sandbox}")
    if os.geteuid() != 0:
        notes.append("engines run as LlamaMan's own user")
        if user:
            notes.append("LLAMA_SERVER_USER is ignored, since only root can change the user")
    elif user is None:
        notes.append("engines run as root; set LLAMA_SERVER_USER to an account made for them")
    if "memory" not in limited:
        notes.append(
            "no memory ceiling, an engine may take all of this machine's memory: no control group can be made"
        )
    if not os.path.exists(f"/proc/{os.getpid()}/oom_score_adj"):
        notes.append("the kernel cannot be told to sacrifice engines first when memory runs out")
    return tuple(notes)
