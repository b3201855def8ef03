"""The flags that LlamaMan itself gives every llama-server, whatever runs it."""

from __future__ import annotations

from collections.abc import Sequence


def own_flags(known: frozenset[str], given: Sequence[str]) -> list[str]:
    """What LlamaMan itself wants of a server, as far as this build knows it and nobody said otherwise."""
    flags: list[str] = []
    if not {"--ui", "--webui", "--no-ui", "--no-webui"} & set(given):
        flags += next(([flag] for flag in ("--no-ui", "--no-webui") if flag in known), [])
    if "--log-colors" in known and "--log-colors" not in given:
        flags += ["--log-colors", "off"]
    if "--metrics" in known and "--metrics" not in given:
        flags.append("--metrics")
    return flags
