"""Servers with a bad temper: executables that pass for llama-server until they misbehave.

For test authors who need what the real server will not do on demand. Each executable takes llama-server's
command line including ``--help`` and ``--version``, so it can be given wherever a binary is expected.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Final

_SERVER = Path(__file__).with_name("temper_server.py")

#: kind -> what it does, and the settings it takes (all optional; times in milliseconds).
#: Every kind also takes ``load_ms`` (503 until then), ``first_token_ms``, ``chunk_ms``, ``tokens`` and ``slots``, and
#: ``held_by``: the path of a file while which exists no answer gets further than its first token.
KINDS: Final[dict[str, str]] = {
    "polite": "does what it should; a fast stand-in",
    "never_ready": "answers 503 'Loading model' for ever",
    "dies_loading": "exits while loading: after_ms=50, exit_code=1, lines=[...] for stderr (not a GGUF file)",
    "dies_mid_stream": "kills itself in the middle of an answer: chunks=4, signal='SIGSEGV'",
    "slow": "takes its time: load_ms=300, first_token_ms=500, chunk_ms=50",
    "ignores_sigterm": "answers, but only SIGKILL ends it",
    "hangs": "accepts inference requests and never answers them; /health stays 200",
    "crash_on_request": "kills itself on the nth inference request: nth=1, signal='SIGSEGV'",
    "crash_on_word": "kills itself on a request with a word in it: word='poison', after_ms=0, signal='SIGSEGV'",
}

_DEFAULTS: Final[dict[str, dict[str, object]]] = {
    "slow": {"load_ms": 300, "first_token_ms": 500, "chunk_ms": 50},
}


def write_temper(folder: Path, kind: str, **settings: object) -> Path:
    """Write an executable of that kind into ``folder`` (which must exist) and return its path.

    :param kind: a key of :data:`KINDS`.
    :param settings: what :data:`KINDS` lists for it.
    :raises ValueError: no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"no temper {kind!r}; there are: {', '.join(KINDS)}")
    behaviour = json.dumps({"kind": kind} | _DEFAULTS.get(kind, {}) | settings)
    # -I -S: no site-packages, so that it starts in some 20 ms and nothing of the environment reaches it.
    command = shlex.join([sys.executable, "-I", "-S", str(_SERVER), behaviour])
    path = folder / f"llama-server-{kind}"
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o700)
    return path
