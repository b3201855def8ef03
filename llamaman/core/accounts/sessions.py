"""Sessions: found in memory, ended at once, written behind. Read by the gate for every request with a cookie.

A session counts while its document exists, its user is enabled and unchanged since (same generation), and its
time is not over. The records are one mapping that writers replace as a whole, so the event loop reads without
a lock. What ended here stays ended even if the store cannot be written: the deletion is tried again.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from llamaman.core.accounts.session_record import (
    Opened,
    Session,
    digest_of,
    from_document,
    is_over,
    shown_agent,
    to_document,
)
from llamaman.core.accounts.user_record import StoredUser
from llamaman.core.accounts.users import Users
from llamaman.core.events import Events
from llamaman.core.secrets import RootSecret
from llamaman.core.store import Delete, Document, Put, Store
from llamaman.errors import LlamaManError, NotFound, Unauthorized, VersionConflict
from llamaman.limits import SESSION_LONGEST_S, SESSIONS_PER_USER, SUDO_S
from llamaman.records import Identity

log = logging.getLogger(__name__)

COLLECTION = "sessions"

#: A session whose user is unknown here may be newer than what we know of the users; after this many seconds it is not.
_ORPHAN_S = 3600.0


@dataclass(frozen=True, slots=True)
class _Kept:
    """A session as the store has it, and the version at which it does."""

    session: Session
    version: int


def _csrf(key: bytes, kind: str, value: str) -> str:
    return hmac.new(key, f"{kind}|{value}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _read(document: Document) -> _Kept | None:
    try:
        return _Kept(from_document(document.key, document.value), document.version)
    except ValueError as error:  # it was a login once; the worst that losing it costs is another one
        log.warning("a stored session cannot be read and does not count: %s", error)
        return None


class Sessions:
    """See the module's docstring.

    :param events: told of every session that ends; None in tests.
    :param clock: epoch seconds.
    """

    def __init__(
        self,
        store: Store,
        users: Users,
        events: Events | None = None,
        *,
        root: RootSecret,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._users = users
        self._events = events
        self._clock = clock
        self._key = root.derive("csrf")
        self._writing = threading.Lock()  # held over the store
        self._swapping = threading.Lock()  # held over memory only: the event loop may take it
        self._kept: Mapping[str, _Kept] = MappingProxyType({})
        self._digests: Mapping[str, str] = MappingProxyType({})
        self._revision = 0
        self._seen: dict[str, float] = {}
        self._identities: dict[str, Identity] = {}
        self._confirmed: dict[str, float] = {}
        self._to_delete: set[str] = set()
        self._subscribers: list[Callable[[str], None]] = []
        self.refresh()

    # --- reading: memory only ------------------------------------------------------------------------

    def authenticate(self, values: Sequence[str]) -> Identity | None:
        """The session that a request's cookies stand for; None when none of them does.

        :raises Unauthorized: two live sessions: one of them was planted, and nobody can tell which. Both end.
        """
        now = self._clock()
        live: dict[str, _Kept] = {}
        for value in values:
            kept = self._kept.get(digest_of(value))
            if kept is not None and self._counts(kept.session, now):
                live[kept.session.digest] = kept
        if not live:
            return None
        if len(live) > 1:
            self._end_in_memory(live, actor="none", reason="two live sessions came in one request")
            threading.Thread(target=self._delete_quietly, name="llamaman-sessions", daemon=True).start()
            raise Unauthorized("two sessions in one request; both were ended, log in again")
        [(digest, kept)] = live.items()
        self._seen[digest] = now
        identity = self._identities.get(digest)
        if identity is None:
            stored = self._users.find(kept.session.user)
            if stored is None:  # deleted between two lines
                return None
            identity = self._identities[digest] = stored.identity(kept.session.id)
        return identity

    def is_live(self, identity: Identity) -> bool:
        """Whether a caller that was authenticated before still counts; callers without a session do."""
        if identity.session is None:
            return True
        session = self._find(identity.session)
        return session is not None and self._counts(session, self._clock())

    def csrf_token(self, session_id: str) -> str:
        """What a changing request of this session must carry.

        :raises Unauthorized: it has ended.
        """
        session = self._find(session_id)
        if session is None:
            raise Unauthorized("this session has ended; log in again")
        return _csrf(self._key, "session", session.digest)

    def presession_csrf(self, value: str) -> str:
        """What a form must hold that was shown with this pre-session cookie."""
        return _csrf(self._key, "pre-session", value)

    def is_confirmed(self, session_id: str) -> bool:
        """Whether its user gave the password lately."""
        return self.confirmed_until(session_id) is not None

    def confirmed_until(self, session_id: str) -> float | None:
        """Epoch seconds until which sensitive actions are open; None when they are not."""
        until = self._confirmed.get(session_id)
        return until if until is not None and self._clock() < until else None

    def list(self, user: str | None = None) -> tuple[Session, ...]:
        """Live sessions, oldest first; of one user (by id) or of all."""
        now = self._clock()
        sessions = (kept.session for kept in self._kept.values())
        found = [
            replace(session, last_seen=self._last_seen(session))
            for session in sessions
            if (user is None or session.user == user) and self._counts(session, now)
        ]
        return tuple(sorted(found, key=lambda session: (session.created, session.id)))

    def get(self, session_id: str) -> Session:
        """One live session by its public id.

        :raises NotFound: there is none, or it has ended.
        """
        session = self._find(session_id)
        if session is None or not self._counts(session, self._clock()):
            raise NotFound(f"no session has the id '{session_id[:64]}'; it may have ended")
        return replace(session, last_seen=self._last_seen(session))

    def on_end(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call ``callback(public id)``, in any thread, for every session that ends; returns the way out."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    # --- changing ------------------------------------------------------------------------------------

    def open(self, stored: StoredUser, *, address: str | None, agent: str) -> Opened:
        """[store] A new session; the user's oldest one ends when there are too many."""
        now = self._clock()
        secret = secrets.token_urlsafe(32)
        digest = digest_of(secret)
        session = Session(
            id=digest[:16],
            digest=digest,
            user=stored.user.id,
            created=now,
            last_seen=now,
            expires=now + SESSION_LONGEST_S,
            address=address,
            agent=shown_agent(agent),
            generation=stored.generation,
        )
        with self._writing:
            version = self._store.put(COLLECTION, digest, to_document(session), expected=0)
            with self._swapping:
                self._replace({**self._kept, digest: _Kept(session, version)})
        mine = [other.digest for other in self.list(stored.user.id)]
        surplus = mine[: max(0, len(mine) - SESSIONS_PER_USER)]
        if surplus:
            self._end_in_memory(surplus, actor="system", reason=f"more than {SESSIONS_PER_USER} sessions")
            self._delete()
        return Opened(session, secret)

    def end(self, session_id: str, *, by: Identity, reason: str) -> None:
        """[store] End one session.

        :raises NotFound: there is none.
        :raises StoreError: it has ended, but would live again after a restart; the deletion is tried again.
        """
        digest = self.get(session_id).digest
        self._end_in_memory([digest], actor=by.actor, reason=reason)
        self._delete()

    def end_of_user(self, user: str, *, by: Identity, reason: str) -> int:
        """[store] End all sessions of a user (by id) and return how many."""
        with self._swapping:
            mine = [kept.session.digest for kept in self._kept.values() if kept.session.user == user]
        ended = self._end_in_memory(mine, actor=by.actor, reason=reason)
        self._delete()
        return ended

    def confirm(self, session_id: str) -> float:
        """Open sensitive actions for a while; returns until when (epoch seconds)."""
        until = self._clock() + SUDO_S
        self._confirmed[session_id] = until
        return until

    def flush(self) -> None:
        """[store] Write when sessions were last seen, and delete those that are over. Called by a job."""
        self.refresh()  # somebody may have used a session at another node
        now = self._clock()
        over = [digest for digest, kept in self._kept.items() if self._is_waste(kept.session, now)]
        self._end_in_memory(over, actor="system", reason="its time was over")
        self._delete()
        for _ in range(2):
            try:
                self._write_last_seen()
                return
            except VersionConflict:  # another node wrote or ended one of them
                self.refresh()
        log.info("when sessions were last seen is written with the next round")

    def refresh(self) -> None:
        """[store] Take in sessions that other nodes began and ended. Cheap when nothing changed."""
        with self._writing:
            changes = self._store.watch(COLLECTION, self._revision)
            self._revision = changes.revision
            read = {document.key: _read(document) for document in changes.changed}
            if read or changes.deleted or changes.resync:
                with self._swapping:
                    kept = {} if changes.resync else dict(self._kept)
                    for digest, one in read.items():
                        if one is not None and digest not in self._to_delete:
                            kept[digest] = one
                    for digest in changes.deleted:
                        kept.pop(digest, None)
                    self._replace(kept)
        self._end_what_changed_elsewhere()

    # --- inside --------------------------------------------------------------------------------------

    def _find(self, session_id: str) -> Session | None:
        kept = self._kept.get(self._digests.get(session_id, ""))
        return kept.session if kept else None

    def _last_seen(self, session: Session) -> float:
        return max(session.last_seen, self._seen.get(session.digest, 0.0))

    def _counts(self, session: Session, now: float) -> bool:
        return self._is_of_user(session) and not is_over(session, self._last_seen(session), now)

    def _is_of_user(self, session: Session) -> bool:
        """Whether its user may be logged in and has not changed since."""
        stored = self._users.find(session.user)
        return stored is not None and not stored.user.disabled and stored.generation == session.generation

    def _is_waste(self, session: Session, now: float) -> bool:
        if self._counts(session, now):
            return False
        return is_over(session, self._last_seen(session), now) or session.created + _ORPHAN_S < now

    def _replace(self, kept: Mapping[str, _Kept]) -> None:
        """Called with ``_swapping`` held."""
        self._digests = MappingProxyType({one.session.id: digest for digest, one in kept.items()})
        self._kept = MappingProxyType(dict(kept))

    def _end_in_memory(self, digests: Iterable[str], *, actor: str, reason: str) -> int:
        with self._swapping:
            kept = dict(self._kept)
            ended = [found.session for digest in digests if (found := kept.pop(digest, None))]
            self._to_delete.update(session.digest for session in ended)
            self._replace(kept)
        for session in ended:
            self._forget(session.digest)
            if self._events is not None:
                data = {"id": session.id, "user": session.user, "address": session.address}
                self._events.publish("sessions", "ended", data, actor=actor, reason=reason)
        return len(ended)

    def _end_what_changed_elsewhere(self) -> None:
        """Sessions that were used here, and that another node deleted or whose user it changed."""
        used = tuple(self._seen)
        for digest in used:
            if digest not in self._kept:
                self._forget(digest)
        dead = [
            digest
            for digest in used
            if (kept := self._kept.get(digest)) and not self._is_of_user(kept.session)
        ]
        if dead:
            self._end_in_memory(dead, actor="system", reason="its user was changed or deleted")

    def _forget(self, digest: str) -> None:
        session_id = digest[:16]
        self._seen.pop(digest, None)
        self._identities.pop(digest, None)
        self._confirmed.pop(session_id, None)
        for callback in tuple(self._subscribers):
            try:
                callback(session_id)
            except Exception:  # the session has ended already; one deaf subscriber must not hide that
                log.exception("a subscriber failed on the end of session %s", session_id)

    def _delete(self) -> None:
        """Delete from the store what ended in memory."""
        with self._writing:
            with self._swapping:
                digests = tuple(self._to_delete)
            if digests:
                self._store.batch(COLLECTION, [Delete(digest) for digest in digests])
                with self._swapping:
                    self._to_delete.difference_update(digests)

    def _delete_quietly(self) -> None:
        try:
            self._delete()
        except LlamaManError as error:
            log.warning("ended sessions are not deleted yet, which is tried again: %s", error.message)

    def _write_last_seen(self) -> None:
        with self._writing:
            later = [
                (kept, seen)
                for digest, kept in self._kept.items()
                if (seen := self._seen.get(digest, 0.0)) > kept.session.last_seen
            ]
            if not later:
                return
            sessions = [replace(kept.session, last_seen=seen) for kept, seen in later]
            # At the version that is known: a session that another node has deleted must not come back.
            versions = self._store.batch(
                COLLECTION,
                [
                    Put(session.digest, to_document(session), expected=kept.version)
                    for session, (kept, _) in zip(sessions, later, strict=True)
                ],
            )
            with self._swapping:
                kept_now = dict(self._kept)
                for session, version in zip(sessions, versions, strict=True):
                    if session.digest in kept_now:
                        kept_now[session.digest] = _Kept(session, version)
                self._replace(kept_now)
