"""What was found out about images, kept in ``<folder>/images.json``. Written by :mod:`images` alone.

Only a cache, and when we pulled what: a file that cannot be read costs asking again, one that cannot be written a
warning. Safe to use from several threads.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from llamaman.runtimes.engines import Probe

#: Answers of builds that are kept; the oldest goes first.
_LONGEST: Final = 100

log = logging.getLogger(__name__)


class ImageRecords:
    """See the module's docstring."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "images.json"
        self._lock = threading.Lock()
        self._probes: dict[str, Probe] = {}
        self._pulled: dict[str, float] = {}
        self._read()

    def probe(self, image_id: str) -> Probe | None:
        """The answer of this build, if it was asked."""
        with self._lock:
            return self._probes.get(image_id)

    def keep_probe(self, image_id: str, probe: Probe) -> None:
        """Keep an answer. One that did not come is kept in memory alone: after a restart it may."""
        with self._lock:
            self._probes.pop(image_id, None)
            self._probes[image_id] = probe
            while len(self._probes) > _LONGEST:
                del self._probes[next(iter(self._probes))]
            if probe.flags is not None:
                self._write()

    def pulled(self) -> Mapping[str, float]:
        """Canonical name -> when we pulled it last, in epoch seconds."""
        with self._lock:
            return dict(self._pulled)

    def note_pull(self, canonical: str, at: float) -> None:
        """We pulled it."""
        with self._lock:
            self._pulled[canonical] = at
            self._write()

    def forget_pull(self, canonical: str) -> None:
        """It was deleted."""
        with self._lock:
            if self._pulled.pop(canonical, None) is not None:
                self._write()

    def _read(self) -> None:
        try:
            stored: Any = json.loads(self._file.read_text())
            for image_id, answer in stored["probes"].items():
                self._probes[str(image_id)] = Probe(answer["build"], tuple(answer["flags"]), answer["reason"])
            self._pulled = {str(name): float(at) for name, at in stored["pulled"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("ignoring %s, which cannot be read: %s", self._file, error)
            self._probes, self._pulled = {}, {}

    def _write(self) -> None:
        """Called with the lock held."""
        probes = {key: asdict(probe) for key, probe in self._probes.items() if probe.flags is not None}
        fresh = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.write_text(json.dumps({"probes": probes, "pulled": self._pulled}, indent=1))
            fresh.replace(self._file)
        except OSError as error:
            log.warning("%s cannot be written, images will be asked again: %s", self._file, error)
