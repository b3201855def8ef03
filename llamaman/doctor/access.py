"""``--security``, second half: who may do what. Facts of the running manager, and what the environment adds."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llamaman.access import Scope
from llamaman.core.addresses import is_loopback_host
from llamaman.core.config import Config
from llamaman.core.key_record import KeyRecord
from llamaman.doctor.finding import Finding, fail, ok, skip, warn
from llamaman.doctor.live import Live, Person

IDLE_DAYS = 90
_IDLE_S = IDLE_DAYS * 86400.0
_SHOWN = 5
_NO_MANAGER = "no manager answers, and only it knows"


def check_access(config: Config, live: Live | None, now: float | None = None) -> list[Finding]:
    """Users, keys and switches.

    :param live: None where no manager answers.
    :param now: epoch seconds; the clock's when None.
    """
    now = time.time() if now is None else now
    if live is None:
        found = [
            skip(check, _NO_MANAGER) for check in ("require-auth", "setup", "unlisted-args", "keys", "users")
        ]
        return [*found, *_first_credentials(config, None)]
    return [
        _require_auth(config, live),
        _setup(live),
        _unlisted_args(live),
        _keys(live.keys),
        _people(live, now),
        *_first_credentials(config, live),
    ]


def _require_auth(config: Config, live: Live) -> Finding:
    if live.require_auth:
        return ok("require-auth", "inference and model lists need a key or a session")
    cure = "llamaman settings set require_auth true"
    if is_loopback_host(config.host):
        return warn(
            "require-auth",
            "every program and web page of this machine may use the models (require_auth)",
            cure,
        )
    return fail("require-auth", "whoever reaches the ports may use the models (require_auth is off)", cure)


def _setup(live: Live) -> Finding:
    if live.people:
        return ok("setup", "a user exists, so the set-up page is closed")
    what = "no user exists: whoever has the set-up link, or an account on this machine, makes the first one"
    return warn(
        "setup", what, "llamaman users create NAME --role admin, or open what 'llamaman setup-link' prints"
    )


def _unlisted_args(live: Live) -> Finding:
    if not live.unlisted_args:
        return ok("unlisted-args", "extra arguments hold known flags only")
    what = "whoever may launch may also give engines flags that LlamaMan does not know (launch.allow_unlisted_args)"
    return warn("unlisted-args", what, "llamaman settings set launch.allow_unlisted_args false")


def _keys(keys: Sequence[KeyRecord]) -> Finding:
    lasting = [key for key in keys if key.scope is Scope.ADMIN and key.expires is None]
    if not lasting:
        return ok("keys", f"{len(keys)} keys; none is an admin's for ever")
    names = _some([f"'{key.name}' ({key.id})" for key in lasting])
    what = f"{len(lasting)} keys may do everything and never expire: {names}"
    cure = "make one with --expires or a smaller --scope instead, then: llamaman keys revoke ID"
    return warn("keys", what, cure)


def _people(live: Live, now: float) -> Finding:
    able = [person for person in live.people if not person.disabled]
    idle = [person for person in able if _is_idle(person, live.started_at, now)]
    if idle:
        what = f"{len(idle)} users did not log in for {IDLE_DAYS} days: {_some([person.name for person in idle])}"
        return warn("users", what, "llamaman users disable NAME, or rm NAME, for those who are gone")
    if now - live.started_at < _IDLE_S and any(person.last_login is None for person in able):
        days = int((now - live.started_at) // 86400)
        return skip(
            "users", f"who logs in is known since the manager's start {days} days ago, and {IDLE_DAYS} count"
        )
    return ok("users", f"each of {len(able)} users logged in within {IDLE_DAYS} days")


def _is_idle(person: Person, started_at: float, now: float) -> bool:
    """Nobody logged in, as far as the manager can know: what was before its start it does not."""
    last = person.last_login if person.last_login is not None else max(person.created, started_at)
    return now - last > _IDLE_S


def _first_credentials(config: Config, live: Live | None) -> list[Finding]:
    """What set up the first user and key is of no use any more once they exist, and readable in the environment."""
    found = []
    for variable, value, used in (
        ("LLAMAMAN_ADMIN_PASSWORD", config.admin_password, live is not None and bool(live.people)),
        ("LLAMAMAN_BOOTSTRAP_API_KEY", config.bootstrap_api_key, live is not None and bool(live.keys)),
    ):
        if value is None:
            continue
        state = "has done its work and is still set" if used else "is set"
        what = f"{variable} {state}: whoever may read the service's environment or its file knows it"
        found.append(
            warn("first-credentials", what, f"remove {variable} (or {variable}_FILE) once the manager ran")
        )
    return found or [ok("first-credentials", "no first password or key is left in the environment")]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
