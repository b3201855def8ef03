"""The part of the kernel that management routes use. Read by every blueprint; the kernel fits it by shape.

A blueprint that needs more says so here, so that what management can do to the kernel is one page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from llamaman.records import InstanceView, LaunchRequest, PluginRecord, ResourceUse
from llamaman.runtime import Runtime

if TYPE_CHECKING:
    from llamaman.core.accounts.accounts import Accounts
    from llamaman.core.admission import Decision, Launcher
    from llamaman.core.audit import Audit
    from llamaman.core.auth import Keys
    from llamaman.core.breaker import Open
    from llamaman.core.config import Config
    from llamaman.core.events import Events
    from llamaman.core.settings import Settings
    from llamaman.gateway.in_flight import Progress, RequestView
    from llamaman.gateway.metrics import Series
    from llamaman.gateway.metrics_table import Family
    from llamaman.library.library import Library
    from llamaman.runtimes.docker.images import ImageView
    from llamaman.runtimes.docker.pulls import Pull


class Instances(Protocol):
    """Synchronous and thread-safe: each call returns when the thing is done, or raises a LlamaManError."""

    def views(self) -> Sequence[InstanceView]:
        """Every instance."""

    def view(self, instance_id: str) -> InstanceView:
        """One instance; NotFound."""

    def launch(self, request: LaunchRequest, actor: str) -> InstanceView:
        """Accept a launch; returns before the model is loaded."""

    def stop(self, instance_id: str, actor: str, force: bool = False) -> InstanceView:
        """Returns when it is stopped."""

    def restart(
        self,
        instance_id: str,
        actor: str,
        options: Mapping[str, Any] | None = None,
        confirm_overcommit: bool = False,
    ) -> InstanceView:
        """Start again under the same id."""

    def remove(self, instance_id: str, actor: str) -> None:
        """Forget it; Conflict unless it is stopped or failed."""

    def pause(self, instance_id: str) -> Open | None:
        """How long its configuration's deaths keep requests away, and why; NotFound."""

    def decision(
        self, launcher: Launcher, *, embedding: bool = False, starting: str | None = None
    ) -> Decision:
        """What would be decided about one more running model now."""

    def waits(self) -> Sequence[tuple[str, str]]:
        """(model, what it waits for) of every start that waits for room."""

    def usage(self) -> Mapping[str, ResourceUse]:
        """What each running instance uses, by its id, as last measured. Does not block."""

    def next_port(self) -> int | None:
        """The first free public port."""


class Requests(Protocol):
    """Inference requests in flight. Thread-safe."""

    def views(self) -> Sequence[RequestView]:
        """Every one that is not answered yet."""

    def counts(self) -> Mapping[tuple[str, Progress], int]:
        """How many there are by model and phase; does not wait for the loop."""

    def cancel(self, request_id: str, actor: str) -> None:
        """End one; NotFound when it is over."""


class Metrics(Protocol):
    """What the front door counts. Thread-safe."""

    def read(self) -> Mapping[Family, Series]:
        """Every series now, by its metric."""


class Images(Protocol):
    """The container images of a runtime. Thread-safe; no call waits for a pull."""

    @property
    def current(self) -> str:
        """The image of launches that name none."""

    def views(self) -> Sequence[ImageView]:
        """The current one, then the others; RuntimeLost."""

    def pulls(self) -> Sequence[Pull]:
        """What is being pulled, newest first, then the last pulls that ended."""

    def pull(self, ref: str) -> tuple[Pull, Future[None]]:
        """Begin to pull an allowed image; InvalidField, Forbidden."""

    def remove(self, ref: str) -> str:
        """Delete an image and return its name; InvalidField, NotFound, Conflict, RuntimeLost."""


@runtime_checkable
class HasImages(Protocol):
    """A runtime whose engines are container images."""

    @property
    def images(self) -> Images:
        """They are managed here."""


class Services(Protocol):
    """The kernel as management sees it."""

    @property
    def config(self) -> Config:
        """The environment."""

    @property
    def settings(self) -> Settings:
        """Run-time settings."""

    @property
    def events(self) -> Events:
        """What happened."""

    @property
    def keys(self) -> Keys:
        """API keys."""

    @property
    def accounts(self) -> Accounts:
        """Users, sessions, and the code of the first set-up."""

    @property
    def audit(self) -> Audit:
        """Who did what."""

    @property
    def requests(self) -> Requests:
        """What is being answered now."""

    @property
    def metrics(self) -> Metrics:
        """What is counted of them, and how late the event loop is."""

    @property
    def library(self) -> Library:
        """Models and presets."""

    @property
    def instances(self) -> Instances:
        """Running and stopped models."""

    @property
    def runtimes(self) -> Mapping[str, Runtime]:
        """What runs models, by name."""

    @property
    def plugins(self) -> Sequence[PluginRecord]:
        """Installed plugins."""

    @property
    def started_at(self) -> float:
        """Epoch seconds of the boot."""
