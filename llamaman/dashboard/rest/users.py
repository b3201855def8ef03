"""``/api/users`` and ``/api/setup-link``: ADMIN only; a session must have confirmed its password to change users."""

from __future__ import annotations

from collections import Counter

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, Role, access
from llamaman.core.key_record import iso
from llamaman.dashboard.account_schemas import SETUP_LINK, USER
from llamaman.dashboard.answer_schemas import DONE, list_of
from llamaman.dashboard.bodies import Check, boolean, one_of, text
from llamaman.dashboard.http import fields, identity
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import user_object
from llamaman.errors import Forbidden, InvalidRequest
from llamaman.limits import PASSWORD_LONGEST, USER_NAME
from llamaman.records import Identity, RouteSet

_ROLE = one_of(*(role.value for role in Role))
_NEW: dict[str, Check] = {"name": text(USER_NAME), "password": text(PASSWORD_LONGEST), "role": _ROLE}
_CHANGE: dict[str, Check] = {"role": _ROLE, "disabled": boolean, "password": text(PASSWORD_LONGEST)}


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("users", __name__)

    @blueprint.get("/api/users")
    @access(Access.ADMIN)
    @operation("List the users.", answers={200: ("The users.", list_of(USER))})
    def list_users() -> Response:
        counts = Counter(session.user for session in kernel.accounts.sessions.list())
        return jsonify([user_object(user, counts[user.id]) for user in kernel.accounts.users.list()])

    @blueprint.post("/api/users")
    @access(Access.ADMIN)
    @operation(
        "Create a user.",
        fields=_NEW,
        required=tuple(_NEW),
        answers={201: ("The new user.", USER)},
        refusals=(409, 429),
        sudo=True,
    )
    def create_user() -> tuple[Response, int]:
        given = fields(_NEW, required=tuple(_NEW))
        _refuse_limited_key(kernel, identity())
        user = kernel.accounts.create_user(
            given["name"], given["password"], Role(given["role"]), by=identity()
        )
        return jsonify(user_object(user, 0)), 201

    @blueprint.patch("/api/users/<name>")
    @access(Access.ADMIN)
    @operation(
        "Change a user's role or password, disable or enable them; their sessions end.",
        fields=_CHANGE,
        answers={200: ("The user now.", USER)},
        refusals=(409, 429),
        sudo=True,
    )
    def change_user(name: str) -> Response:
        given = fields(_CHANGE)
        if not given:
            raise InvalidRequest(f"nothing to change; give one of {', '.join(_CHANGE)}")
        if given != {"disabled": True}:
            _refuse_limited_key(kernel, identity())
        role = Role(given["role"]) if "role" in given else None
        user = kernel.accounts.change_user(
            name,
            role=role,
            disabled=given.get("disabled"),
            password=given.get("password"),
            by=identity(),
        )
        return jsonify(user_object(user, len(kernel.accounts.sessions.list(user.id))))

    @blueprint.delete("/api/users/<name>")
    @access(Access.ADMIN)
    @operation(
        "Delete a user; their sessions end.", answers={200: ("Done.", DONE)}, refusals=(409,), sudo=True
    )
    def delete_user(name: str) -> Response:
        kernel.accounts.delete_user(name, by=identity())
        return jsonify({"ok": True})

    @blueprint.get("/api/setup-link")
    @access(Access.ADMIN)
    @operation(
        "The link under which the first user is created; null once there is one.",
        answers={200: ("The link.", SETUP_LINK)},
    )
    def setup_link() -> Response:
        _refuse_limited_key(kernel, identity())
        return jsonify({"link": kernel.accounts.setup.link(kernel.config.local_url)})

    return RouteSet(blueprint)


def _refuse_limited_key(kernel: Services, who: Identity) -> None:
    """A user lasts and may ask every model, so a key that is less cannot make one or get hold of one's password.

    :raises Forbidden: the key ends some day, or is limited to some models.
    """
    record = kernel.keys.get(who.key_id) if who.key_id else None
    if record is None or (record.expires is None and record.models is None):
        return
    limit = "is limited to some models" if record.expires is None else f"expires at {iso(record.expires)}"
    raise Forbidden(f"your key {limit}, and users are not bound by that; use a key without such a limit")
