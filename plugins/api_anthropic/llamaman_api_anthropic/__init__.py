"""The Anthropic API: messages and the counting of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamaman import hookimpl

if TYPE_CHECKING:
    from llamaman import Dialect, PluginKernel


@hookimpl
def route_register(kernel: PluginKernel) -> Sequence[Dialect]:
    """Serve the Anthropic endpoints."""
    from llamaman_api_anthropic.dialect import Anthropic

    return (Anthropic(),)
