"""Functions over litellm for tests in another process; see ``foreign_env.ForeignClient``."""

from __future__ import annotations

import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it fetches a price list from the internet otherwise
import litellm

URL, KEY = os.environ["CLIENT_URL"], os.environ["CLIENT_KEY"]
litellm.telemetry = False
litellm.suppress_debug_info = True


def _where(model: str) -> dict[str, Any]:
    openai_style = model.startswith("openai/")
    return {
        "model": model,
        "api_base": f"{URL}/v1" if openai_style else URL,
        "api_key": KEY,
        "num_retries": 0,
    }


def complete(model: str, **fields: Any) -> dict[str, Any]:
    """One answer."""
    found: dict[str, Any] = litellm.completion(**{**_where(model), **fields}).model_dump()
    return found


def stream(model: str, **fields: Any) -> list[dict[str, Any]]:
    """All chunks."""
    return [chunk.model_dump() for chunk in litellm.completion(stream=True, **_where(model), **fields)]


def embed(model: str, texts: list[str]) -> dict[str, Any]:
    """Vectors."""
    found: dict[str, Any] = litellm.embedding(input=texts, **_where(model)).model_dump()
    return found


def info(model: str) -> dict[str, Any]:
    """What it finds out about a model."""
    litellm.api_base = URL
    os.environ["OLLAMA_API_BASE"], os.environ["OLLAMA_API_KEY"] = URL, KEY
    return dict(litellm.get_model_info(model))
