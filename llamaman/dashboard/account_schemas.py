"""JSON Schemas of users, sessions and callers, as ``shapes.py`` makes them. Read by the views' ``@operation``."""

from __future__ import annotations

from typing import Final

from llamaman.access import Role, Scope
from llamaman.dashboard.answer_schemas import COUNT, DATE, DONE, FLAG, TEXT, maybe, record, words

_ROLE: Final = words(*(role.value for role in Role))

USER: Final = record(
    "User",
    name=TEXT,
    role=_ROLE,
    disabled=FLAG,
    created_at=DATE,
    password_changed_at=DATE,
    last_login_at=maybe(DATE),
    sessions=COUNT,
)

SESSION: Final = record(
    "Session",
    id=TEXT,
    user=TEXT,
    created_at=DATE,
    last_seen_at=DATE,
    expires_at=DATE,
    address=maybe(TEXT),
    agent=TEXT,
    current=FLAG,
)

ME: Final = record(
    "Me",
    kind=words("key", "session", "local", "node"),
    name=TEXT,
    role=maybe(_ROLE),
    scope=maybe(words(*(scope.value for scope in Scope))),
    session=maybe(TEXT),
    csrf_token=maybe(TEXT),
    sudo_until=maybe(DATE),
)

ENDED: Final = record("Ended", ok=DONE["properties"]["ok"], ended=COUNT)
CONFIRMED: Final = record("Confirmed", sudo_until=DATE)
NEW_SESSION: Final = record("NewSession", ok=DONE["properties"]["ok"], session=TEXT, csrf_token=TEXT)
SETUP_LINK: Final = record("SetupLink", link=maybe(TEXT))
