"""The test harness that LlamaMan ships: tiny models, servers with a bad temper, engines for fixtures.

Importing this package costs nothing; what a test needs is loaded when it is used.
"""

from llamaman.testing.hostile_models import write_memory_bomb
from llamaman.testing.tempers import KINDS, write_temper
from llamaman.testing.tiny_model import write_slow_model, write_tiny_model

__all__ = ["KINDS", "write_memory_bomb", "write_slow_model", "write_temper", "write_tiny_model"]
