"""Gives the embedded engine GNU's OpenMP library where the machine has none. Used by bootstrap_venv.py.

xllamacpp's Linux wheels link to libgomp.so.1 and do not carry it; a minimal Debian or a slim container image
does not have it, and installing it there needs root. Other wheels do carry it: one pinned wheel is fetched,
that single file is taken out of it into `.venv/lib/llamaman-openmp/`, and nothing of the wheel is installed
or run. `llamaman/runtimes/openmp.py` points the engine at that folder.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

DONOR = "pykdtree==1.4.3"
WHEELS = {  # machine: (the donor's wheel for it, its sha256); both as listed by PyPI's simple index
    "x86_64": ("manylinux_2_17_x86_64", "44d2e1b6a3d02b5cf9646bf754931fdacb869cefd328242766e1dc0be909cca1"),
    "aarch64": ("manylinux_2_17_aarch64", "bd3a4454b8f86ce22f7b92b4bc53e309817b0d3602afff8c9a17fde1bd6dd3f0"),
}
LIBRARY = "libgomp.so.1"
Run = Callable[[list[str], str], None]


def folder(venv: Path) -> Path:
    """Where the library lies in `venv`; llamaman/runtimes/openmp.py computes the same from sys.prefix."""
    return venv / "lib" / "llamaman-openmp"


def is_needed(python: Path, venv: Path) -> bool:
    """Whether this is a Linux without libgomp, and none was fetched yet."""
    if sys.platform != "linux" or (folder(venv) / LIBRARY).is_file():
        return False
    probe = f"import ctypes; ctypes.CDLL({LIBRARY!r})"
    return subprocess.run([str(python), "-c", probe], capture_output=True, check=False).returncode != 0


def fetch(python: Path, venv: Path, run: Run) -> None:
    """Put libgomp.so.1 into `venv`. Raises what `run` raises, OSError, or LookupError: none is known."""
    machine = platform.machine()
    if machine not in WHEELS:
        raise LookupError(f"no copy of {LIBRARY} is known for {machine}")
    tag, sha256 = WHEELS[machine]
    with tempfile.TemporaryDirectory() as temporary:
        pinned = Path(temporary) / "donor.txt"
        pinned.write_text(f"{DONOR} --hash=sha256:{sha256}\n", encoding="utf-8")
        target = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--platform", tag]
        command = [str(python), "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", *target]
        run([*command, "--dest", temporary, "-r", str(pinned)], f"fetching {LIBRARY}")
        wheel = next(Path(temporary).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(entry for entry in archive.namelist() if Path(entry).name.startswith("libgomp-"))
            folder(venv).mkdir(parents=True, exist_ok=True)
            partial = folder(venv) / (LIBRARY + ".part")
            with archive.open(name) as source, partial.open("wb") as target_file:
                shutil.copyfileobj(source, target_file)
        partial.rename(folder(venv) / LIBRARY)
