"""What the kernel and the gateway ask about models; ``llamaman.library`` answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from llamaman.core.launch import ModelFacts
from llamaman.records import ModelView


class Library(Protocol):
    """Snapshots in memory: every method but ``rescan`` and ``facts`` may be called on the event loop."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What the last scan could not read, in sentences."""

    def models(self) -> tuple[ModelView, ...]:
        """All models, as of the last scan."""

    def find(self, name: str) -> ModelView:
        """One by name; raises ModelNotFound."""

    def by_path(self, path: Path) -> ModelView:
        """One by file; raises NotFound."""

    def reason(self, path: Path) -> str | None:
        """Why a model cannot run, or None if it can."""

    def preset(self, model_path: Path) -> Mapping[str, Any] | None:
        """Its saved launch options, or None."""

    def projector(self, path: Path) -> Path | None:
        """The projector (mmproj) that belongs to a scanned model, or None."""

    def facts(self, path: Path) -> ModelFacts:
        """What its header says. May read the file."""

    def memory_estimate(self, path: Path, options: Mapping[str, Any]) -> int | None:
        """Bytes that a launch with these resolved options takes; None where that cannot be told."""

    def model_file(self, text: str) -> Path | None:
        """The scanned file that a path names, or None."""

    def rescan(self) -> object:
        """Read the folders again."""

    def refresh(self) -> bool:
        """Read again what has changed; whether anything had."""
