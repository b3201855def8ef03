"""How much memory an engine may take while it loads, so that a hostile model file cannot take all there is. Pure.

A file of a few kilobytes can claim any number of tensors, tokens or heads. Only anonymous memory counts:
mapped weights are file cache, which the machine can drop.
"""

from __future__ import annotations

from dataclasses import dataclass

CHECK_EVERY_S = 1.0

#: Beyond twice the estimate: buffers, libraries and drivers take this much without any model.
SLACK_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Allowance:
    """Bytes that are expected, and bytes beyond which the start is ended."""

    expected: int
    most: int


def allowance(estimate: int | None, file_bytes: int) -> Allowance:
    """What a start may take.

    :param estimate: bytes that weights, cache and buffers are expected to take; None: nobody knows, so that
        ``file_bytes``, the size of the model's files, has to do.
    """
    expected = file_bytes if estimate is None else estimate
    return Allowance(expected, 2 * expected + SLACK_BYTES)


def verdict(taken: int | None, allowed: Allowance) -> str | None:
    """Why a start that has taken so many bytes is to be ended; None while it may go on, or nobody knows."""
    if taken is None or taken <= allowed.most:
        return None
    return (
        f"it took {_size(taken)} of memory while loading, far more than its {_size(allowed.expected)} "
        "estimate: the model file may be hostile or damaged"
    )


def _size(amount: int) -> str:
    return f"{amount / (1 << 30):.1f} GB" if amount >= 1 << 30 else f"{amount / (1 << 20):.0f} MB"
