"""Images of llama-server: which may be used, what is known of each, and how a missing one is had.

Read by the Docker runtime, and through it by ``/api/images``. Guarantees: no image that is not allowed is ever pulled
or run, also not to ask it for its flags; no call but those that say so waits for a pull; one pull serves everybody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaman.errors import (
    Conflict,
    Forbidden,
    InvalidField,
    LaunchError,
    LlamaManError,
    NotFound,
)
from llamaman.records import Engine
from llamaman.runtimes.docker import image_probe, pull_errors
from llamaman.runtimes.docker.daemon import Daemon
from llamaman.runtimes.docker.faults import DaemonError, DaemonGone
from llamaman.runtimes.docker.image_names import ImageName, is_allowed, looks_like_image, parse, same
from llamaman.runtimes.docker.image_records import ImageRecords
from llamaman.runtimes.docker.pulls import Pull, Pulls, Report
from llamaman.runtimes.docker.sayings import lost, told, unreachable
from llamaman.runtimes.engines import Probe

Json = Mapping[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageView:
    """One image as management shows it.

    :ivar current: launches that name no image use it.
    :ivar id: of the image on this Docker host; None when it is not here, as the rest.
    :ivar digest: what the registry calls it; None for one that was built here.
    :ivar size: bytes on disk. :ivar created: epoch seconds at which it was built.
    :ivar last_pulled: epoch seconds at which LlamaMan pulled it; None when it never did.
    :ivar in_use: a container is made of it, running or not.
    """

    name: str
    current: bool
    allowed: bool
    present: bool
    id: str | None = None
    digest: str | None = None
    size: int | None = None
    created: float | None = None
    last_pulled: float | None = None
    in_use: bool = False


class Images:
    """The images of one Docker daemon. Thread-safe; every method may block for as long as the daemon does.

    :param default: the image of launches that name none; always allowed.
    :param allowed: the patterns of ``images.allowed`` as they are now.
    :param state_dir: where ``images.json`` is kept.
    :param probe: asks an image (its inspection) which flags it knows; None: by running it for a moment.
    """

    def __init__(
        self,
        daemon: Daemon,
        *,
        default: str,
        allowed: Callable[[], Sequence[str]],
        state_dir: Path,
        probe: Callable[[Json], Probe] | None = None,
    ) -> None:
        self._daemon = daemon
        self._default = parse(default)
        self._allowed = allowed
        self._records = ImageRecords(state_dir)
        self._folder = state_dir / "probes"
        self._ask = probe or (lambda image: image_probe.ask(daemon, image, self._folder))
        self._asking = threading.Lock()
        self._is_tidy = False
        self._pulls = Pulls(
            lambda name: daemon.pull(name.repository, name.selector), finish=self._pulled, failed=self._failed
        )

    # --- for launches --------------------------------------------------------------------------------

    def default_engine(self) -> Engine:
        """The image of launches that name none. Never raises: what cannot be known now is None."""
        try:
            return self._engine(self._default)[0]
        except LlamaManError as error:
            log.warning("image %s: %s", self._default, error.message)
            return _unknown(self._default)

    def engine(self, name: str) -> Engine | None:
        """The image of that name; None: it has not the form of one.

        An image that is here and was never asked is asked now, which takes a second.

        :raises InvalidField: ``engine``, it is no name, is not allowed, or no llama-server starts in it.
        """
        if not looks_like_image(name):
            return None
        image = _read(name, "engine")
        if not self._may_use(image):
            raise InvalidField("engine", f"engine: {_not_allowed(image)}")
        engine, reason = self._engine(image)
        if reason:
            raise InvalidField("engine", f"engine: {reason}")
        return engine

    def fetch(self, engine: Engine, report: Report) -> Future[None] | None:
        """Begin to pull an image that is not here, or join the pull that runs; None when it is here.

        The future fails with a LaunchError, or with RuntimeLost when the daemon went away meanwhile; the next fetch
        begins anew then. A pull that nobody waits for any more goes on, unless it has not begun.

        :raises RuntimeLost: the daemon cannot be reached.
        """
        name = parse(engine.path)
        with self._told(name):
            if self._daemon.image(name.canonical) is not None:
                return None
        return self._pulls.start(name, report)

    def require(self, ref: str) -> Json:
        """The daemon's inspection of an image that is here.

        :raises LaunchError: it is not here, or no llama-server starts in it.
        :raises RuntimeLost: the daemon cannot be reached.
        """
        name = parse(ref)
        with self._told(name):
            image = self._daemon.image(name.canonical)
        if image is None:
            raise pull_errors.not_here(name)
        known = self._records.probe(image["Id"])
        problem = known and _no_server(name, image, known)
        if problem:
            raise LaunchError(problem)
        return image

    # --- for management ------------------------------------------------------------------------------

    @property
    def current(self) -> str:
        """The image of launches that name none."""
        return str(self._default)

    def views(self) -> tuple[ImageView, ...]:
        """The current image, then every image here that is allowed or that LlamaMan pulled, by name.

        :raises RuntimeLost: the daemon cannot be reached.
        """
        with self._told(self._default):
            found = self._daemon.images()
            used = {str(container.get("ImageID")) for container in self._daemon.containers([])}
        pulled = self._records.pulled()
        here: dict[str, ImageView] = {}
        for image in found:
            for name in _names(image):
                is_listed = name.canonical in (self._default.canonical, *pulled)
                if is_listed or (name.digest is None and self._may_use(name)):
                    here[name.canonical] = self._view(name, image, used, pulled)
        current = here.pop(self._default.canonical, None) or self._view(self._default, None, used, pulled)
        return (current, *sorted(here.values(), key=lambda view: view.name))

    def pulls(self) -> Sequence[Pull]:
        """What is being pulled, newest first, then the last pulls that ended."""
        return self._pulls.views()

    def pull(self, ref: str) -> tuple[Pull, Future[None]]:
        """Begin to pull an image, also one that is here (its tag may have moved), or join the pull that runs.

        :raises InvalidField: ``image`` is no name. :raises Forbidden: it is not allowed.
        """
        name = _read(ref, "image")
        if not self._may_use(name):
            raise Forbidden(_not_allowed(name), field="image")
        future = self._pulls.start(name, lambda message: None)
        begun = next(pull for pull in self._pulls.views() if same(pull.image, str(name)))
        return begun, future

    def remove(self, ref: str) -> str:
        """Remove an image from the Docker host and return its name; one that is listed, but not the current one.

        :raises InvalidField: ``image`` is no name. :raises NotFound: it is not listed, or not here.
        :raises Conflict: it is the current one, or Docker refuses, in its words: a container is made of it.
        :raises RuntimeLost: the daemon cannot be reached.
        """
        name = _read(ref, "image")
        if name.canonical == self._default.canonical:
            raise Conflict(
                f"image '{name}' is the one that launches use; set LLAMA_IMAGE to another one before you delete it",
                field="image",
            )
        if not any(view.present and same(view.name, str(name)) for view in self.views()):
            raise NotFound(
                f"image '{name}' is not one of LlamaMan's here; GET /api/images lists them", field="image"
            )
        with self._told(name):
            try:
                self._daemon.remove_image(name.canonical)
            except DaemonError as error:
                if error.status == 409:
                    raise Conflict(f"Docker: {error.text}", field="image") from error
                if error.status != 404:  # else it has gone meanwhile, as was wanted
                    raise
        self._records.forget_pull(name.canonical)
        return str(name)

    def close(self) -> None:
        """End the pulls; whoever waits for one is told."""
        self._pulls.close()

    # --- inside --------------------------------------------------------------------------------------

    def _may_use(self, name: ImageName) -> bool:
        return name == self._default or is_allowed(str(name), self._allowed())

    def _engine(self, name: ImageName) -> tuple[Engine, str | None]:
        """What is known of an image, and why it can run nothing. Allowed ones only: they may be run for it."""
        try:
            image = self._daemon.image(name.canonical)
            if image is None:
                return _unknown(name), None
            probe = self._probe(image)
        except DaemonGone as gone:
            log.info("image %s cannot be looked at: %s", name, unreachable(gone.reason))
            return _unknown(name), None
        except DaemonError as error:
            log.warning("image %s cannot be looked at: %s", name, error.text)
            return _unknown(name), None
        flags = None if probe.flags is None else frozenset(probe.flags)
        engine = Engine(str(name), "image", name.canonical, probe.build, flags, image["Id"])
        return engine, _no_server(name, image, probe)

    def _probe(self, image: Json) -> Probe:
        image_id = image["Id"]
        known = self._records.probe(image_id)
        if known is not None and self._is_tidy:
            return known
        with self._asking:  # held while asking, so that two launches at once do not ask twice
            if not self._is_tidy:
                image_probe.remove_stale(self._daemon, self._folder)
                self._is_tidy = True
            known = self._records.probe(image_id)
            if known is None:
                known = self._ask(image)
                if known.flags is None:
                    log.warning("the flags of image %s are unknown: %s", image_id[:19], known.reason)
                self._records.keep_probe(image_id, known)
            return known

    def _pulled(self, name: ImageName) -> None:
        """A pull is over: the image is asked before anybody who waits for it plans its launch."""
        image = self._daemon.image(name.canonical)
        if image is None:
            raise pull_errors.cannot_be_had(name, "the pull ended, and the image is not here")
        self._records.note_pull(name.canonical, time.time())
        problem = _no_server(name, image, self._probe(image))
        if problem:
            raise LaunchError(problem)

    def _failed(self, name: ImageName, failure: Exception) -> LlamaManError:
        match failure:
            case DaemonGone():
                return lost(self._daemon.address, failure)
            case DaemonError():
                return pull_errors.cannot_be_had(name, failure.text)
        log.error("the pull of %s failed", name, exc_info=failure)
        return LaunchError(f"the pull of '{name}' failed inside LlamaMan; its log says why")

    def _view(
        self, name: ImageName, image: Json | None, used: set[str], pulled: Mapping[str, float]
    ) -> ImageView:
        is_current = name.canonical == self._default.canonical
        allowed, at = self._may_use(name), pulled.get(name.canonical)
        if image is None:
            return ImageView(str(name), is_current, allowed, present=False, last_pulled=at)
        return ImageView(
            str(name),
            is_current,
            allowed,
            present=True,
            id=image["Id"],
            digest=_registry_digest(name, image),
            size=image.get("Size"),
            created=image.get("Created"),
            last_pulled=at,
            in_use=image["Id"] in used,
        )

    def _told(self, name: ImageName) -> AbstractContextManager[None]:
        """The daemon's troubles as errors that say what to do."""
        return told(self._daemon.address, str(name))


def _read(ref: str, field: str) -> ImageName:
    try:
        return parse(ref)
    except ValueError as error:
        raise InvalidField(field, f"{field}: '{ref[:100]}' is not the name of an image: {error}") from None


def _unknown(name: ImageName) -> Engine:
    return Engine(str(name), "image", name.canonical)


def _not_allowed(name: ImageName) -> str:
    shown = str(name)
    family = shown.partition("@")[0]
    family = family.removesuffix(f":{name.tag}") if name.tag else family
    return (
        f"image '{shown}' is not allowed here; an administrator can add it, or {family}:* for all of its tags, "
        "to the setting images.allowed"
    )


def _no_server(name: ImageName, image: Json, probe: Probe) -> str | None:
    """Why no llama-server starts in it; None when one does, or may."""
    if probe.flags is not None or image_probe.starts_server(image):
        return None
    return pull_errors.no_server(name, probe.reason or "it did not answer to --help")


def _names(image: Json) -> Iterator[ImageName]:
    """The names of an image in the daemon's list, by tag and by digest."""
    for text in (*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())):
        try:
            yield parse(text)
        except ValueError:
            continue  # <none>:<none>


def _registry_digest(name: ImageName, image: Json) -> str | None:
    for known in image.get("RepoDigests") or ():
        try:
            read = parse(known)
        except ValueError:
            continue
        if read.repository == name.repository:
            return read.digest
    return None
