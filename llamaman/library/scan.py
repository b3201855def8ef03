"""What lies below the model folders. Read by `library.py`.

A scan lists GGUF models (a set of shards is one model; projectors, adapters and later shards are files but not
models) and HuggingFace folders without GGUF files, which llama.cpp cannot run. It reads no more of a file than
its header, and none whose size and time are those of an earlier scan. The texts in headers are kept up to a bound
for all files together, so that a folder of hostile files cannot fill the memory.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llamaman.core.config_values import has_controls
from llamaman.library.details import Evidence, describe, projector_for
from llamaman.library.details import Stamp as FileStamp
from llamaman.library.fit import ENCODERS
from llamaman.library.gguf import BrokenHeader, Header
from llamaman.library.names import file_stem, quant_of, split_shard, unique_names
from llamaman.records import ModelView

MAX_ENTRIES = 200_000
MAX_DEPTH = 16
#: Characters of all metadata and templates; about a thousand times what one model has.
MAX_TEXT = 32 << 20

_NOT_MODELS = frozenset({"adapter", "imatrix"})

Stamp = tuple[int, int]  #: size and modification time in nanoseconds
Headers = dict[tuple[Path, Stamp], Header | BrokenHeader]
ReadHeader = Callable[[Path], Header | BrokenHeader]


@dataclass(frozen=True, slots=True)
class Found:
    """One model of a scan.

    :ivar reason: why it cannot run, or None.
    :ivar evidence: what its details are made from, None if it has no header.
    :ivar projector: the projector that belongs to it, by name.
    """

    view: ModelView
    header: Header | BrokenHeader | None
    reason: str | None
    evidence: Evidence | None = None
    projector: Path | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """Everything one scan saw.

    :ivar files: every GGUF file, models or not.
    :ivar projectors: the headers of projectors.
    :ivar stamps: what must be unchanged for the scan to still hold (see :func:`unchanged`).
    :ivar problems: folders and files that could not be taken, in words.
    """

    found: tuple[Found, ...]
    files: frozenset[Path]
    headers: Headers
    stamps: tuple[tuple[Path, Stamp], ...]
    problems: tuple[str, ...]
    projectors: Mapping[Path, tuple[Header, FileStamp]] = field(default_factory=dict)


#: The scan before the first one.
NOTHING = Scan((), frozenset(), {}, (), ())


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    stamp: Stamp
    modified: float


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    ggufs: tuple[_File, ...]
    has_config: bool


def scan(folders: Sequence[Path], before: Scan, read_header: ReadHeader) -> Scan:
    """Walk the model folders.

    :param before: an earlier scan, or :data:`NOTHING`.
    """
    described = {found.view.path: found for found in before.found}
    walk = _Walk()
    visited: list[_Folder] = []
    for root in folders:
        visited += sorted(walk.visit(root), key=lambda item: (len(item.path.parts), item.path))
    headers = _Headers(before.headers, read_header)
    drafts: list[Found] = []
    projectors: dict[Path, tuple[Header, FileStamp]] = {}
    for folder in visited:
        models: list[Found] = []
        here: list[Path] = []
        for group in _groups(folder.ggufs):
            draft = _model(group, headers)
            if isinstance(draft, Found):
                models.append(draft)
            elif draft is not None:
                here.append(group[0].path)
                projectors[group[0].path] = draft, _file_stamp(group[0])
        drafts += _with_projectors(models, here) if here else models
        if folder.has_config and not folder.ggufs and folder.path not in folders:
            drafts.append(_huggingface(folder.path))
    stems = [(_stem(draft.view), draft.view.path.parent) for draft in drafts]
    named = (
        _named(draft, name, described.get(draft.view.path), projectors)
        for draft, name in zip(drafts, unique_names(stems), strict=True)
    )
    return Scan(
        found=tuple(sorted(named, key=lambda item: item.view.name)),
        files=frozenset(file.path for folder in visited for file in folder.ggufs),
        headers=headers.read,
        stamps=(*walk.stamps, *((file.path, file.stamp) for folder in visited for file in folder.ggufs)),
        problems=(*walk.problems, *headers.problems()),
        projectors=projectors,
    )


def _named(
    draft: Found, name: str, before: Found | None, projectors: Mapping[Path, tuple[Header, FileStamp]]
) -> Found:
    """A model with its name and, from an earlier scan that saw the same, its details."""
    same = before is not None and before.view.name == name and before.evidence == draft.evidence
    if same and before is not None and draft.projector is None and before.projector is None:
        return replace(draft, view=replace(draft.view, name=name, details=before.view.details))
    return with_details(replace(draft, view=replace(draft.view, name=name)), projectors)


def with_details(
    found: Found, projectors: Mapping[Path, tuple[Header, FileStamp]], *, embeds: bool = False
) -> Found:
    """A model with what its files promise, its projector's included.

    :param embeds: its preset runs it as an embedding model.
    """
    if found.evidence is None:
        return found
    projector = projectors.get(found.projector) if found.projector else None
    details = describe(found.view.name, found.evidence, *(projector or ()), embeds=embeds)
    return replace(found, view=replace(found.view, details=details))


def unchanged(previous: Scan) -> bool:
    """Whether every folder and file is as the scan saw it; only asks the file system for sizes and times."""
    return all(_stamp(path) == stamp for path, stamp in previous.stamps)


def has_unread(previous: Scan) -> bool:
    """Whether a header could not be read for a reason that may pass."""
    return any(isinstance(header, BrokenHeader) and header.passing for header in previous.headers.values())


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:  # gone or not readable: any stamp of a file that was there differs from this one
        return (-1, -1)
    return (0 if stat.S_ISDIR(status.st_mode) else status.st_size, status.st_mtime_ns)


class _Walk:
    """One walk over all folders; a folder reached twice (through links) is listed once."""

    def __init__(self) -> None:
        self.stamps: list[tuple[Path, Stamp]] = []
        self.problems: list[str] = []
        self._seen: set[tuple[int, int]] = set()
        self._entries = 0

    def visit(self, folder: Path, depth: int = 0) -> Iterator[_Folder]:
        try:
            status = folder.stat()
            self.stamps.append((folder, (0, status.st_mtime_ns)))
            if (status.st_dev, status.st_ino) in self._seen:
                return
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if not self.stamps or self.stamps[-1][0] != folder:
                self.stamps.append((folder, (-1, -1)))
            self.problems.append(f"{folder} cannot be read: {error.strerror}")
            return
        ggufs: list[_File] = []
        below: list[Path] = []
        has_config = False
        for entry in entries:
            self._entries += 1
            if self._entries > MAX_ENTRIES:
                self.problems.append(f"{folder}: more than {MAX_ENTRIES} files; the rest is not listed")
                break
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            try:
                if entry.is_dir():
                    below.append(path)
                elif entry.name.lower().endswith(".gguf") and entry.is_file():
                    ggufs += self._file(path, entry.stat())
                elif entry.name == "config.json":
                    has_config = True
            except OSError as error:
                self.problems.append(f"{path} cannot be read: {error.strerror}")
        yield _Folder(folder, tuple(ggufs), has_config)
        if depth >= MAX_DEPTH and below:
            self.problems.append(f"{folder}: folders more than {MAX_DEPTH} levels deep are not listed")
            return
        for path in below:
            yield from self.visit(path, depth + 1)

    def _file(self, path: Path, status: os.stat_result) -> Iterator[_File]:
        if has_controls(path.name):
            self.problems.append(f"{str(path)!r} has a name that cannot be used; rename it")
            return
        yield _File(path, (status.st_size, status.st_mtime_ns), status.st_mtime)


def _groups(files: Sequence[_File]) -> Iterator[list[_File]]:
    """Single files, and sets of shards in order; the files lie in one folder."""
    sets: dict[tuple[str, int], list[_File]] = defaultdict(list)
    for file in files:
        shard = split_shard(file.path.stem)
        if shard is None:
            yield [file]
        else:
            sets[shard[0], shard[2]].append(file)
    for _, members in sorted(sets.items()):
        yield sorted(members, key=lambda file: file.path.name)


class _Headers:
    """The headers of one scan: those of an earlier one, or read now."""

    def __init__(self, known: Headers, read_header: ReadHeader) -> None:
        self.read: Headers = {}
        self._known = known
        self._read_header = read_header
        self._left = MAX_TEXT
        self._cut = 0

    def of(self, file: _File) -> Header | BrokenHeader:
        key = (file.path, file.stamp)
        header = self._known.get(key)
        if header is None or (isinstance(header, BrokenHeader) and header.passing):
            header = self._read_header(file.path)
        if isinstance(header, Header):
            self._left -= header.text_size
            if self._left < 0 and header.text_size:
                header = header.without_texts()
            self._cut += header.cut
        self.read[key] = header
        return header

    def problems(self) -> tuple[str, ...]:
        if not self._cut:
            return ()
        return (
            f"the headers of all files hold more than {MAX_TEXT >> 20} MiB of text; {self._cut} of them are known "
            "without their chat template and keys",
        )


def _model(group: list[_File], headers: _Headers) -> Found | Header | None:
    """The model in a file or a set of shards, still without its unique name; else a projector's header, or None."""
    first = group[0]
    shard = split_shard(first.path.stem)
    reason = None
    header: Header | BrokenHeader | None = None
    if shard is not None and [split_shard(file.path.stem) for file in group] != [
        (shard[0], number, shard[2]) for number in range(1, shard[2] + 1)
    ]:
        reason = f"{len(group)} of its {shard[2]} files are here; all of them are needed"
    if "mmproj" in first.path.name.lower():
        header = headers.of(first)
        return header if isinstance(header, Header) else None
    if shard is None or shard[1] == 1:  # the other shards hold tensors, but no facts about the model
        header = headers.of(first)
    if isinstance(header, BrokenHeader):
        reason = reason or (header.reason if header.passing else f"its header is broken: {header.reason}")
    good = header if isinstance(header, Header) else None
    if good and (good.architecture == "clip" or good.type == "mmproj"):
        return good
    if good and good.type in _NOT_MODELS:
        return None
    if good and shard is None and good.shards > 1:
        reason = f"it is one of {good.shards} files whose names were changed; give them their names back"
    view = ModelView(
        name="",
        path=first.path,
        size=sum(file.stamp[0] for file in group),
        quant=quant_of(file_stem(first.path)) or (good.quant if good else None),
        modified=max(file.modified for file in group),
        runnable=reason is None,
        embedding=good is not None and _embeds(good),
        context_length=good.context_length if good else None,
        files=tuple(file.path for file in group),
    )
    evidence = None
    if good:
        counts = [good.parameters, *(_parameters(headers.of(file)) for file in group[1:])]
        known = [count for count in counts if count is not None]
        whole = sum(known) if len(known) == len(counts) else None
        evidence = Evidence(good, whole, tuple(_file_stamp(file) for file in group))
    return Found(view, header, reason, evidence)


def _parameters(header: Header | BrokenHeader) -> int | None:
    return header.parameters if isinstance(header, Header) else None


def _file_stamp(file: _File) -> FileStamp:
    return (file.path.name, *file.stamp)


def _with_projectors(models: Sequence[Found], projectors: Sequence[Path]) -> Iterator[Found]:
    paths = [found.view.path for found in models]
    for found in models:
        yield replace(found, projector=projector_for(found.view.path, paths, projectors))


def _embeds(header: Header) -> bool:
    return header.architecture in ENCODERS or (header.pooling_type or 0) > 0


def _huggingface(folder: Path) -> Found:
    size, modified = 0, 0.0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.stat(os.path.join(base, name))
            except OSError:  # removed while we look, or a dangling link; it has no size to add
                continue
            size += status.st_size
            modified = max(modified, status.st_mtime)
    view = ModelView(
        name="",
        path=folder,
        size=size,
        quant=None,
        modified=modified,
        kind="hf",
        runnable=False,
        files=(folder,),
    )
    return Found(view, None, "it is a HuggingFace model without a GGUF file, which is what llama.cpp runs")


def _stem(view: ModelView) -> str:
    return view.path.name if view.kind == "hf" else file_stem(view.path)
