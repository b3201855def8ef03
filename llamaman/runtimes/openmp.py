"""Where the embedded engine finds GNU's OpenMP library on a machine that has none, for the process runtime.

xllamacpp's Linux wheels link to libgomp.so.1 and do not carry it. Where the system lacks it, the repository's
`make` targets put a copy into the virtual environment; a system's own copy is never shadowed, because nothing
is put there when one exists.
"""

from __future__ import annotations

import sys
from pathlib import Path


def engine_environment(prefix: Path | None = None) -> dict[str, str]:
    """Variables to add to the embedded engine's environment; empty where the system's own library serves.

    The loader reads LD_LIBRARY_PATH only when a process starts, so this has to be set by whoever starts it.

    :param prefix: the virtual environment; by default the one that runs this.
    """
    folder = (prefix or Path(sys.prefix)) / "lib" / "llamaman-openmp"
    return {"LD_LIBRARY_PATH": str(folder)} if (folder / "libgomp.so.1").is_file() else {}
