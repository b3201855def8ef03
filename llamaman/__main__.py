"""``python -m llamaman`` is ``llamaman``."""

from __future__ import annotations

import sys

from llamaman.cli import main

if __name__ == "__main__":
    sys.exit(main())
