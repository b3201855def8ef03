"""Finding plugins: read metadata, decide, and only then import. A broken plugin is a line in a list.

Reads the entry point group ``llamaman.plugins`` with ``importlib.metadata``; nothing of a plugin runs before
it is known to be wanted and to fit. Each way to fail has its own handling with the reason beside it.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from llamaman.core.hooks import Hooks
from llamaman.errors import PluginError
from llamaman.records import PluginRecord
from llamaman.version import __version__

log = logging.getLogger("llamaman.plugins")

GROUP = "llamaman.plugins"


class Distribution(Protocol):
    """The part of ``importlib.metadata.Distribution`` that is used here."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def requires(self) -> list[str] | None: ...


class EntryPoint(Protocol):
    """The part of ``importlib.metadata.EntryPoint`` that is used here; tests may bring their own."""

    @property
    def name(self) -> str: ...
    @property
    def dist(self) -> Any: ...
    def load(self) -> Any: ...


class _Refused(Exception):
    """A plugin that is not loaded, with the state and the reason of its record."""

    def __init__(self, state: Literal["disabled", "incompatible", "broken"], reason: str) -> None:
        super().__init__(reason)
        self.state = state


def installed(group: str = GROUP) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Every entry point of the group that this interpreter can see."""
    return tuple(importlib.metadata.entry_points(group=group))


def discover(
    hooks: Hooks,
    *,
    entry_points: Iterable[EntryPoint] | None = None,
    disabled: frozenset[str] = frozenset(),
    only: frozenset[str] | None = None,
    strict: bool = False,
    version: str = __version__,
) -> tuple[PluginRecord, ...]:
    """Load and register what is wanted; return a record of everything that was found, sorted by name.

    :param entry_points: given by tests, which must not load what happens to be installed; None reads it.
    :param disabled: names that are never imported (LLAMAMAN_PLUGINS_DISABLED).
    :param only: if given, no other name is imported (LLAMAMAN_PLUGINS).
    :param strict: raise at the first plugin that is broken or incompatible (LLAMAMAN_STRICT).
    :raises PluginError: only when strict.
    """
    by_name = _by_name(installed() if entry_points is None else entry_points)
    for name in sorted((disabled | (only or frozenset())) - by_name.keys()):
        log.warning("a plugin list in the environment names '%s', which is not installed", name)
    records = tuple(
        _load(name, candidates, hooks, disabled, only, version)
        for name, candidates in sorted(by_name.items())
    )
    for record in records:
        if record.state in ("broken", "incompatible"):
            if strict:
                raise PluginError(record.name, f"{record.state}: {record.reason}")
            log.error("plugin '%s' is %s: %s", record.name, record.state, record.reason)
    return records


def with_failures(records: Iterable[PluginRecord], broken: Mapping[str, str]) -> tuple[PluginRecord, ...]:
    """Records with what failed after loading (``Hooks.broken``): those plugins are shown as broken."""
    return tuple(
        replace(record, state="broken", reason=broken[record.name]) if record.name in broken else record
        for record in records
    )


def _by_name(entry_points: Iterable[EntryPoint]) -> dict[str, list[EntryPoint]]:
    by_name: dict[str, list[EntryPoint]] = {}
    for entry_point in entry_points:
        candidates = by_name.setdefault(entry_point.name, [])
        # The same distribution twice on the path (a checkout and its editable install) is one plugin.
        if all(_dist_name(entry_point) != _dist_name(other) for other in candidates):
            candidates.append(entry_point)
    return by_name


def _load(
    name: str,
    candidates: Sequence[EntryPoint],
    hooks: Hooks,
    disabled: frozenset[str],
    only: frozenset[str] | None,
    version: str,
) -> PluginRecord:
    dist: Distribution | None = candidates[0].dist
    record = PluginRecord(name, dist.name if dist else None, dist.version if dist else None, "active")
    try:
        _check_wanted(name, disabled, only)
        _check_unique(candidates)
        _check_compatible(dist, version)
        return replace(record, hooks=_import_and_register(name, candidates[0], hooks))
    except _Refused as refusal:
        return replace(record, state=refusal.state, reason=str(refusal))


def _check_wanted(name: str, disabled: frozenset[str], only: frozenset[str] | None) -> None:
    if name in disabled:
        raise _Refused("disabled", "named in LLAMAMAN_PLUGINS_DISABLED")
    if only is not None and name not in only:
        raise _Refused("disabled", "not named in LLAMAMAN_PLUGINS")


def _check_unique(candidates: Sequence[EntryPoint]) -> None:
    if len(candidates) > 1:
        names = " and ".join(sorted(_dist_name(candidate) for candidate in candidates))
        raise _Refused("broken", f"claimed by {names}: uninstall one of them")


def _check_compatible(dist: Distribution | None, version: str) -> None:
    for requirement in _requirements_on_us(dist):
        if not requirement.specifier.contains(version, prereleases=True):
            raise _Refused("incompatible", f"it needs {requirement}, and this is llamaman {version}")


def _requirements_on_us(dist: Distribution | None) -> Iterator[Requirement]:
    for line in (dist.requires if dist else None) or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise _Refused("broken", f"its metadata has an unreadable requirement: {line!r}") from error
        ours = canonicalize_name(requirement.name) == "llamaman"
        if ours and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            yield requirement


def _import_and_register(name: str, entry_point: EntryPoint, hooks: Hooks) -> tuple[str, ...]:
    try:
        return hooks.register(name, entry_point.load())
    except PluginError as error:
        # It was imported and is not as a plugin must be; nothing of it is registered.
        raise _Refused("broken", error.reason) from error
    except ModuleNotFoundError as error:
        # The usual case of a plugin whose library is not there: the name is enough, a traceback is noise.
        raise _Refused("broken", f"import failed: no module named '{error.name}'") from error
    except (Exception, SystemExit) as error:  # import runs any code, and some of it calls sys.exit
        log.debug("plugin '%s' failed at import", name, exc_info=True)
        raise _Refused("broken", f"import failed: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0][:200]


def _dist_name(entry_point: EntryPoint) -> str:
    dist: Distribution | None = entry_point.dist
    return str(canonicalize_name(dist.name)) if dist else "an unknown distribution"
