"""The kernel as plugins see it: few, read-mostly, and frozen by a test. What is not here, a plugin cannot ask.

The kernel makes one :class:`Facades`; hooks hand each plugin its own :class:`PluginKernel`, which knows the
plugin's name, so that everything a plugin publishes or stores is attributed to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llamaman.core.store import Changes, Document, Documents, Operation, Store, Versions
from llamaman.errors import PluginError
from llamaman.records import InstanceView, ModelView

if TYPE_CHECKING:
    from llamaman.core.events import Events


class PluginCollection(Protocol):
    """One collection of the store, of which this plugin is the only owner. Methods as in ``Store``.

    Every method may block: never call one on the event loop.
    """

    def get(self, key: str) -> Document | None: ...
    def list(self) -> Documents: ...
    def put(self, key: str, value: Any, *, expected: int | None = None) -> int: ...
    def delete(self, key: str, *, expected: int | None = None) -> bool: ...
    def batch(self, operations: Sequence[Operation]) -> Versions: ...
    def watch(self, since: int) -> Changes: ...


class PluginKernel(Protocol):
    """What a plugin may use. Safe from any thread; nothing but :meth:`collection`'s methods blocks."""

    @property
    def node(self) -> str:
        """This node's name."""

    @property
    def version(self) -> str:
        """The running version of LlamaMan."""

    def setting(self, name: str) -> Any:
        """The present value of a setting by its full name, such as ``recording.mode``.

        :raises KeyError: nobody declared it.
        """

    def models(self) -> Sequence[ModelView]:
        """The models on disk, as of the last scan."""

    def instances(self) -> Sequence[InstanceView]:
        """Every instance now."""

    def publish(self, topic: str, kind: str, data: Mapping[str, Any], *, reason: str) -> None:
        """Put an event on the bus in this plugin's name."""

    def collection(self, name: str) -> PluginCollection:
        """A collection that this plugin declared with ``collection_declare``.

        :raises PluginError: it did not.
        """


@dataclass(frozen=True, slots=True)
class Services:
    """The kernel's side of the façade. Callables, so that it exists before the services behind them.

    :ivar owner_of_collection: the plugin that declared a collection, or None.
    """

    node: str
    version: str
    setting: Callable[[str], Any]
    models: Callable[[], Sequence[ModelView]]
    instances: Callable[[], Sequence[InstanceView]]
    events: Events
    store: Callable[[], Store]
    owner_of_collection: Callable[[str], str | None]


class Facades:
    """Gives each plugin its façade; hooks that take ``kernel`` are called with what this returns."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def for_plugin(self, plugin: str) -> PluginKernel:
        """The façade of one plugin."""
        return _Facade(self._services, plugin)


class _Facade:
    """See :class:`PluginKernel`. Slots and properties: a plugin can neither add to it nor change it."""

    __slots__ = ("__plugin", "__services")

    def __init__(self, services: Services, plugin: str) -> None:
        self.__services = services
        self.__plugin = plugin

    @property
    def node(self) -> str:
        return self.__services.node

    @property
    def version(self) -> str:
        return self.__services.version

    def setting(self, name: str) -> Any:
        return self.__services.setting(name)

    def models(self) -> Sequence[ModelView]:
        return self.__services.models()

    def instances(self) -> Sequence[InstanceView]:
        return self.__services.instances()

    def publish(self, topic: str, kind: str, data: Mapping[str, Any], *, reason: str) -> None:
        self.__services.events.publish(topic, kind, data, actor=f"plugin:{self.__plugin}", reason=reason)

    def collection(self, name: str) -> PluginCollection:
        owner = self.__services.owner_of_collection(name)
        if owner != self.__plugin:
            whose = f"belongs to '{owner}'" if owner else "was not declared"
            raise PluginError(
                self.__plugin, f"collection '{name}' {whose}; return it from collection_declare to own it"
            )
        return _Collection(self.__services.store(), name)


class _Collection:
    """See :class:`PluginCollection`."""

    __slots__ = ("__name", "__store")

    def __init__(self, store: Store, name: str) -> None:
        self.__store = store
        self.__name = name

    def get(self, key: str) -> Document | None:
        return self.__store.get(self.__name, key)

    def list(self) -> Documents:
        return self.__store.list(self.__name)

    def put(self, key: str, value: Any, *, expected: int | None = None) -> int:
        return self.__store.put(self.__name, key, value, expected=expected)

    def delete(self, key: str, *, expected: int | None = None) -> bool:
        return self.__store.delete(self.__name, key, expected=expected)

    def batch(self, operations: Sequence[Operation]) -> Versions:
        return self.__store.batch(self.__name, operations)

    def watch(self, since: int) -> Changes:
        return self.__store.watch(self.__name, since)
