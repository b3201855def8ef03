"""Our records as the JSON objects of the REST API. Pure; read by the blueprints and by the CLI's tables.

Field names are those that existing clients of the API know. Times of instances are epoch seconds, times of
keys, users and sessions are ISO-8601 UTC with milliseconds. Unknown is null, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamaman.access import SCOPE_OF
from llamaman.core.accounts.session_record import Session
from llamaman.core.accounts.user_record import User
from llamaman.core.key_record import KeyRecord, iso
from llamaman.records import Identity, InstanceView, ModelView, PluginRecord
from llamaman.runtimes.docker.labels import container_name

JsonObject = dict[str, Any]


def health() -> JsonObject:
    """``GET /health``: says that the manager answers, and nothing else."""
    return {"status": "ok"}


def instance_object(view: InstanceView, container_prefix: str) -> JsonObject:
    """An instance.

    ``status`` is the word that existing clients know, ``state`` the exact one, ``reason`` the sentence why.
    """
    last_exit = view.last_exit
    name = container_name(container_prefix, view.id) if view.container_id else None
    return {
        "id": view.id,
        "model": view.model,
        "model_name": view.model_path.name,
        "model_path": str(view.model_path),
        "port": view.port,
        "status": view.status,
        "state": view.state.value,
        "reason": view.reason,
        "managed": view.managed,
        "runtime": view.runtime,
        "engine": view.engine,
        "engine_digest": view.engine_digest,
        "notes": list(view.notes),
        "pid": view.pid,
        "container_id": view.container_id,
        "container_name": name,
        "generation": view.generation,
        "log_file": str(view.log_path),
        "config": plain(view.options),
        "created_at": view.created,
        "started_at": view.started,
        "ready_at": view.ready_at,
        "last_request_at": view.last_request,
        "context_length": view.context_length,
        "slots": view.slots,
        "stats": {
            "model_load_time_s": view.load_seconds,
            "last_tokens_per_sec": view.last_tokens_per_second,
            "last_ttft_ms": view.last_ttft_ms,
            "total_requests": view.requests,
            "crash_count": view.crashes,
        },
        "queue": {
            "active": view.active,
            "queued": view.queued,
            "max_concurrent": view.options.get("max_concurrent"),
            "max_queue_depth": view.options.get("max_queue_depth"),
        },
        "exit": None
        if last_exit is None
        else {
            "code": last_exit.code,
            "signal": last_exit.signal,
            "at": last_exit.at,
            "oom": last_exit.oom,
            "cause": last_exit.cause,
        },
    }


def model_object(model: ModelView) -> JsonObject:
    """A model on disk. ``size_bytes`` is that of all its files."""
    return {
        "name": model.name,
        "aliases": list(model.aliases),
        "path": str(model.path),
        "type": model.kind,
        "quant": model.quant,
        "size_bytes": model.size,
        "size_display": size_display(model.size),
        "modified_at": model.modified,
        "runnable": model.runnable,
        "embedding": model.embedding,
        "context_length": model.context_length,
        "files": len(model.files) or 1,
    }


def size_display(size: int) -> str:
    """Bytes as people read them, in powers of 1024: ``241 MB``, ``1.2 GB``."""
    amount = float(size)
    for unit in ("B", "KB", "MB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GB"


def key_object(record: KeyRecord, last_used: float | None = None) -> JsonObject:
    """An API key without the key."""
    return {
        "id": record.id,
        "name": record.name,
        "prefix": f"{record.prefix}...",
        "scope": record.scope.value,
        "models": None if record.models is None else sorted(record.models),
        "created_at": iso(record.created),
        "created_by": record.created_by,
        "expires_at": None if record.expires is None else iso(record.expires),
        "last_used_at": None if last_used is None else iso(last_used),
    }


def user_object(user: User, sessions: int) -> JsonObject:
    """A user without anything about the password but its age. ``sessions`` is how many are live."""
    return {
        "name": user.name,
        "role": user.role.value,
        "disabled": user.disabled,
        "created_at": iso(user.created),
        "password_changed_at": iso(user.password_changed),
        "last_login_at": iso_or_null(user.last_login),
        "sessions": sessions,
    }


def session_object(session: Session, user: str, *, current: bool) -> JsonObject:
    """A session by its public id. ``current``: it is the one that asks."""
    return {
        "id": session.id,
        "user": user,
        "created_at": iso(session.created),
        "last_seen_at": iso(session.last_seen),
        "expires_at": iso(session.expires),
        "address": session.address,
        "agent": session.agent,
        "current": current,
    }


def me_object(who: Identity, *, csrf_token: str | None, sudo_until: float | None) -> JsonObject:
    """The caller. ``csrf_token`` goes into X-CSRF-Token of every call of a session that is not a GET."""
    return {
        "kind": who.kind,
        "name": who.name,
        "role": role_of(who),
        "scope": who.scope.value if who.scope else None,
        "session": who.session,
        "csrf_token": csrf_token,
        "sudo_until": iso_or_null(sudo_until),
    }


def role_of(who: Identity) -> str | None:
    """The role of the user behind a session; None for other callers."""
    if who.kind != "session":
        return None
    return next((role.value for role, scope in SCOPE_OF.items() if scope is who.scope), None)


def iso_or_null(moment: float | None) -> str | None:
    """Epoch seconds as ISO-8601, null for what is not known."""
    return None if moment is None else iso(moment)


def plugin_object(record: PluginRecord) -> JsonObject:
    """An installed plugin."""
    return {
        "name": record.name,
        "distribution": record.dist,
        "version": record.version,
        "state": record.state,
        "reason": record.reason,
        "hooks": list(record.hooks),
    }


def plain(value: Any) -> Any:
    """Mappings, tuples, sets and paths as JSON knows them."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return plain(asdict(value))
    return value
