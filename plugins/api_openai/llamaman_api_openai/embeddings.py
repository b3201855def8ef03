"""Embeddings: llama-server knows no ``dimensions``, so vectors are shortened here. Pure."""

from __future__ import annotations

import json
from array import array
from base64 import b64encode
from math import sqrt
from sys import byteorder
from typing import Any

from llamaman import InvalidField, InvalidRequest


def dimensions(body: dict[str, Any]) -> int | None:
    """How long the vectors shall be, or None for as long as the model makes them."""
    value = body.get("dimensions")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 20:
        raise InvalidField("dimensions", "dimensions must be a whole number of at least 1")
    return value


def shortened(answer: bytes, length: int, encoding: str) -> bytes:
    """The engine's answer (``float``) with vectors of that length, their norm 1 again.

    :param encoding: ``float`` or ``base64`` (little-endian 32-bit floats).
    :raises InvalidRequest: the vectors are shorter than that.
    """
    body = json.loads(answer)
    for entry in body["data"]:
        vector = entry["embedding"]
        if len(vector) < length:
            raise InvalidRequest(
                f"dimensions is {length}, and this model's embeddings have only {len(vector)}",
                field="dimensions",
            )
        vector = vector[:length]
        norm = sqrt(sum(value * value for value in vector)) or 1.0
        vector = [value / norm for value in vector]
        entry["embedding"] = _packed(vector) if encoding == "base64" else vector
    return json.dumps(body).encode()


def _packed(vector: list[float]) -> str:
    values = array("f", vector)
    if byteorder == "big":
        values.byteswap()
    return b64encode(values.tobytes()).decode()
