"""The OpenAI API: models, chat completions, completions, responses, embeddings, rerank and transcriptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamaman import hookimpl

if TYPE_CHECKING:
    from llamaman import Dialect, PluginKernel


@hookimpl
def route_register(kernel: PluginKernel) -> Sequence[Dialect]:
    """Serve the OpenAI endpoints."""
    from llamaman_api_openai.dialect import OpenAI

    return (OpenAI(),)
