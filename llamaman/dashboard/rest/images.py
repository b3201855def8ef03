"""``/api/images``: the container images that launches may use. Reading is for viewers, pulling an allowed image for
managers, deleting for administrators, who also say what is allowed: the setting ``images.allowed``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flask import Blueprint, Response, g, jsonify

from llamaman.access import Access, access
from llamaman.core.auth import allows
from llamaman.dashboard.answer_schemas import COUNT, FLAG, TEXT, TIME, list_of, maybe, record, words
from llamaman.dashboard.bodies import Check, text
from llamaman.dashboard.http import fields, identity
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import HasImages, Images, Services
from llamaman.errors import Conflict
from llamaman.records import RouteSet

if TYPE_CHECKING:
    from concurrent.futures import Future

    from llamaman.runtimes.docker.images import ImageView
    from llamaman.runtimes.docker.pulls import Pull

TOPIC: Final = "images"
_NAME: Final = 512  # of an image with registry, tag and digest
_FIELDS: Final[dict[str, Check]] = {"image": text(_NAME)}

_IMAGE: Final = record(
    "Image",
    name=TEXT,
    present={**FLAG, "description": "It is on the Docker host; where not, null is what is not known."},
    current={**FLAG, "description": "Launches that name no image use it."},
    allowed={**FLAG, "description": "LLAMA_IMAGE or images.allowed allows it."},
    in_use={**FLAG, "description": "A container is made of it, running or not."},
    id={**maybe(TEXT), "description": "Docker's id of it."},
    digest={**maybe(TEXT), "description": "What the registry calls it; null for one that was built here."},
    size_mb={"type": ["number", "null"], "minimum": 0, "description": "MiB on disk."},
    created=maybe(TIME),
    last_pulled_at=maybe(TIME),
)
_PULL: Final = record(
    "Pull",
    image=TEXT,
    status=words("queued", "pulling", "extracting", "done", "error"),
    percent={**maybe(COUNT), "description": "Of what the status says; null when it is not known."},
    message=TEXT,
    error=maybe(TEXT),
    detail={**maybe(TEXT), "description": "Docker's own words, for callers who may manage."},
    started_at=TIME,
    finished_at=maybe(TIME),
)
_LIST: Final = record(images=list_of(_IMAGE), current_image=TEXT, pulls=list_of(_PULL))


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("images", __name__)

    @blueprint.get("/api/images")
    @access(Access.VIEW)
    @operation(
        "List the current image, then the images here that are allowed or that LlamaMan pulled.",
        answers={200: ("The images, and the pulls as in /api/images/pull-status.", _LIST)},
        refusals=(409, 503),
    )
    def list_images() -> Response:
        images = _images(kernel)
        return jsonify(
            {
                "images": [_image(view) for view in images.views()],
                "current_image": images.current,
                "pulls": _pulls(images),
            }
        )

    @blueprint.get("/api/images/pull-status")
    @access(Access.VIEW)
    @operation(
        "Show the pulls that run, newest first, then the last ones that ended.",
        answers={200: ("The pulls.", record(pulls=list_of(_PULL)))},
        refusals=(409,),
    )
    def pull_status() -> Response:
        return jsonify({"pulls": _pulls(_images(kernel))})

    @blueprint.post("/api/images/pull")
    @access(Access.MANAGE)
    @operation(
        "Begin to pull an allowed image, the current one if none is named; one that is pulled already is joined.",
        fields=_FIELDS,
        optional=True,
        answers={202: ("The pull as it is now.", _PULL)},
        refusals=(409,),
    )
    def pull_image() -> tuple[Response, int]:
        given = fields(_FIELDS, optional=True)
        images = _images(kernel)
        g.audit_object = given.get("image") or images.current
        begun, future = images.pull(g.audit_object)
        g.audit_object = begun.image
        _tell(kernel, begun, future, identity().actor)
        return jsonify(_pull(begun, detailed=True)), 202

    @blueprint.delete("/api/images")
    @access(Access.ADMIN)
    @operation(
        "Delete an image from the Docker host. Refused for the current image, and by Docker for one in use.",
        fields=_FIELDS,
        required=("image",),
        answers={200: ("It is gone.", record(ok={"type": "boolean", "const": True}, image=TEXT))},
        refusals=(404, 409, 503),
    )
    def delete_image() -> Response:
        given = fields(_FIELDS, required=("image",))
        g.audit_object = given["image"]
        name = _images(kernel).remove(given["image"])
        kernel.events.publish(
            TOPIC, "deleted", {"image": name}, actor=identity().actor, reason="the image was deleted"
        )
        return jsonify({"ok": True, "image": name})

    return RouteSet(blueprint)


def _images(kernel: Services) -> Images:
    """:raises Conflict: nothing here runs images."""
    for runtime in kernel.runtimes.values():
        if isinstance(runtime, HasImages):
            return runtime.images
    raise Conflict(
        "there are no images to manage: this LlamaMan runs models without Docker (LLAMAMAN_RUNTIME, or no Docker "
        "was found when it started; 'llamaman doctor' says more)"
    )


def _tell(kernel: Services, begun: Pull, future: Future[None], actor: str) -> None:
    """Publish that a pull began and how it ended."""
    data = {"image": begun.image}
    kernel.events.publish(TOPIC, "pull_started", data, actor=actor, reason="somebody asked for it")

    def ended(future: Future[None]) -> None:
        failure = future.exception()
        kind, reason = (
            ("pulled", "the pull is complete") if failure is None else ("pull_failed", str(failure))
        )
        kernel.events.publish(TOPIC, kind, data, actor=actor, reason=reason)

    future.add_done_callback(ended)


def _pulls(images: Images) -> list[dict[str, Any]]:
    detailed = allows(identity(), Access.MANAGE)
    return [_pull(each, detailed) for each in images.pulls()]


def _pull(pull: Pull, detailed: bool) -> dict[str, Any]:
    return {
        "image": pull.image,
        "status": pull.state,
        "percent": pull.percent,
        "message": pull.message,
        "error": pull.error,
        "detail": pull.detail if detailed else None,
        "started_at": pull.started,
        "finished_at": pull.finished,
    }


def _image(view: ImageView) -> dict[str, Any]:
    return {
        "name": view.name,
        "present": view.present,
        "current": view.current,
        "allowed": view.allowed,
        "in_use": view.in_use,
        "id": view.id,
        "digest": view.digest,
        "size_mb": None if view.size is None else round(view.size / (1 << 20), 1),
        "created": view.created,
        "last_pulled_at": view.last_pulled,
    }
