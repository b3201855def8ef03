"""The kernel: what is alive while LlamaMan runs. It owns the services and nothing else.

``llamaman.boot`` builds one, in the only place that knows every room; management routes and plugins see
parts of it through narrow protocols.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llamaman.core.accounts.accounts import Accounts
from llamaman.core.audit import Audit
from llamaman.core.auth import Keys
from llamaman.core.config import Config
from llamaman.core.datadir import DataDir
from llamaman.core.discovery import with_failures
from llamaman.core.events import Events
from llamaman.core.facade import Facades
from llamaman.core.hooks import Hooks
from llamaman.core.instances import Instances
from llamaman.core.jobs import Jobs
from llamaman.core.library_contract import Library
from llamaman.core.secrets import RootSecret
from llamaman.core.settings import Settings
from llamaman.core.store import Store
from llamaman.records import PluginRecord
from llamaman.runtime import Runtime


class Requests(Protocol):
    """The inference requests in flight. Thread-safe; the front door keeps them."""

    def views(self) -> Sequence[Any]:
        """Every one that is not answered yet."""

    def counts(self) -> Mapping[Any, int]:
        """How many there are by model and phase; does not wait for the loop."""

    def cancel(self, request_id: str, actor: str) -> None:
        """End one; NotFound when it is over."""


class Metrics(Protocol):
    """What the front door counts. Thread-safe."""

    def read(self) -> Mapping[Any, Any]:
        """Every series now."""


@dataclass(slots=True)
class Kernel:
    """Every service, by its room."""

    config: Config
    data_dir: DataDir
    secrets: RootSecret
    store: Store
    events: Events
    hooks: Hooks
    settings: Settings
    keys: Keys
    accounts: Accounts
    audit: Audit
    library: Library
    jobs: Jobs
    runtimes: Mapping[str, Runtime]
    loaded: Sequence[PluginRecord]
    started_at: float
    instances: Instances = field(init=False)
    requests: Requests = field(init=False)
    metrics: Metrics = field(init=False)
    facades: Facades = field(init=False)

    @property
    def plugins(self) -> Sequence[PluginRecord]:
        """Installed plugins as they are now: one that failed later is broken too."""
        return with_failures(self.loaded, self.hooks.broken())
