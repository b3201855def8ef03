"""Which files an engine's container sees, and how its flags name them there.

For the Docker runtime. Each file is mounted alone and read-only below :data:`FOLDER`, never a folder: what lies
beside a model is nobody's business in a container that parses data from strangers. Links are followed, as stores of
models are made of them, so a file must also begin as models do: a link to anything else brings nothing in.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from llamaman.core.extra_args import normalise
from llamaman.core.extra_args_table import FLAGS, PATH_FLAGS
from llamaman.errors import LaunchError
from llamaman.records import LaunchPlan, Mount
from llamaman.runtimes.sandbox import shards

#: Where the files lie in the container.
FOLDER: Final = "/models"

#: flag -> whether each of its files carries a ":SCALE"
_FILE_FLAGS: Final[Mapping[str, bool]] = {**PATH_FLAGS, "--mmproj": False, "-mm": False}

_MAGIC: Final = b"GGUF"

_FLAG = re.compile(r"--?[A-Za-z].*", re.DOTALL)
_SCALE = re.compile(r"-?[0-9]+(\.[0-9]*)?")
_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True, slots=True)
class EngineFile:
    """One file.

    :ivar source: the regular file itself, after all links, as this process sees it.
    :ivar target: its path in the container; it ends in the name that the file was asked for by.
    """

    source: Path
    target: str
    status: os.stat_result


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """All files of one launch; the first is the one that ``--model`` names.

    :ivar flags: the plan's flags with each file's path as it is in the container.
    """

    files: tuple[EngineFile, ...]
    flags: tuple[str, ...]

    @property
    def statuses(self) -> dict[Path, os.stat_result]:
        """Each file with owner and mode, for choosing the account."""
        return {file.source: file.status for file in self.files}

    def mounts(self, host_path: Callable[[Path], str]) -> tuple[Mount, ...]:
        """The mounts that bring the files in.

        :param host_path: a path as this process sees it -> as the daemon's machine sees it.
        """
        return tuple(Mount(host_path(file.source), file.target) for file in self.files)


def model_target(plan: LaunchPlan) -> str:
    """The path of the model's first file in the container."""
    return f"{FOLDER}/{plan.model_path.name}"


def engine_files(plan: LaunchPlan, private: Sequence[Path] = ()) -> EngineFiles:
    """The files of a launch: all parts of the model, and what its flags name.

    A value is read as files where its flag takes files. A flag that is in no table (an administrator allowed
    such flags) may also name an existing ``.gguf`` file. All other values stay as they are.

    :param private: folders with our own data, of which no file is ever mounted.
    :raises LaunchError: a file is missing, is no regular file or may not be mounted.
    """
    found = _Found([folder.resolve() for folder in private])
    parts = shards(plan.model_path)
    for number, part in enumerate(parts, start=1):
        which = "the model's file" if len(parts) == 1 else f"part {number} of {len(parts)} of the model,"
        found.target(part, which)
    flags = tuple(_translated(plan.flags, found))
    return EngineFiles(tuple(found.files.values()), flags)


@dataclass(slots=True)
class _Found:
    """What was found so far, by the path it was asked for."""

    private: Sequence[Path]
    files: dict[Path, EngineFile] = field(default_factory=dict)

    def target(self, path: Path, which: str) -> str:
        if path not in self.files:
            source, status = _regular_file(path, which)
            if any(source.is_relative_to(folder) for folder in self.private):
                raise LaunchError(
                    f"{which} '{path.name}' lies among LlamaMan's own data, which no engine may see; "
                    "move it to the model folder",
                    detail=str(source),
                )
            self.files[path] = EngineFile(source, self._free(path.name), status)
        return self.files[path].target

    def _free(self, name: str) -> str:
        taken = {file.target for file in self.files.values()}
        # One more folder than could be in use, and one more than files could be named like.
        folders = (FOLDER, *(f"{FOLDER}/{number}" for number in range(2, 2 * len(taken) + 3)))
        free = (f"{folder}/{name}" for folder in folders if folder not in taken)
        return next(target for target in free if target not in taken)


def _regular_file(path: Path, which: str) -> tuple[Path, os.stat_result]:
    try:
        source = path.resolve(strict=True)
        status = source.stat()
    except (OSError, RuntimeError) as error:  # the latter for links in a circle
        reason = error.strerror if isinstance(error, OSError) else "its links go in a circle"
        if path.is_symlink():
            raise LaunchError(
                f"{which} '{path.name}' is a link that leads nowhere here ({reason}); the folder it points "
                "to must be visible to LlamaMan under the same path",
                detail=str(path),
            ) from error
        raise LaunchError(
            f"{which} '{path.name}' cannot be found ({reason}); "
            "scan the model folders again or check MODELS_DIR",
            detail=str(path),
        ) from error
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "something else")
        raise LaunchError(
            f"{which} '{path.name}' is {kind}, and only a regular file can be given to an engine; "
            "choose the .gguf file itself",
            detail=str(source),
        )
    _must_be_gguf(path, source, which)
    for text in (path.name, str(source)):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise LaunchError(
                f"{which} {path.name!a} has a path that is not valid UTF-8, which Docker cannot mount; rename it",
                detail=ascii(str(source)),
            ) from None
    return source, status


def _must_be_gguf(path: Path, source: Path, which: str) -> None:
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            begin = os.pread(descriptor, len(_MAGIC), 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LaunchError(
            f"{which} '{path.name}' may not be read ({error.strerror}); give LlamaMan's user the right to read it",
            detail=str(source),
        ) from error
    if begin != _MAGIC:
        raise LaunchError(
            f"{which} '{path.name}' is not a GGUF file, and nothing else is given to an engine; download it again",
            detail=str(source),
        )


def _translated(flags: Iterable[str], found: _Found) -> Iterable[str]:
    current = ""
    for token in flags:
        if _FLAG.fullmatch(token):
            current = normalise(token)
            yield token
        elif current in _FILE_FLAGS:
            yield _value(current, token, found)
        elif current and current not in FLAGS and _is_model(token):
            yield found.target(Path(token), f"the file of {current},")
        else:
            yield token


def _value(flag: str, value: str, found: _Found) -> str:
    """The value of a flag that takes files: one, or several between commas."""
    if not _FILE_FLAGS[flag] and os.path.lexists(value):
        return _file(flag, value, found)  # its name may hold commas and colons
    return ",".join(_file(flag, part, found) for part in value.split(","))


def _file(flag: str, text: str, found: _Found) -> str:
    path, colon, scale = text.rpartition(":")
    if not (colon and _SCALE.fullmatch(scale)) or (not _FILE_FLAGS[flag] and os.path.lexists(text)):
        path, colon, scale = text, "", ""
    if not path.startswith("/"):
        return text
    return f"{found.target(Path(path), f'the file of {flag},')}{colon}{scale}"


def _is_model(text: str) -> bool:
    return text.startswith("/") and text.endswith(".gguf") and "\0" not in text and os.path.isfile(text)
