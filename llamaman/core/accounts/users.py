"""The users of this installation: kept in memory, changed through the store in one step each.

Read by the use cases in ``accounts.py`` and by REST. Every change rewrites a marker document together with the
user, at the version that was read: so whatever is decided from the whole list (the first user, the last
administrator, how many there may be) holds over threads and nodes alike.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeAlias

from llamaman.core.accounts.user_record import StoredUser, User, from_document, to_document, user_id
from llamaman.core.store import Delete, Documents, Operation, Put, Store
from llamaman.errors import Conflict, NotFound, StoreCorrupt, VersionConflict

COLLECTION = "users"

#: Says that this installation began here, and whether it ever had a user. No user's key starts without the prefix.
MARKER = "marker"
_PREFIX = "user/"

#: What else the kernel and the library keep: none of it can exist before the marker does.
_OTHERS = ("instances", "downloads", "presets", "settings", "api_keys", "sessions")

_ATTEMPTS = 8

_CURE = (
    "Users are never made anew over existing state, since whoever came first could then take it over. "
    "Restore DATA_DIR (or this collection) from a backup, or start with an empty DATA_DIR"
)

StoredUsers: TypeAlias = Mapping[str, StoredUser]
#: What a change writes: a user to store, or the id of one to delete.
Change: TypeAlias = StoredUser | str
Decide: TypeAlias = Callable[[StoredUsers], Sequence[Change]]


class Users:
    """All users. Reading takes no lock and never leaves memory; :meth:`commit` and :meth:`refresh` use the store.

    :param clock: epoch seconds.
    :raises StoreCorrupt: the users of an installation that has other state are gone or cannot be read.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._writing = threading.Lock()
        self._users: StoredUsers = MappingProxyType({})
        self._marker = 0
        self._revision = 0
        self._last_login: dict[str, float] = {}
        with self._writing:
            self._load()

    # --- reading -------------------------------------------------------------------------------------

    def list(self) -> tuple[User, ...]:
        """Every user, oldest first."""
        users = sorted(self._users.values(), key=lambda stored: (stored.user.created, stored.user.id))
        return tuple(self._shown(stored) for stored in users)

    def get(self, name: str) -> User:
        """One user by name or id, in any spelling of it.

        :raises NotFound: no such user.
        """
        return self._shown(self.stored(name))

    def exists(self) -> bool:
        """Whether there is any user."""
        return bool(self._users)

    def find(self, identifier: str) -> StoredUser | None:
        """A user by id, for this package."""
        return self._users.get(identifier)

    def stored(self, name: str) -> StoredUser:
        """A user by name, for this package.

        :raises NotFound: no such user.
        """
        found = self._users.get(user_id(name))
        if found is None:
            raise NotFound(f"no user is called '{name[:128]}'; 'llamaman users list' shows them")
        return found

    def saw_login(self, identifier: str) -> None:
        """Remember when a user logged in; in memory only."""
        self._last_login[identifier] = self._clock()

    # --- changing ------------------------------------------------------------------------------------

    def commit(self, decide: Decide) -> None:
        """Carry out what ``decide`` returns for the users as they are, all of it or nothing.

        ``decide`` is called again when another node changed a user meanwhile; it raises to refuse.

        :raises Conflict: others kept changing users.
        """
        with self._writing:
            for _ in range(_ATTEMPTS):
                changes = decide(self._users)
                if not changes:
                    return
                operations: list[Operation] = [
                    Put(MARKER, {"had_user": True, "changed": self._clock()}, expected=self._marker)
                ]
                for change in changes:
                    if isinstance(change, str):
                        operations.append(Delete(_PREFIX + change))
                    else:
                        operations.append(Put(_PREFIX + change.user.id, to_document(change)))
                try:
                    versions = self._store.batch(COLLECTION, operations)
                except VersionConflict:
                    self._load()
                    continue
                self._marker = versions[0]
                self._apply(changes)
                return
        raise Conflict("users are being changed elsewhere at the same time; try again")

    def refresh(self) -> None:
        """Read every user from the store again.

        :raises StoreCorrupt: they are gone or cannot be read; those known so far stay.
        """
        with self._writing:
            changes = self._store.watch(COLLECTION, self._revision)
            if changes.resync or changes.changed or changes.deleted:
                self._load()
                self._revision = changes.revision

    # --- inside --------------------------------------------------------------------------------------

    def _shown(self, stored: StoredUser) -> User:
        return replace(stored.user, last_login=self._last_login.get(stored.user.id))

    def _apply(self, changes: Sequence[Change]) -> None:
        users = dict(self._users)
        for change in changes:
            if isinstance(change, str):
                users.pop(change, None)
                self._last_login.pop(change, None)
            else:
                users[change.user.id] = change
        self._users = MappingProxyType(users)

    def _load(self) -> None:
        for _ in range(_ATTEMPTS):
            documents = self._store.list(COLLECTION)
            marker = next((document for document in documents if document.key == MARKER), None)
            users = _read(documents)
            if self._users and not users:
                raise StoreCorrupt(f"the store's collection '{COLLECTION}' has lost its users. {_CURE}")
            if marker is not None:
                if not users and _had_user(marker.value):
                    raise StoreCorrupt(f"the store's collection '{COLLECTION}' has lost its users. {_CURE}")
                self._marker, self._users = marker.version, users
                return
            if not users:
                self._refuse_other_state()
            try:
                self._store.put(
                    COLLECTION, MARKER, {"had_user": bool(users), "changed": self._clock()}, expected=0
                )
            except VersionConflict:
                continue  # another node starts at the same moment; its marker serves
        raise StoreCorrupt(f"the store's collection '{COLLECTION}' does not keep its marker. {_CURE}")

    def _refuse_other_state(self) -> None:
        for name in _OTHERS:
            if self._store.list(name):
                raise StoreCorrupt(
                    f"the store's collection '{COLLECTION}' is missing although '{name}' is not empty. {_CURE}"
                )


def _read(documents: Documents) -> StoredUsers:
    users = {}
    for document in documents:
        if document.key == MARKER:
            continue
        try:
            stored = from_document(document.value)
            if document.key != _PREFIX + stored.user.id:
                raise ValueError("it is stored under another name")
        except ValueError as error:
            raise StoreCorrupt(
                f"'{document.key}' of the store's collection '{COLLECTION}' cannot be read ({error}). {_CURE}"
            ) from error
        users[stored.user.id] = stored
    return MappingProxyType(users)


def _had_user(value: object) -> bool:
    return not isinstance(value, Mapping) or value.get("had_user") is not False
