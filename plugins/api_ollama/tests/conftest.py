"""Lets the tests here share a module; it has a name that no other folder's has."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
