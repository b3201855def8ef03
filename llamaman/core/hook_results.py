"""What hook implementations may return: checks of their results, and how patches are put together. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from llamaman.core.store import Store
from llamaman.errors import LaunchError
from llamaman.records import Mount, Patch, Reject, SpecPatch

_T = TypeVar("_T")

#: Returns a result as what it must be, or raises ``TypeError`` saying what it is instead.
Check = Callable[[Any], _T]


@dataclass(frozen=True, slots=True)
class Contribution(Generic[_T]):
    """Something that a plugin declared, with the name of the plugin to credit or to blame."""

    plugin: str
    value: _T


def anything(result: Any) -> None:
    """A notification's result is nobody's business."""


def optional(expected: type[_T]) -> Check[_T | None]:
    def check(result: Any) -> _T | None:
        if result is None or isinstance(result, expected):
            return result
        raise TypeError(f"it must return {expected.__name__} or None, not {type(result).__name__}")

    return check


def many(*expected: type[Any]) -> Check[Sequence[Any]]:
    names = ", ".join(each.__name__ for each in expected)

    def check(result: Any) -> Sequence[Any]:
        if not isinstance(result, (list, tuple)):
            raise TypeError(f"it must return a list of {names}, not {type(result).__name__}")
        for item in result:
            if not isinstance(item, expected):
                raise TypeError(f"it must return a list of {names}, and one item is {type(item).__name__}")
        return result

    return check


def having(*attributes: str) -> Check[Sequence[Any]]:
    def check(result: Any) -> Sequence[Any]:
        if not isinstance(result, (list, tuple)):
            raise TypeError(f"it must return a list, not {type(result).__name__}")
        for item in result:
            missing = [name for name in attributes if not hasattr(item, name)]
            if missing:
                raise TypeError(f"{type(item).__name__} lacks {', '.join(missing)}")
        return result

    return check


def is_store(result: Any) -> Store:
    if isinstance(result, Store):
        return result
    raise TypeError(f"it must return a Store, not {type(result).__name__}")


def patch_or_reject(result: Any) -> Patch | Reject | None:
    if result is None or isinstance(result, Reject):
        return result
    if isinstance(result, Mapping) and all(isinstance(path, str) and path for path in result):
        return result
    raise TypeError(f"it must return a mapping of dotted paths, Reject or None, not {type(result).__name__}")


def error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def patched(body: Mapping[str, Any], patch: Patch) -> Mapping[str, Any]:
    """Return a copy of ``body`` with each dotted path set; objects on the way are made as needed."""
    result = dict(body)
    for path, value in patch.items():
        *parents, last = path.split(".")
        place = result
        for name in parents:
            inner = place.get(name)
            place[name] = dict(inner) if isinstance(inner, Mapping) else {}
            place = place[name]
        place[last] = value
    return result


def united(patches: Iterable[Contribution[SpecPatch]]) -> SpecPatch:
    """Unite additions in calling order; see ``SpecPatch``."""
    image: Contribution[str] | None = None
    env: dict[str, Contribution[str]] = {}
    devices: dict[str, None] = {}
    groups: dict[str, None] = {}
    requests: list[Mapping[str, Any]] = []
    mounts: dict[str, Contribution[Mount]] = {}
    host_config: dict[str, Contribution[Any]] = {}
    for plugin, patch in ((each.plugin, each.value) for each in patches):
        if patch.image is not None:
            _agree("image", image, plugin, patch.image)
            image = image or Contribution(plugin, patch.image)
        for name, value in patch.env.items():
            _agree(f"environment variable {name}", env.get(name), plugin, value)
            env.setdefault(name, Contribution(plugin, value))
        devices.update(dict.fromkeys(patch.devices))
        groups.update(dict.fromkeys(patch.groups))
        requests += [request for request in patch.device_requests if request not in requests]
        for mount in patch.mounts:
            _agree(f"mount at {mount.target}", mounts.get(mount.target), plugin, mount)
            mounts.setdefault(mount.target, Contribution(plugin, mount))
        for name, value in patch.host_config.items():
            _agree(f"HostConfig {name}", host_config.get(name), plugin, value)
            host_config.setdefault(name, Contribution(plugin, value))
    return SpecPatch(
        image=image.value if image else None,
        env={name: each.value for name, each in env.items()},
        devices=tuple(devices),
        groups=tuple(groups),
        device_requests=tuple(requests),
        mounts=tuple(each.value for each in mounts.values()),
        host_config={name: each.value for name, each in host_config.items()},
    )


def _agree(what: str, before: Contribution[_T] | None, plugin: str, value: _T) -> None:
    if before is not None and before.value != value:
        raise LaunchError(
            f"plugins '{before.plugin}' and '{plugin}' disagree about the container's {what} "
            f"({before.value!r} and {value!r}): disable one of them"
        )
