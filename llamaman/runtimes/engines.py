"""What can run here: llama-server binaries and the embedded engine, and which flags each build knows.

For the process runtime. A binary is asked with ``--help`` and ``--version`` once per build; the answers are
kept in a file, so a restart of the manager asks nothing. A build that cannot be asked is still offered, with
unknown flags and the reason at hand.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamaman.records import Engine

_TIMEOUT_S = 10
_MAX_OUTPUT = 4 << 20

_log = logging.getLogger(__name__)

#: An option line of ``--help`` begins in the first column with its spellings, separated by commas.
_OPTION_LINE = re.compile(r"^(-{1,2}[A-Za-z][\w-]*(?:,\s+-{1,2}[A-Za-z][\w-]*)*)")
#: Still listed, yet fatal when used.
_REMOVED = "the argument has been removed"
_BUILD = re.compile(r"\(build (\d+)")
_OLDER_BUILD = re.compile(r"version: (\d+) \(")


@dataclass(frozen=True, slots=True)
class Probe:
    """What a build said of itself. ``flags`` is None when it could not be asked; ``reason`` then says why."""

    build: str | None
    flags: tuple[str, ...] | None
    reason: str | None = None


def parse_help(text: str) -> frozenset[str]:
    """Every flag spelling that works, from the output of ``llama-server --help``."""
    flags: set[str] = set()
    for line in text.splitlines():
        option = _OPTION_LINE.match(line)
        if option and _REMOVED not in line:
            flags.update(spelling.strip() for spelling in option.group(1).split(","))
    return frozenset(flags)


def parse_version(text: str) -> str | None:
    """The build in the form of llama.cpp's release tags, such as ``b11434``, or None."""
    found = _BUILD.search(text) or _OLDER_BUILD.search(text)
    return f"b{found.group(1)}" if found else None


def find_binary(configured: Path | None) -> Path | None:
    """The llama-server to run: the configured one, else the one on PATH; None if it cannot be executed."""
    if configured is not None:
        return configured if configured.is_file() and os.access(configured, os.X_OK) else None
    found = shutil.which("llama-server")
    return Path(found) if found else None


def embedded_version() -> str | None:
    """The version of the installed ``xllamacpp`` package, found without importing it; None without it."""
    import importlib.metadata
    import importlib.util

    if importlib.util.find_spec("xllamacpp") is None:
        return None
    try:
        return importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        return None


class Probes:
    """The answers of builds, kept in ``<folder>/engines.json``. Safe to use from several threads."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._file = folder / "engines.json"
        self._env = dict(env)
        self._lock = threading.Lock()
        self._answers: dict[str, dict[str, Any]] | None = None

    def engine(self, binary: Path) -> tuple[Engine, str | None]:
        """The engine this binary is, and why its flags are unknown if they are.

        :raises OSError: the file is gone.
        """
        probe = self.probe(binary)
        flags = None if probe.flags is None else frozenset(probe.flags)
        return Engine("llama-server", "binary", str(binary), probe.build, flags), probe.reason

    def probe(self, binary: Path) -> Probe:
        """The kept answer for exactly this file, or a new one.

        :raises OSError: the file is gone.
        """
        real = binary.resolve(strict=True)
        status = real.stat()
        identity = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        with self._lock:  # held while asking, so that two launches at once do not ask twice
            answers = self._load()
            kept = answers.get(str(real))
            if kept is not None and all(kept.get(key) == value for key, value in identity.items()):
                return Probe(
                    kept["build"], None if kept["flags"] is None else tuple(kept["flags"]), kept["reason"]
                )
            probe = self._ask(binary)
            answers[str(real)] = identity | asdict(probe)
            if probe.flags is not None:  # a failure may pass (a loaded machine): ask again after a restart
                self._save(answers)
            return probe

    def known_binaries(self) -> frozenset[str]:
        """The real path of every build that was ever asked here."""
        with self._lock:
            return frozenset(self._load())

    def _ask(self, binary: Path) -> Probe:
        status, text, reason = self._run(binary, "--help")
        flags = parse_help(text)
        if reason is None and (status != 0 or "--model" not in flags):
            reason = f"'{binary.name} --help' ended with exit status {status} and listed {len(flags)} flags"
        _, version, _ = self._run(binary, "--version")
        build = parse_version(version)
        if reason is not None:
            _log.warning("the flags of %s are unknown: %s", binary, reason)
            return Probe(build, None, reason)
        return Probe(build, tuple(sorted(flags)))

    def _run(self, binary: Path, flag: str) -> tuple[int | None, str, str | None]:
        """Exit status, output and why there is none."""
        with tempfile.TemporaryFile() as output:
            try:
                child = subprocess.Popen(
                    [str(binary), flag],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._env,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                return None, "", f"it could not be started: {error.strerror}"
            try:
                status = child.wait(_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, 9)
                child.wait()
                return None, "", f"'{binary.name} {flag}' gave no answer within {_TIMEOUT_S} s"
            output.seek(0)
            return status, output.read(_MAX_OUTPUT).decode(errors="replace"), None

    def _load(self) -> dict[str, dict[str, Any]]:
        if self._answers is None:
            self._answers = {}
            try:
                stored = json.loads(self._file.read_text())
                for path, answer in stored.items():
                    Probe(answer["build"], answer["flags"], answer["reason"])
                    self._answers[path] = answer
            except FileNotFoundError:
                pass
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                # Only a cache: what it held is found out again by asking.
                _log.warning("ignoring %s, which cannot be read: %s", self._file, error)
        return self._answers

    def _save(self, answers: Mapping[str, Mapping[str, Any]]) -> None:
        fresh = self._file.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(answers, indent=1))
            fresh.replace(self._file)
        except OSError as error:
            _log.warning("%s cannot be written, engines will be asked again: %s", self._file, error)
