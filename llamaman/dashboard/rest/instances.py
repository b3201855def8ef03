"""``/api/instances`` and ``/api/next-port``: launch, look at, stop, restart, forget, and read the log.

A launch body is checked completely before anything happens, so a refusal leaves no process, port or record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify, request

from llamaman.access import Access, access
from llamaman.core import launch
from llamaman.dashboard.bodies import Check, anything, boolean, nullable, text
from llamaman.dashboard.http import fields, identity, json_body
from llamaman.dashboard.options import check_options
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import instance_object
from llamaman.errors import InvalidField, NotFound
from llamaman.gateway.log_stream import last_lines
from llamaman.records import LaunchRequest, ModelView, RouteSet


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidField(name, f"{name} must be an object of launch options")
    return value


#: Launch options; ``options.py`` knows their rules.
_AN_OBJECT = Check(_object, {"type": "object"})

#: Fields of a launch body that are not launch options.
_OF_REQUEST: dict[str, Check] = {
    "model_path": nullable(text(4096)),
    "model": nullable(text(256)),
    "port": anything,
    "preset": nullable(text(128)),
    "confirm_overcommit": boolean,
}


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("instances", __name__)
    prefix = kernel.config.llama_container_prefix

    @blueprint.get("/api/instances")
    @access(Access.VIEW)
    def list_instances() -> Response:
        return jsonify([instance_object(view, prefix) for view in kernel.instances.views()])

    @blueprint.post("/api/instances")
    @access(Access.MANAGE)
    def launch_instance() -> tuple[Response, int]:
        wanted = launch_request(kernel, json_body())
        view = kernel.instances.launch(wanted, identity().actor)
        return jsonify(instance_object(view, prefix)), 201

    @blueprint.get("/api/instances/<id>")
    @access(Access.VIEW)
    def get_instance(id: str) -> Response:
        return jsonify(instance_object(kernel.instances.view(id), prefix))

    @blueprint.delete("/api/instances/<id>")
    @access(Access.MANAGE)
    def stop_instance(id: str) -> Response:
        kernel.instances.stop(id, identity().actor, force=_flag("force"))
        return jsonify({"status": "stopped"})

    @blueprint.post("/api/instances/<id>/restart")
    @access(Access.MANAGE)
    def restart_instance(id: str) -> tuple[Response, int]:
        given = fields({"confirm_overcommit": boolean, "options": _AN_OBJECT}, optional=True)
        options = given.get("options")
        view = kernel.instances.restart(
            id,
            identity().actor,
            options=None if options is None else check_options(kernel, options, partial=True),
            confirm_overcommit=given.get("confirm_overcommit", False),
        )
        return jsonify(instance_object(view, prefix)), 201

    @blueprint.delete("/api/instances/<id>/remove")
    @access(Access.MANAGE)
    def remove_instance(id: str) -> Response:
        kernel.instances.remove(id, identity().actor)
        return jsonify({"status": "removed"})

    @blueprint.get("/api/instances/<id>/logs")
    @access(Access.MANAGE)
    def instance_logs(id: str) -> Response:
        return jsonify({"lines": last_lines(kernel.instances.view(id).log_path)})

    @blueprint.get("/api/next-port")
    @access(Access.VIEW)
    def next_port() -> tuple[Response, int]:
        port = kernel.instances.next_port()
        if port is None:
            return jsonify({"error": "No ports available", "port": None}), 409
        return jsonify({"port": port}), 200

    return RouteSet(blueprint)


def launch_request(kernel: Services, body: dict[str, Any]) -> LaunchRequest:
    """A launch body as a request: the model looked up, every option checked.

    :raises InvalidField: naming the field.
    """
    given = {name: check(name, body[name]) for name, check in _OF_REQUEST.items() if name in body}
    port = launch.validate_port(given.get("port"), kernel.config)
    options = check_options(kernel, {name: body[name] for name in body if name not in _OF_REQUEST})
    model = _model(kernel, given)
    return LaunchRequest(
        model_path=model.path,
        options=options,
        port=port,
        preset=given.get("preset"),
        confirm_overcommit=given.get("confirm_overcommit", False),
    )


def _model(kernel: Services, given: dict[str, Any]) -> ModelView:
    path, name = given.get("model_path"), given.get("model")
    if not path and not name:
        raise InvalidField("model_path", "model_path is required (or model, its name)")
    field = "model_path" if path else "model"
    try:
        model = _look_up(kernel, path, name or "")
    except NotFound as error:
        if not kernel.library.refresh():  # it may have been copied there a moment ago
            raise InvalidField(field, f"{field}: {error.message}") from None
        try:
            model = _look_up(kernel, path, name or "")
        except NotFound as still:
            raise InvalidField(field, f"{field}: {still.message}") from None
    if not model.runnable:
        reason = kernel.library.reason(model.path) or "it cannot be run"
        raise InvalidField(field, f"{field}: '{model.name}' cannot be launched: {reason}")
    return model


def _look_up(kernel: Services, path: str | None, name: str) -> ModelView:
    return kernel.library.by_path(Path(path)) if path else kernel.library.find(name)


def _flag(name: str) -> bool:
    value = request.args.get(name, "false")
    if value not in ("true", "false", "1", "0"):
        raise InvalidField(name, f"{name} must be true or false")
    return value in ("true", "1")
