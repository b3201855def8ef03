"""Proxy sampling overrides: the options of an instance that replace what a client asks for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ALWAYS = ("temperature", "top_k", "top_p", "presence_penalty")
_NOTHING: Mapping[str, Any] = {}


def sampling_overrides(options: Mapping[str, Any], needs: str) -> Mapping[str, Any]:
    """The fields to lay over a request body.

    A repeat penalty of 0 means that it is not forced; the other four are, once overrides are on.

    :param needs: the intent's role; only text generation is overridden.
    """
    if not options.get("proxy_sampling_override_enabled") or needs not in ("chat", "completion"):
        return _NOTHING
    forced = {name: options[f"proxy_sampling_{name}"] for name in _ALWAYS}
    penalty = options.get("proxy_sampling_repeat_penalty") or 0
    if penalty > 0:
        forced["repeat_penalty"] = penalty
    return forced
