"""From the events of a pull to "pulling image, 43 %". Pure; read by :mod:`pulls`.

A layer's size is known when its download begins, and only some layers are downloaded at a time. Until then it is taken
to be as large as the others are on average, and the percentage never goes back; it reaches 100 only at the end.
The containerd image store tells no sizes of what is extracted; then there is no percentage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal

Step = Literal["waiting", "downloading", "downloaded", "extracting", "complete", "exists"]
Phase = Literal["pulling", "extracting"]

#: Docker's word for a layer (Podman's are the same) -> what that means.
_STEPS: Final[Mapping[str, Step]] = {
    "Pulling fs layer": "waiting",
    "Waiting": "waiting",
    "Retrying": "waiting",
    "Downloading": "downloading",
    "Verifying Checksum": "downloaded",
    "Download complete": "downloaded",
    "Extracting": "extracting",
    "Pull complete": "complete",
    "Already exists": "exists",
}
#: An image has some ten, and no engine takes more than 127; a hostile manifest may name as many as it likes.
_MOST_LAYERS: Final = 1_000
_ENDS: Final = ("Status: ", "Digest: ")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. ``size``: bytes as they come over the network, None until it is known."""

    step: Step
    size: int | None = None
    downloaded: int = 0
    extracted: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is.

    :ivar percent: of the phase; None as long as nothing can be said.
    :ivar ended: the daemon said that it is through.
    """

    layers: Mapping[str, Layer] = field(default_factory=lambda: MappingProxyType({}))
    phase: Phase = "pulling"
    percent: int | None = None
    ended: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the stream of events may end here; one that breaks off in the middle leaves layers undone."""
        done = all(layer.step in ("complete", "exists", "downloaded") for layer in self.layers.values())
        return self.ended or done

    @property
    def message(self) -> str:
        """For the reason of an instance that waits."""
        share = "" if self.percent is None else f", {self.percent} %"
        return f"{self.phase} image{share}"


def after(progress: Progress, event: Mapping[str, Any]) -> Progress:
    """The progress after one event; events of another kind change nothing."""
    status = event.get("status")
    if not isinstance(status, str):
        return progress
    if status.startswith(_ENDS):
        return replace(progress, ended=True)
    step = _STEPS.get("Retrying" if status.startswith("Retrying in") else status)
    name = event.get("id")
    if step is None or not isinstance(name, str):
        return progress
    if len(progress.layers) >= _MOST_LAYERS and name not in progress.layers:
        return progress
    layers = {**progress.layers, name: _layer(progress.layers.get(name), step, event.get("progressDetail"))}
    phase = _phase(layers)
    percent = _downloaded(layers) if phase == "pulling" else _extracted(layers)
    if phase == progress.phase and progress.percent is not None:
        percent = max(percent or 0, progress.percent)
    return replace(progress, layers=MappingProxyType(layers), phase=phase, percent=percent)


def _layer(before: Layer | None, step: Step, detail: object) -> Layer:
    layer = replace(before, step=step) if before else Layer(step)
    sizes = detail if isinstance(detail, Mapping) else {}
    current, total = _count(sizes.get("current")), _count(sizes.get("total"))
    if step == "downloading":
        size = total if total is not None else layer.size
        return replace(layer, size=size, downloaded=min(current or 0, size) if size else current or 0)
    if step == "waiting":
        return replace(layer, downloaded=0)
    if step in ("downloaded", "extracting", "complete"):
        # A small layer is here before its size was ever told: it weighs nothing.
        layer = replace(layer, size=layer.size or total or 0, downloaded=layer.size or total or 0)
    if step == "extracting":
        has_share = current is not None and total is not None and "units" not in sizes
        return replace(layer, extracted=current if has_share else layer.extracted)
    if step == "complete":
        return replace(layer, extracted=layer.size)
    return layer


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _phase(layers: Mapping[str, Layer]) -> Phase:
    steps = {layer.step for layer in layers.values()}
    if steps & {"waiting", "downloading"} or not steps & {"extracting", "downloaded", "complete"}:
        return "pulling"
    return "extracting"


def _downloaded(layers: Mapping[str, Layer]) -> int | None:
    wanted = [layer for layer in layers.values() if layer.step != "exists"]
    known = [layer.size for layer in wanted if layer.size is not None]
    if not sum(known):
        return None
    whole = sum(known) / len(known) * len(wanted)
    return min(99, int(100 * sum(layer.downloaded for layer in wanted) / whole))


def _extracted(layers: Mapping[str, Layer]) -> int | None:
    wanted = [layer for layer in layers.values() if layer.step != "exists"]
    whole = sum(layer.size or 0 for layer in wanted)
    running = [layer for layer in wanted if layer.step == "extracting"]
    if not whole or any(layer.extracted is None for layer in running):
        return None
    return min(99, int(100 * sum(layer.extracted or 0 for layer in wanted) / whole))
