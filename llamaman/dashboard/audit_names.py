"""What the audit log calls each change that management can make. A test holds the table against the routes.

A plugin's routes have no entry; they are called by method and pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: (method, pattern as ``/api/routes`` shows it) -> noun and verb.
NAMES: Final[Mapping[tuple[str, str], str]] = {
    ("POST", "/api/instances"): "instances.launch",
    ("DELETE", "/api/instances/{id}"): "instances.stop",
    ("POST", "/api/instances/{id}/restart"): "instances.restart",
    ("DELETE", "/api/instances/{id}/remove"): "instances.remove",
    ("POST", "/api/models/rescan"): "models.rescan",
    ("POST", "/api/images/pull"): "images.pull",
    ("DELETE", "/api/images"): "images.delete",
    ("PUT", "/api/presets/{model_path...}"): "presets.save",
    ("PATCH", "/api/presets/{model_path...}"): "presets.note",
    ("DELETE", "/api/presets/{model_path...}"): "presets.delete",
    ("POST", "/api/settings"): "settings.change",
    ("POST", "/api/api-keys"): "keys.create",
    ("DELETE", "/api/api-keys/{id}"): "keys.revoke",
    ("POST", "/api/users"): "users.create",
    ("PATCH", "/api/users/{name}"): "users.change",
    ("DELETE", "/api/users/{name}"): "users.delete",
    ("DELETE", "/api/sessions/{id}"): "sessions.end",
    ("DELETE", "/api/me/sessions"): "me.sessions.end_all",
    ("DELETE", "/api/me/sessions/{id}"): "me.sessions.end",
    ("POST", "/api/me/password"): "me.password",
    ("POST", "/api/me/sudo"): "me.confirm",
    ("DELETE", "/api/requests/{id}"): "requests.cancel",
    ("POST", "/login"): "login",
    ("POST", "/logout"): "logout",
    ("POST", "/setup"): "setup",
    ("POST", "/setup/{code}"): "setup",
}


def name_of(method: str, pattern: str) -> str:
    """The action of a request: the table's name, else method and pattern."""
    return NAMES.get((method, pattern), f"{method} {pattern}")
