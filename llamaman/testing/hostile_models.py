"""Model files that mean harm, for tests of what must hold against them. For test authors, ours and plugins'.

Start them under a memory limit or a guard only: they take all the memory that they can get.
"""

from __future__ import annotations

from pathlib import Path

from llamaman.testing.tiny_model import write_tiny_model

#: An engine runs the template once while it loads the model, and keeps what it writes and loops over.
_ENDLESS = (
    "{% for outer in range(1000) %}{% for inner in range(100000000) %}x{% endfor %}{% endfor %}"
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
)


def write_memory_bomb(path: Path) -> Path:
    """Write a model of some 250 KB whose chat template never ends and takes hundreds of MB a second.

    llama-server b11434 has 1 GB within two seconds of its start, and goes on; it answers /health with 503 and
    writes nothing to its log. The header of the file is in order.

    :returns: ``path``.
    """
    return write_tiny_model(path, chat_template=_ENDLESS)
