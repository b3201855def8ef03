"""The models on disk and their presets: what routes, dialects and the planner ask.

Reads come from one immutable snapshot and never touch the disk, so the event loop may make them;
:meth:`Library.rescan` and :meth:`Library.refresh` do the walking and belong on a thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from llamaman.core.config import Config
from llamaman.core.extra_args import parse_extra_args
from llamaman.core.extra_args_table import PATH_FLAGS
from llamaman.core.launch import ModelFacts
from llamaman.core.model_names import find_name, key_of, known_names
from llamaman.core.store import Store
from llamaman.errors import InvalidField, NotFound
from llamaman.library import fit
from llamaman.library.gguf import Header
from llamaman.library.header_reader import HeaderReader
from llamaman.library.presets import Presets
from llamaman.library.scan import NOTHING, Found, Scan, has_unread, scan, unchanged, with_details
from llamaman.records import ModelView

#: Flags whose file is a model that runs beside the model.
DRAFT_FLAGS = frozenset({"-md", "--model-draft", "--spec-draft-model"})

#: Seconds until files that could not be read are tried again.
RETRY_S = 60.0

_log = logging.getLogger(__name__)
_RANK = 4  # a pooling type of GGUF: the model scores documents


class Publisher(Protocol):
    """The part of the event bus that is used here."""

    def publish(
        self, topic: str, kind: str, data: Mapping[str, Any], *, actor: str, reason: str
    ) -> object: ...


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A scan and what the presets say of its models' names and projectors.

    :ivar known: what stands for one model -> its name; see :func:`known_names`.
    """

    scan: Scan
    models: tuple[ModelView, ...]
    by_name: Mapping[str, Found]
    known: Mapping[str, str]
    by_path: Mapping[Path, Found]
    runnable: tuple[str, ...]
    by_file_name: Mapping[str, tuple[Path, ...]]
    sizes: Mapping[Path, int]
    bearing: Mapping[str, Any]


class Library:
    """Models and presets. Thread-safe. Empty until the first :meth:`rescan`."""

    def __init__(
        self,
        config: Config,
        store: Store,
        *,
        events: Publisher | None = None,
        allow_unlisted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folders = config.models_dirs
        self._events = events
        self._scanning = threading.Lock()
        self._changing = threading.Lock()  # for whoever makes a new snapshot
        self._snapshot = _snapshot(NOTHING, self._folders, {})
        self._scanned = False
        self._tried = 0.0
        self._presets = Presets(store, allow_unlisted=allow_unlisted, model_file=self.model_file)

    # --- scanning ------------------------------------------------------------------------------------

    def rescan(self) -> tuple[ModelView, ...]:
        """Walk the model folders now and return the new models. Blocks."""
        with self._scanning:
            before = self._snapshot
            with HeaderReader() as reader:
                result = scan(self._folders, before.scan, reader.read)
            for problem in sorted(set(result.problems) - set(before.scan.problems)):
                _log.warning("model folders: %s", problem)
            with self._changing:
                after = self._snapshot = _snapshot(result, self._folders, self._presets.all())
            self._scanned = True
            self._tried = time.monotonic()
        if self._events is not None and after.models != before.models:
            data = {
                "added": sorted(after.by_name.keys() - before.by_name.keys()),
                "removed": sorted(before.by_name.keys() - after.by_name.keys()),
            }
            self._events.publish(
                "models", "changed", data, actor="library", reason="files below MODELS_DIR changed"
            )
        return after.models

    def refresh(self) -> bool:
        """Rescan only if a folder or file changed since the last scan; True if it did. Blocks shortly.

        Files that could not be read for a while (stuck storage) are tried again now and then.
        """
        rest = self._tried + RETRY_S > time.monotonic()
        if self._scanned and unchanged(self._snapshot.scan) and (rest or not has_unread(self._snapshot.scan)):
            return False
        self.rescan()
        return True

    @property
    def problems(self) -> tuple[str, ...]:
        """What the last scan could not take, in words; holds paths."""
        return self._snapshot.scan.problems

    # --- models --------------------------------------------------------------------------------------

    def models(self) -> tuple[ModelView, ...]:
        """All models of the last scan, by name."""
        return self._snapshot.models

    def find(self, name: str) -> ModelView:
        """The model that a client's name means; see :func:`llamaman.core.model_names.find_name`.

        :raises ModelNotFound: with the candidates if the name is ambiguous.
        """
        snapshot = self._snapshot
        found = snapshot.by_name.get(name)
        if found is not None and found.view.runnable:  # the common case, on every request
            return found.view
        return snapshot.by_name[find_name(name, snapshot.known, snapshot.runnable)].view

    def by_path(self, path: Path) -> ModelView:
        """The model of a scanned file (any shard of a set) or HuggingFace folder.

        :raises NotFound: it is none of them.
        """
        return self._found(path).view

    def reason(self, path: Path) -> str | None:
        """Why a scanned model cannot run, or None if it can.

        :raises NotFound: as :meth:`by_path`.
        """
        return self._found(path).reason

    def header(self, path: Path) -> Header | None:
        """What the header of a scanned model says; None if it is broken or there is none.

        :raises NotFound: as :meth:`by_path`.
        """
        header = self._found(path).header
        return header if isinstance(header, Header) else None

    def projector(self, path: Path) -> Path | None:
        """The projector (mmproj) of a scanned model: its preset's, else the one that belongs to it by name, or None.

        :raises NotFound: as :meth:`by_path`.
        """
        return self._found(path).projector

    def facts(self, path: Path) -> ModelFacts:
        """What a launch must know of a model; all unknown for a path that was not scanned."""
        found = self._snapshot.by_path.get(path)
        if found is None or not isinstance(found.header, Header):
            return ModelFacts()
        header = found.header
        return ModelFacts(header.nextn_layers, header.context_length, reranks=header.pooling_type == _RANK)

    def memory_estimate(self, path: Path, options: Mapping[str, Any]) -> int | None:
        """Bytes that a launch of a scanned model takes with all its files; None where that cannot be told.

        :param options: launch options as resolved; absent ones have their defaults.
        """
        snapshot = self._snapshot
        try:
            extra = parse_extra_args(
                options.get("extra_args") or "", allow_unlisted=True, is_model_file=self.model_file
            )
        except InvalidField:  # such a launch is refused
            return None
        run = fit.run_of(options, extra)
        parts = [_needs(snapshot, path, run)]
        projector = options.get("mmproj") and self.model_file(options["mmproj"])
        if options.get("mmproj"):
            parts.append(snapshot.sizes.get(projector) if projector else None)
        for name, value in pairwise(extra):
            if name in DRAFT_FLAGS:
                parts.append(_needs(snapshot, Path(value), fit.draft_run(run, extra)))
            elif name in PATH_FLAGS:
                scaled = PATH_FLAGS[name]
                files = (part.rpartition(":")[0] if scaled else part for part in value.split(","))
                parts += (snapshot.sizes.get(Path(file)) for file in files)
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def model_file(self, text: str) -> Path | None:
        """The scanned GGUF file (projector, adapter, draft model ...) that a user's text names, or None.

        Takes an absolute path, a path relative to a model folder, or a file name that is there only once.
        """
        snapshot = self._snapshot
        return _model_file(text, self._folders, snapshot.scan.files, snapshot.by_file_name)

    def _found(self, path: Path) -> Found:
        found = self._snapshot.by_path.get(path)
        if found is None:
            raise NotFound(
                f"'{path}' is not a model below MODELS_DIR; check the path, or rescan if it is new"
            )
        return found

    # --- presets -------------------------------------------------------------------------------------

    def preset(self, model_path: Path) -> dict[str, Any] | None:
        """The preset of a model file, or None."""
        return self._presets.get(model_path)

    def presets(self) -> dict[str, dict[str, Any]]:
        """All presets by model path."""
        return self._presets.all()

    def put_preset(
        self, model_path: Path, values: Mapping[str, Any], actor: str, *, options: bool = True
    ) -> dict[str, Any]:
        """Validate and store a preset (launch options, ``favorite``, ``note``, ``aliases``) in place of an earlier.

        :param options: whether its launch options were meant, which then count for what runs, too.
        :raises InvalidField: names the field; an alias that is a name of another model already names that model.
        """
        with self._changing:
            self._refuse_taken(model_path, values.get("aliases"))
            preset = self._presets.put(model_path, values)
            self._take_in_presets()
        self._tell(model_path, "saved" if options else "noted", actor)
        return preset

    def delete_preset(self, model_path: Path, actor: str) -> bool:
        """Delete a preset; False if there was none."""
        with self._changing:
            deleted = self._presets.delete(model_path)
            self._take_in_presets()
        if deleted:
            self._tell(model_path, "deleted", actor)
        return deleted

    def refresh_presets(self) -> None:
        """Take in what other managers on the same store changed. Blocks."""
        with self._changing:
            self._presets.refresh()
            self._take_in_presets()

    def _take_in_presets(self) -> None:
        before, presets = self._snapshot, self._presets.all()
        if _bearing(presets) != before.bearing:
            self._snapshot = _snapshot(before.scan, self._folders, presets)

    def _refuse_taken(self, model_path: Path, aliases: object) -> None:
        """Refuse aliases that already stand for a model; one that is gone may come back and keeps its own."""
        if not isinstance(aliases, list | tuple):
            return  # the preset's check says what is wrong with them
        taken = {key_of(model.name): f"the name of model '{model.name}'" for model in self._snapshot.models}
        for path, preset in self._presets.all().items():
            if path != str(model_path):
                whose = f"an alias of model '{self._name_of(Path(path))}'"
                taken |= {key_of(alias): whose for alias in preset.get("aliases", ())}
        for alias in aliases:
            if isinstance(alias, str) and key_of(alias) in taken:
                raise InvalidField("aliases", f"aliases: '{alias}' is already {taken[key_of(alias)]}")

    def _name_of(self, model_path: Path) -> str:
        """Of a model, also of one that is gone."""
        try:
            return self.by_path(model_path).name
        except NotFound:  # a preset outlives its file, for a model that is deleted and downloaded again
            return model_path.stem.lower()

    def _tell(self, model_path: Path, what: str, actor: str) -> None:
        if self._events is None:
            return
        data = {"model": self._name_of(model_path)}
        self._events.publish("presets", what, data, actor=actor, reason=f"the preset was {what}")


def _needs(snapshot: _Snapshot, path: Path, run: fit.Run) -> int | None:
    found = snapshot.by_path.get(path)
    if found is None or not isinstance(found.header, Header):
        return None
    return fit.estimate(found.header, found.view.size, run)


def _model_file(
    text: str, folders: Sequence[Path], files: Collection[Path], by_file_name: Mapping[str, tuple[Path, ...]]
) -> Path | None:
    if os.path.isabs(text):
        candidates = [Path(os.path.normpath(text))]
    else:
        candidates = [Path(os.path.normpath(folder / text)) for folder in folders]
    for path in candidates:
        if path in files:
            return path
    named = by_file_name.get(text, ())
    return named[0] if len(named) == 1 else None


def _bearing(presets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What presets say that bears on how models are listed."""
    return {
        path: said
        for path, preset in presets.items()
        if any(said := (preset.get("aliases"), preset.get("mmproj"), preset.get("embedding_model")))
    }


def _snapshot(result: Scan, folders: Sequence[Path], presets: Mapping[str, Mapping[str, Any]]) -> _Snapshot:
    by_file_name: dict[str, tuple[Path, ...]] = {}
    for path in result.files:
        by_file_name[path.name] = (*by_file_name.get(path.name, ()), path)
    bearing = _bearing(presets)

    def as_its_preset_has_it(found: Found) -> Found:
        if str(found.view.path) not in bearing:
            return found
        aliases, mmproj, embeds = bearing[str(found.view.path)]
        if aliases:
            found = replace(found, view=replace(found.view, aliases=tuple(aliases)))
        projector = _model_file(mmproj, folders, result.files, by_file_name) if mmproj else None
        if projector is not None:
            found = replace(found, projector=projector)
        return with_details(found, result.projectors, embeds=bool(embeds)) if projector or embeds else found

    models = [as_its_preset_has_it(found) for found in result.found] if bearing else result.found
    views = tuple(found.view for found in models)
    return _Snapshot(
        scan=result,
        models=views,
        by_name={found.view.name: found for found in models},
        known=known_names(views),
        by_path={path: found for found in models for path in found.view.files},
        runnable=tuple(view.name for view in views if view.runnable),
        by_file_name=by_file_name,
        sizes={path: stamp[0] for path, stamp in result.stamps},
        bearing=bearing,
    )
