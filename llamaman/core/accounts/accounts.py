"""What people do with accounts: set up, log in, confirm, change passwords, manage users. Read by Flask and the boot.

Everything here may block on the store and on a password's hash (0.2 s), so nothing of it runs on the event
loop; :attr:`Accounts.sessions` has what the loop asks. No password, secret or hash leaves in an event, an
error or a ``repr``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamaman.access import Role
from llamaman.core.accounts.account_events import tell_session, tell_user
from llamaman.core.accounts.hasher import Hasher, is_outdated
from llamaman.core.accounts.password_rules import check_password
from llamaman.core.accounts.proof import Proof, account_of
from llamaman.core.accounts.session_record import Opened, Session
from llamaman.core.accounts.sessions import Sessions
from llamaman.core.accounts.setup_code import SetupCode
from llamaman.core.accounts.throttle import Throttle
from llamaman.core.accounts.user_record import StoredUser, User, checked_role, checked_user_name, user_id
from llamaman.core.accounts.user_rules import (
    new_user,
    refuse_more_than,
    refuse_no_admin,
    refuse_taken,
    renewed,
)
from llamaman.core.accounts.users import Change, StoredUsers, Users
from llamaman.core.events import Events
from llamaman.core.secrets import RootSecret
from llamaman.core.store import Store
from llamaman.errors import (
    ConfigError,
    Conflict,
    Forbidden,
    InvalidField,
    LlamaManError,
    NotFound,
    StoreError,
    SudoRequired,
    Unauthorized,
)
from llamaman.limits import USERS
from llamaman.records import NOBODY, Identity

__all__ = ["Accounts", "Opened"]

log = logging.getLogger(__name__)

_EXISTS = "a user exists already; log in instead"


class Accounts:
    """See the module's docstring. Thread-safe.

    To be made before anything else of a first boot writes to the store: users are never made over existing state.

    :param clock: epoch seconds.
    :param hasher: another one in tests.
    :raises StoreCorrupt: users are gone although there is other state, or cannot be read.
    """

    def __init__(
        self,
        store: Store,
        events: Events,
        *,
        root: RootSecret,
        install_id: str,
        data_dir: Path,
        clock: Callable[[], float] = time.time,
        hasher: Hasher | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        self.install_id = install_id
        self.users = Users(store, clock=clock)
        self.sessions = Sessions(store, self.users, events, root=root, clock=clock)
        self.setup = SetupCode(data_dir, needed=not self.users.exists())
        self._events = events
        self._clock = clock
        self._hasher = hasher or Hasher()
        self._proof = Proof(self.users, self._hasher, throttle or Throttle(time.monotonic))
        self._setting_up = threading.Lock()

    # --- coming in -----------------------------------------------------------------------------------

    def login(
        self, name: str, password: str, *, address: str | None, agent: str = "", previous: str | None = None
    ) -> Opened:
        """A new session for whoever knows the password.

        :param previous: public id of the session that the browser had; it ends.
        :raises Unauthorized: unknown, disabled, or a wrong password: all the same to the caller.
        :raises TooManyRequests: after failures, or while too many passwords are being checked.
        """
        account = account_of(name)
        known = self.users.find(account)
        try:
            stored = self._proof.of(known, account, password, address=address)
        except Unauthorized:
            tell_session(self._events, "login_failed", known, NOBODY, "a login failed", address=address)
            raise
        if previous is not None:
            self._end_quietly(previous, by=stored.identity(previous))
        return self._logged_in(self._with_current_hash(stored, password), address=address, agent=agent)

    def set_up(
        self,
        name: str,
        password: str,
        *,
        code: str | None,
        owns_machine: bool,
        address: str | None,
        agent: str = "",
    ) -> Opened:
        """Make the first user, an administrator, and log them in.

        :param owns_machine: the caller runs as our own account on this machine and needs no code.
        :raises Conflict: there is a user. :raises Forbidden: a wrong code or none.
        :raises TooManyRequests: too many wrong codes. :raises InvalidField: naming name or password.
        """
        self._refuse_a_second_first()
        if not owns_machine:
            self.setup.check(code)
        name = checked_user_name(name)
        check_password(password, name)
        with self._setting_up:  # the password of one of many is hashed; the others find a user
            self._refuse_a_second_first()
            stored = self._make_first(name, password, created_by="setup")
        return self._logged_in(stored, address=address, agent=agent)

    def ensure_first(self, name: str, password: str | None) -> None:
        """Take over LLAMAMAN_ADMIN_USER and LLAMAMAN_ADMIN_PASSWORD while no user exists.

        :raises ConfigError: one of them is not what a form would take; the message does not repeat it.
        """
        if not password or self.users.exists():
            return
        try:
            name = checked_user_name(name)
            check_password(password, name)
        except InvalidField as error:
            variable = "LLAMAMAN_ADMIN_USER" if error.field == "name" else "LLAMAMAN_ADMIN_PASSWORD"
            raise ConfigError(f"{variable} cannot be used: {error.message}") from None
        try:
            self._make_first(name, password, created_by="environment")
        except Conflict:
            log.info("LLAMAMAN_ADMIN_PASSWORD is not used: another node has made the first user")

    # --- for oneself ---------------------------------------------------------------------------------

    def confirm(self, identity: Identity, password: str, *, address: str | None) -> float:
        """Open sensitive actions for this session, for SUDO_S; returns until when (epoch seconds).

        :raises Forbidden: the password is wrong, or the caller is no session.
        :raises TooManyRequests: as for a login.
        """
        session, stored = self._own(identity)
        self._prove_again(stored, password, identity, address)
        until = self.sessions.confirm(session.id)
        tell_session(
            self._events, "confirmed", stored, identity, "the password was confirmed", address=address
        )
        return until

    def change_password(
        self, identity: Identity, current: str, new: str, *, address: str | None, agent: str = ""
    ) -> Opened:
        """Set one's own password. Every session of the user ends; this browser goes on with a new one.

        :raises Forbidden: the current password is wrong, or the caller is no session.
        :raises InvalidField: naming new. :raises TooManyRequests: as for a login.
        """
        _, stored = self._own(identity)
        stored = self._prove_again(stored, current, identity, address)
        check_password(new, stored.user.name, "new")
        if new == current:
            raise InvalidField("new", "new is the password that you have; choose another one")
        password_hash = self._hasher.hash(new)

        def with_password(known: StoredUser) -> StoredUser:
            if known.generation != stored.generation:
                raise Conflict(f"user '{stored.user.name}' was changed meanwhile; log in and try again")
            return renewed(known, password_hash=password_hash, now=self._clock())

        changed = self._update(stored.user.id, with_password)
        self._end_all(changed, by=identity, reason="the password was changed")
        tell_user(
            self._events, "changed", changed, identity.actor, "a user changed their password", ["password"]
        )
        return self.sessions.open(changed, address=address, agent=agent)

    def require_sudo(self, identity: Identity) -> None:
        """Pass a session whose password was confirmed lately, and every caller that is no session.

        A key or a peer on the admin socket is no browser that somebody left open; its scope alone decides.

        :raises SudoRequired: the password must be confirmed first.
        :raises Unauthorized: nobody.
        """
        if identity.kind == "none":
            raise Unauthorized("log in first")
        if identity.kind == "session" and not self.sessions.is_confirmed(identity.session or ""):
            raise SudoRequired(
                "this needs your password again; confirm it with POST /api/me/sudo, then repeat"
            )

    # --- for others ----------------------------------------------------------------------------------

    def create_user(self, name: str, password: str, role: Role | str, *, by: Identity) -> User:
        """Make a user.

        :raises InvalidField: naming name, password or role. :raises Forbidden: more than ``by`` holds.
        :raises Conflict: the name is taken, or there are too many users.
        """
        name = checked_user_name(name)
        role = checked_role(role)
        refuse_more_than(by, role)
        check_password(password, name)
        refuse_taken(self.users.find(user_id(name)))
        stored = new_user(name, self._hasher.hash(password), role, created_by=by.actor, now=self._clock())

        def decide(users: StoredUsers) -> list[Change]:
            refuse_taken(users.get(stored.user.id))
            if len(users) >= USERS:
                raise Conflict(f"there are {USERS} users already; delete some before making another")
            return [stored]

        self.users.commit(decide)
        self.setup.retire()
        tell_user(self._events, "created", stored, by.actor, "a user was created")
        return self.users.get(name)

    def change_user(
        self,
        name: str,
        *,
        role: Role | str | None = None,
        disabled: bool | None = None,
        password: str | None = None,
        by: Identity,
    ) -> User:
        """Change what is given. Any change ends every session of the user.

        :raises NotFound: no such user. :raises InvalidField: naming role or password.
        :raises Forbidden: they hold, or would hold, more than ``by``. :raises Conflict: the last administrator.
        """
        stored = self.users.stored(name)
        fields: dict[str, Any] = {}
        if role is not None:
            fields["role"] = checked_role(role)
            refuse_more_than(by, fields["role"])
        if disabled is not None:
            fields["disabled"] = disabled
        password_hash = None
        if password is not None:
            check_password(password, stored.user.name)
            refuse_more_than(by, stored.user.role)
            password_hash = self._hasher.hash(password)
        told: list[str] = []
        was: dict[str, Any] = {}

        def changed_fields(known: StoredUser) -> StoredUser:
            refuse_more_than(by, known.user.role)
            different = {
                field: value for field, value in fields.items() if getattr(known.user, field) != value
            }
            was.clear()
            was.update((field, getattr(known.user, field)) for field in different)
            told[:] = [*different, *(["password"] if password_hash else [])]
            if not told:
                return known
            return renewed(known, password_hash=password_hash, now=self._clock(), **different)

        changed = self._update(stored.user.id, changed_fields)
        if told:
            what = f"{' and '.join(told)} of the user changed"
            self._end_all(changed, by=by, reason=what)
            tell_user(self._events, "changed", changed, by.actor, what, told, was)
        return self.users.get(changed.user.id)

    def delete_user(self, name: str, *, by: Identity) -> None:
        """Delete a user and end their sessions. Keys that they made stay: revoke those apart.

        :raises NotFound: no such user. :raises Forbidden: they hold more than ``by``.
        :raises Conflict: the last administrator.
        """
        stored = self.users.stored(name)

        def decide(users: StoredUsers) -> list[Change]:
            known = users.get(stored.user.id)
            if known is None:
                raise NotFound(f"no user is called '{stored.user.name}' any more")
            refuse_more_than(by, known.user.role)
            refuse_no_admin(known, None, users)
            return [known.user.id]

        self.users.commit(decide)
        self._end_all(stored, by=by, reason="the user was deleted")
        tell_user(self._events, "deleted", stored, by.actor, "a user was deleted")

    def refresh(self) -> None:
        """Take in what other nodes changed. Called by a job; cheap when nothing changed."""
        self.users.refresh()
        if self.users.exists():
            self.setup.retire()
        self.sessions.refresh()

    # --- proving -------------------------------------------------------------------------------------

    def _prove_again(
        self, known: StoredUser, password: str, identity: Identity, address: str | None
    ) -> StoredUser:
        try:
            return self._proof.of(known, known.user.id, password, address=address, logged_in=True)
        except Unauthorized:
            tell_session(
                self._events, "confirm_failed", known, identity, "a wrong password was given", address=address
            )
            raise Forbidden("the password is wrong") from None

    def _own(self, identity: Identity) -> tuple[Session, StoredUser]:
        if identity.session is None:
            raise Forbidden("only a user who is logged in can do this; an API key has no password")
        try:
            session = self.sessions.get(identity.session)
        except NotFound:
            raise Unauthorized("this session has ended; log in again") from None
        return session, self.users.stored(session.user)

    def _with_current_hash(self, stored: StoredUser, password: str) -> StoredUser:
        """The password is known for a moment, so an imported or weaker hash is replaced; the login goes on anyway."""
        if not is_outdated(stored.password_hash):
            return stored
        try:
            password_hash = self._hasher.hash(password)
            return self._update(
                stored.user.id,
                lambda known: (
                    replace(known, password_hash=password_hash)
                    if known.password_hash == stored.password_hash
                    else known
                ),
            )
        except LlamaManError as error:
            log.warning(
                "the password of '%s' keeps its old hash for now: %s", stored.user.name, error.message
            )
            return stored

    # --- storing -------------------------------------------------------------------------------------

    def _make_first(self, name: str, password: str, *, created_by: str) -> StoredUser:
        password_hash = self._hasher.hash(password)
        stored = new_user(name, password_hash, Role.ADMIN, created_by=created_by, now=self._clock())

        def decide(users: StoredUsers) -> list[Change]:
            if users:
                raise Conflict(_EXISTS)
            return [stored]

        self.users.commit(decide)
        self.setup.retire()
        tell_user(self._events, "created", stored, created_by, "the first user was created")
        return stored

    def _refuse_a_second_first(self) -> None:
        if self.users.exists():
            raise Conflict(_EXISTS)

    def _update(self, identifier: str, change: Callable[[StoredUser], StoredUser]) -> StoredUser:
        result: list[StoredUser] = []

        def decide(users: StoredUsers) -> list[Change]:
            known = users.get(identifier)
            if known is None:
                raise NotFound(f"no user is called '{identifier}' any more")
            changed = change(known)
            refuse_no_admin(known, changed, users)
            result[:] = [changed]
            return [] if changed == known else [changed]

        self.users.commit(decide)
        return result[0]

    def _logged_in(self, stored: StoredUser, *, address: str | None, agent: str) -> Opened:
        opened = self.sessions.open(stored, address=address, agent=agent)
        self.users.saw_login(stored.user.id)
        identity = stored.identity(opened.session.id)
        tell_session(self._events, "login", stored, identity, "a user logged in", address=address)
        return opened

    def _end_all(self, stored: StoredUser, *, by: Identity, reason: str) -> None:
        """The change of generation has ended them already; this tells subscribers and clears the store."""
        try:
            self.sessions.end_of_user(stored.user.id, by=by, reason=reason)
        except StoreError as error:
            log.warning(
                "dead sessions of '%s' stay in the store for now: %s", stored.user.name, error.message
            )

    def _end_quietly(self, session_id: str, *, by: Identity) -> None:
        try:
            self.sessions.end(session_id, by=by, reason="another login in the same browser")
        except NotFound:
            return  # it has ended by itself
        except StoreError as error:
            log.warning("session %s stays in the store for now: %s", session_id, error.message)
