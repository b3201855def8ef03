"""The Ollama API: generate, chat, embeddings and descriptions of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamaman import hookimpl

if TYPE_CHECKING:
    from llamaman import Dialect, PluginKernel


@hookimpl
def route_register(kernel: PluginKernel) -> Sequence[Dialect]:
    """Serve the Ollama endpoints."""
    from llamaman_api_ollama.dialect import Ollama

    return (Ollama(),)
