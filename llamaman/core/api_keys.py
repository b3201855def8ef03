"""API keys: made, found, revoked. Read by whoever asks "which key is this?" (front door and Flask alike).

A key is 256 random bits, so its SHA-256 is stored without salt or stretching, and finding it is one
dictionary look-up in memory. The key itself leaves this module once, in the answer that created it.
``last_used`` lives in memory only; a request never writes to the store.
"""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from llamaman.access import OPENS, Scope
from llamaman.core.key_record import (
    DEFAULT_NAME,
    KeyRecord,
    checked_expiry,
    checked_models,
    checked_name,
    checked_scope,
    digest_of,
    from_document,
    iso,
    to_document,
)
from llamaman.errors import (
    ConfigError,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    Unauthorized,
    VersionConflict,
)
from llamaman.limits import KEYS
from llamaman.records import NOBODY, Identity

if TYPE_CHECKING:
    from llamaman.core.events import Events
    from llamaman.core.store import Store

log = logging.getLogger(__name__)

COLLECTION = "api_keys"

#: How every key of ours begins.
PREFIX = "llm-"
_BOOTSTRAP = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{32,}}")


def is_placeholder(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request presents something that was never a key of ours.

    Many clients cannot be set up without a key, and their manuals say to type anything ("ollama", "sk-none").
    """
    key = presented_key(headers)
    return key is not None and not key.startswith(PREFIX)


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The API key in a request's headers: ``Authorization: Bearer`` or ``X-Api-Key``, nothing else.

    Another Authorization scheme (a reverse proxy's Basic, say) presents no API key.

    :param headers: names in lower case, as ASGI gives them.
    :raises InvalidRequest: two different keys.
    """
    found: set[str] = set()
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.partition(b" ")
            if scheme.lower() != b"bearer":
                continue
            key = rest.strip()
        elif name == b"x-api-key":
            key = value.strip()
        else:
            continue
        if key:
            found.add(key.decode("latin-1"))
    if len(found) > 1:
        raise InvalidRequest("two different API keys in one request; send one, as 'Authorization: Bearer'")
    return found.pop() if found else None


class Keys:
    """The API keys of this installation.

    Reading (``authenticate``) takes no lock: it looks at a dictionary that writers replace as a whole.

    :param events: told about every created and revoked key, with its actor; None in tests.
    :param clock: epoch seconds.
    """

    def __init__(
        self, store: Store, events: Events | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._events = events
        self._clock = clock
        self._writing = threading.Lock()
        self._by_digest: Mapping[str, KeyRecord] = MappingProxyType({})
        self._by_id: Mapping[str, KeyRecord] = MappingProxyType({})
        self._last_used: dict[str, float] = {}
        self._identities: dict[str, Identity] = {}
        self._subscribers: list[Callable[[str], None]] = []
        self.refresh()

    # --- reading -------------------------------------------------------------------------------------

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Identity:
        """The caller of a request; NOBODY when it presents no key.

        A key that is not known, or has expired, is refused also where no key is needed; :func:`is_placeholder`
        tells those apart that clients send for want of one.

        :raises Unauthorized: "Invalid API key".
        """
        key = presented_key(headers)
        if key is None:
            return NOBODY
        record = self._by_digest.get(digest_of(key))
        if record is None or self._is_over(record):
            raise Unauthorized("Invalid API key")
        self._last_used[record.id] = self._clock()
        identity = self._identities.get(record.id)
        if identity is None:  # made once per key, not per request; ids are never used again
            identity = self._identities[record.id] = record.identity()
        return identity

    def list(self) -> tuple[KeyRecord, ...]:
        """Every key that is not revoked, oldest first; expired ones are in it."""
        return tuple(sorted(self._by_digest.values(), key=lambda record: (record.created, record.id)))

    def get(self, key_id: str) -> KeyRecord:
        """One key by its id.

        :raises NotFound: no such key.
        """
        record = self._by_id.get(key_id)
        if record is None:
            raise NotFound(f"no API key has the id '{key_id}'; 'llamaman keys list' shows them")
        return record

    def is_live(self, identity: Identity) -> bool:
        """Whether a caller that was authenticated before still counts: its key is neither revoked nor over."""
        if identity.key_id is None:
            return True
        record = self._by_id.get(identity.key_id)
        return record is not None and not self._is_over(record)

    def last_used(self, key_id: str) -> float | None:
        """Epoch seconds of its last request since this manager started, None when there was none."""
        return self._last_used.get(key_id)

    # --- changing ------------------------------------------------------------------------------------

    def create(
        self,
        name: str = DEFAULT_NAME,
        scope: Scope | str | None = None,
        models: Sequence[str] | None = None,
        expires: str | float | None = None,
        *,
        by: Identity,
    ) -> tuple[KeyRecord, str]:
        """Make a key and return its record and, this once, the key itself.

        :param scope: None means ``manage``, as keys of the original do.
        :param expires: ISO-8601 (without an offset: UTC) or epoch seconds; None for never.
        :raises InvalidField: naming name, scope, models or expires.
        :raises Forbidden: more than ``by`` holds. :raises Conflict: too many keys.
        """
        key = PREFIX + secrets.token_urlsafe(32)
        record = KeyRecord(
            id=secrets.token_hex(8),
            name=checked_name(name),
            prefix=key[:8],
            digest=digest_of(key),
            scope=checked_scope(scope),
            models=checked_models(models),
            created=self._clock(),
            expires=checked_expiry(expires, self._clock()),
            created_by=by.actor,
        )
        self._refuse_more_than(by, record)
        with self._writing:
            if len(self._by_digest) >= KEYS:
                raise Conflict(f"there are {KEYS} API keys already; revoke some before making another")
            self._store.put(COLLECTION, record.id, to_document(record), expected=0)
            self._replace([*self._by_digest.values(), record])
        self._publish("created", record, by.actor, "an API key was created")
        return record, key

    def revoke(self, key_id: str, by: Identity) -> None:
        """End a key: refused from the next request on, and its open streams are ended by the subscribers.

        :raises NotFound: no such key.
        """
        with self._writing:
            record = self.get(key_id)
            if record.bootstrap:
                # A tombstone: the variable may still be set, and the next boot must not revive the key.
                self._store.put(COLLECTION, key_id, {**to_document(record), "revoked": self._clock()})
            else:
                self._store.delete(COLLECTION, key_id)
            self._replace([kept for kept in self._by_digest.values() if kept.id != key_id])
        self._last_used.pop(key_id, None)
        self._tell(key_id)
        self._publish("revoked", record, by.actor, "an API key was revoked")

    def ensure_bootstrap(self, key: str | None) -> None:
        """Take over LLAMAMAN_BOOTSTRAP_API_KEY with inference scope, while no key exists.

        :raises ConfigError: it is weaker than the keys we make; the message does not repeat it.
        """
        if not key or self._by_digest:
            return
        if not _BOOTSTRAP.fullmatch(key):
            raise ConfigError(
                "LLAMAMAN_BOOTSTRAP_API_KEY is not 'llm-' and at least 32 letters, digits, '-' or '_'; "
                "make one with: python3 -c \"import secrets; print('llm-' + secrets.token_urlsafe(32))\""
            )
        digest = digest_of(key)
        record = KeyRecord(
            id=digest[:16],
            name="bootstrap",
            prefix=key[:8],
            digest=digest,
            scope=Scope.INFERENCE,
            models=None,
            created=self._clock(),
            expires=None,
            created_by="environment",
            bootstrap=True,
        )
        try:
            self._store.put(COLLECTION, record.id, to_document(record), expected=0)
        except VersionConflict:
            # Either another node stored it first, or it was revoked; reading again tells which.
            self.refresh()
            if digest not in self._by_digest:
                log.warning("LLAMAMAN_BOOTSTRAP_API_KEY was revoked before and stays so; unset the variable")
            return
        with self._writing:
            self._replace([*self._by_digest.values(), record])
        self._publish("created", record, "environment", "LLAMAMAN_BOOTSTRAP_API_KEY was taken over")

    def refresh(self) -> None:
        """Read every key from the store again; keys that another node revoked end here too."""
        with self._writing:
            before = {record.id for record in self._by_digest.values()}
            records = [
                from_document(document.value)
                for document in self._store.list(COLLECTION)
                if not document.value.get("revoked")
            ]
            self._replace(records)
        for key_id in before - {record.id for record in records}:
            self._tell(key_id)

    def on_revoke(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call ``callback(key_id)``, in the revoking thread, for every revoked key; returns the way out."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    # --- inside --------------------------------------------------------------------------------------

    def _replace(self, records: Sequence[KeyRecord]) -> None:
        self._by_id = MappingProxyType({record.id: record for record in records})
        self._by_digest = MappingProxyType({record.digest: record for record in records})

    def _is_over(self, record: KeyRecord) -> bool:
        return record.expires is not None and record.expires <= self._clock()

    def _tell(self, key_id: str) -> None:
        for callback in tuple(self._subscribers):
            try:
                callback(key_id)
            except Exception:  # the key is revoked already; one deaf subscriber must not hide that
                log.exception("a subscriber failed on the revocation of key %s", key_id)

    def _publish(self, kind: str, record: KeyRecord, actor: str, reason: str) -> None:
        if self._events is not None:
            data = {"id": record.id, "name": record.name, "scope": record.scope.value}
            self._events.publish("keys", kind, data, actor=actor, reason=reason)

    def _refuse_more_than(self, by: Identity, wanted: KeyRecord) -> None:
        if by.scope is None or not OPENS[wanted.scope] <= OPENS[by.scope]:
            held = f"'{by.scope.value}'" if by.scope else "none"
            raise Forbidden(f"a key with scope '{wanted.scope.value}' is more than you hold (scope {held})")
        if by.models is not None and (wanted.models is None or not wanted.models <= by.models):
            raise Forbidden(f"your key is limited to {', '.join(sorted(by.models))}; so are keys it makes")
        mine = self.get(by.key_id).expires if by.key_id else None
        if mine is not None and (wanted.expires is None or wanted.expires > mine):
            raise Forbidden(f"your key expires at {iso(mine)}; a key it makes cannot outlive it")
