"""Where engines are processes: whether there is one that can run a model, found out by running it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llamaman.core.config import Config
from llamaman.doctor.finding import Finding, fail, ok, warn
from llamaman.errors import LaunchError
from llamaman.runtimes import limits
from llamaman.runtimes.engines import embedded_version, find_binary, parse_version
from llamaman.runtimes.spawn import find_user

CHECK = "engine"
_ANSWER_S = 20.0
_OUTPUT_BYTES = 4096
_INSTALL = (
    "set LLAMA_SERVER_BIN to a llama-server program (github.com/ggml-org/llama.cpp/releases), "
    "or install the embedded engine: pip install 'llamaman[embedded]'"
)


def check_engine(config: Config) -> list[Finding]:
    """Every engine is asked for its version, as a child process with a clean environment."""
    found = []
    binary = find_binary(config.llama_server_bin)
    if binary is not None:
        found.append(_binary(binary))
    if (version := embedded_version()) is not None:
        found.append(_embedded(version, best=binary is None))
    if not found:
        found.append(
            fail(CHECK, "there is no llama-server and no embedded engine, so no model can run", _INSTALL)
        )
    return found + _account(config.llama_server_user)


def check_limits() -> list[Finding]:
    """Whether a memory limit in a launch would hold."""
    missing = {"memory", "cpus"} - limits.enforceable()
    if not missing:
        return [ok("limits", "limits of memory and CPU for engines are enforced (control groups)")]
    what = (
        f"limits of {' and '.join(sorted(missing))} cannot be enforced on engines: no control group is ours"
    )
    cure = "run LlamaMan as a systemd service with Delegate=yes, or leave those limits blank"
    return [warn("limits", what, cure)]


def _binary(binary: Path) -> Finding:
    status, text = _run([str(binary), "--version"])
    build = parse_version(text)
    if status == 0:
        return ok(CHECK, f"{binary} runs ({build or 'it names no build'})")
    what = f"{binary} does not run: {_ending(status, text)}"
    return fail(
        CHECK, what, "use a llama-server that is built for this machine, with its libraries beside it"
    )


def _embedded(version: str, *, best: bool) -> Finding:
    status, text = _run([sys.executable, "-c", "import xllamacpp"])
    if status == 0:
        return ok(CHECK, f"the embedded engine can be loaded (xllamacpp {version})")
    what = f"the embedded engine (xllamacpp {version}) cannot be loaded: {_ending(status, text)}"
    cure = "install it anew for this Python: pip install --force-reinstall xllamacpp"
    return fail(CHECK, what, cure) if best else warn(CHECK, what, cure)


def _account(name: str | None) -> list[Finding]:
    if name is None:
        return []
    try:
        find_user(name)
    except LaunchError as error:
        return [fail(CHECK, error.message, f"create it: useradd --system --no-create-home {name}")]
    return []


def _run(command: Sequence[str]) -> tuple[int | None, str]:
    """Exit status and the end of what it said; None when it did not start or did not end."""
    # A file and not a pipe: a child of the child would keep a pipe open.
    with tempfile.TemporaryFile() as output:
        try:
            status = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": "/nonexistent"},
                cwd="/",
                timeout=_ANSWER_S,
                check=False,
            ).returncode
        except OSError as error:
            return None, error.strerror or str(error)
        except subprocess.TimeoutExpired:
            return None, f"it gave no answer within {_ANSWER_S:.0f} s"
        output.seek(max(0, output.seek(0, os.SEEK_END) - _OUTPUT_BYTES))
        return status, output.read().decode(errors="replace")


def _ending(status: int | None, text: str) -> str:
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
    if status is None:
        return last
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return f"{how}, {last[:200]}"
