"""``/api/instances`` and ``/api/next-port``: launch, look at, stop, restart, forget, and read the log.

A launch body is checked completely before anything happens, so a refusal leaves no process, port or record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify, request

from llamaman.access import Access, access
from llamaman.core import launch
from llamaman.core.config import Config
from llamaman.dashboard.answer_schemas import INSTANCE, TEXT, WHOLE, list_of, record, status
from llamaman.dashboard.bodies import Check, boolean, nullable, text
from llamaman.dashboard.http import fields, identity, json_body
from llamaman.dashboard.input_schemas import LAUNCH_OPTIONS, OPTION_FIELDS
from llamaman.dashboard.operation import operation
from llamaman.dashboard.options import check_options
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import instance_object
from llamaman.errors import InvalidField, NotFound
from llamaman.gateway.log_stream import last_lines
from llamaman.records import LaunchRequest, ModelView, RouteSet

_ID = {"id": {"type": "string", "format": "uuid"}}
_INSTANCE = ("The instance.", INSTANCE)


def _truth(name: str, value: Any) -> bool:
    if value not in ("true", "false", "1", "0"):
        raise InvalidField(name, f"{name} must be true or false")
    return value in ("true", "1")


_QUERY_OF_STOP = {"force": Check(_truth, {"type": "string", "enum": ["true", "false", "1", "0"]})}
_RESTART: dict[str, Check] = {"confirm_overcommit": boolean, "options": LAUNCH_OPTIONS}


def _of_request(config: Config) -> dict[str, Check]:
    """Fields of a launch body that are not launch options."""
    ports = {"type": "integer", "minimum": config.port_range_start, "maximum": config.port_range_end}
    port = Check(
        lambda name, value: launch.validate_port(value, config), {"anyOf": [ports, {"type": "null"}]}
    )
    return {
        "model_path": nullable(text(4096)),
        "model": nullable(text(256)),
        "port": port,
        "preset": nullable(text(128)),
        "confirm_overcommit": boolean,
    }


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("instances", __name__)
    prefix = kernel.config.llama_container_prefix

    @blueprint.get("/api/instances")
    @access(Access.VIEW)
    @operation("List the instances.", answers={200: ("All instances.", list_of(INSTANCE))})
    def list_instances() -> Response:
        return jsonify([instance_object(view, prefix) for view in kernel.instances.views()])

    @blueprint.post("/api/instances")
    @access(Access.MANAGE)
    @operation(
        "Launch a model; returns before it is loaded.",
        fields={**_of_request(kernel.config), **OPTION_FIELDS},
        answers={201: ("The new instance.", INSTANCE)},
    )
    def launch_instance() -> tuple[Response, int]:
        wanted = launch_request(kernel, json_body())
        view = kernel.instances.launch(wanted, identity().actor)
        return jsonify(instance_object(view, prefix)), 201

    @blueprint.get("/api/instances/<id>")
    @access(Access.VIEW)
    @operation("Show an instance.", path=_ID, answers={200: _INSTANCE})
    def get_instance(id: str) -> Response:
        return jsonify(instance_object(kernel.instances.view(id), prefix))

    @blueprint.delete("/api/instances/<id>")
    @access(Access.MANAGE)
    @operation(
        "Stop an instance; force does not wait for its requests.",
        path=_ID,
        query=_QUERY_OF_STOP,
        answers={200: ("It is stopped.", status("stopped"))},
    )
    def stop_instance(id: str) -> Response:
        kernel.instances.stop(id, identity().actor, force=_flag())
        return jsonify({"status": "stopped"})

    @blueprint.post("/api/instances/<id>/restart")
    @access(Access.MANAGE)
    @operation(
        "Start an instance again under the same id.",
        path=_ID,
        fields=_RESTART,
        optional=True,
        answers={201: _INSTANCE},
    )
    def restart_instance(id: str) -> tuple[Response, int]:
        given = fields(_RESTART, optional=True)
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
    @operation(
        "Forget an instance that is stopped or failed.",
        path=_ID,
        answers={200: ("It is forgotten.", status("removed"))},
    )
    def remove_instance(id: str) -> Response:
        kernel.instances.remove(id, identity().actor)
        return jsonify({"status": "removed"})

    @blueprint.get("/api/instances/<id>/logs")
    @access(Access.MANAGE)
    @operation(
        "Show the end of an instance's log.",
        path=_ID,
        answers={200: ("Its last lines, secrets masked.", record(lines=list_of(TEXT)))},
    )
    def instance_logs(id: str) -> Response:
        return jsonify({"lines": last_lines(kernel.instances.view(id).log_path)})

    @blueprint.get("/api/next-port")
    @access(Access.VIEW)
    @operation(
        "Name the first free public port.",
        answers={200: ("The port.", record(port=WHOLE))},
        refusals=(409,),
    )
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
    own = _of_request(kernel.config)
    given = {name: check(name, body[name]) for name, check in own.items() if name in body}
    options = check_options(kernel, {name: body[name] for name in body if name not in own})
    model = _model(kernel, given)
    return LaunchRequest(
        model_path=model.path,
        options=options,
        port=given.get("port"),
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


def _flag() -> bool:
    return bool(_QUERY_OF_STOP["force"]("force", request.args.get("force", "false")))
