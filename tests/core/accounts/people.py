"""What the tests of accounts share: people, a clock that the test moves, a store whose disk can be full."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llamaman.access import Role, Scope
from llamaman.core.accounts.accounts import Accounts, Opened
from llamaman.core.accounts.throttle import Throttle
from llamaman.core.accounts.user_record import StoredUser
from llamaman.core.accounts.user_rules import new_user
from llamaman.core.accounts.users import Users
from llamaman.core.events import Event, Events
from llamaman.core.secrets import RootSecret
from llamaman.core.store import Operation, Versions
from llamaman.errors import StoreReadOnly
from llamaman.records import Identity
from llamaman.testing.quick_hasher import QuickHasher
from llamaman_store_json import JsonStore

ROOT = RootSecret(b"r" * 32)
LOCAL = Identity("local", "uid:0", Scope.ADMIN)
ADDRESS = "192.0.2.7"

GOOD = "staple-battery-horse"
BETTER = "copper lantern meadow"

#: Of GOOD, as everybody's hasher here makes it.
GOOD_HASH = QuickHasher().hash(GOOD)


def scrypt_hash(password: str, n: int = 2**15) -> str:
    """A hash in the form that Werkzeug gives it."""
    digest = hashlib.scrypt(password.encode(), salt=b"salt", n=n, r=8, p=1, maxmem=2**26)
    return f"scrypt:{n}:8:1$salt${digest.hex()}"


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


class FillingStore(JsonStore):
    """A store whose disk is full while the test says so, and to which others write in between.

    :ivar meanwhile: called once, right before the next batch.
    """

    full = False
    meanwhile: Callable[[], object] | None = None

    def put(self, collection: str, key: str, value: Any, *, expected: int | None = None) -> int:
        self._refuse()
        return super().put(collection, key, value, expected=expected)

    def batch(self, collection: str, operations: Sequence[Operation]) -> Versions:
        self._refuse()
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().batch(collection, operations)

    def _refuse(self) -> None:
        if self.full:
            raise StoreReadOnly("the disk is full")


class House:
    """One data directory and the accounts in it; another :meth:`node` sees the same store."""

    def __init__(self, store: FillingStore, data_dir: Path) -> None:
        self.store = store
        self.data_dir = data_dir
        self.clock = Clock()
        self.throttle_clock = Clock()
        self.events = Events()
        self.heard: list[Event] = []
        self.events.subscribe(None, self.heard.append)
        self.accounts = self.node()

    def node(self) -> Accounts:
        """A manager that starts now."""
        return Accounts(
            self.store,
            self.events,
            root=ROOT,
            install_id="i" * 32,
            data_dir=self.data_dir,
            clock=self.clock,
            hasher=QuickHasher(),
            throttle=Throttle(self.throttle_clock),
        )

    def add(self, name: str, role: Role = Role.ADMIN) -> StoredUser:
        """A user with the password GOOD."""
        return add_user(self.accounts.users, name, role, now=self.clock())

    def open(self, name: str) -> Opened:
        """A session of that user, without a password."""
        return self.accounts.sessions.open(
            self.accounts.users.stored(name), address=ADDRESS, agent="Browser/1"
        )

    def came_in(self, name: str) -> tuple[Opened, Identity]:
        """A session of that user, and who it is."""
        opened = self.open(name)
        identity = self.accounts.sessions.authenticate([opened.secret])
        assert identity is not None
        return opened, identity

    def kinds(self, topic: str) -> list[str]:
        """What was told about users or sessions."""
        return [event.kind for event in self.heard if event.topic == topic]


def add_user(users: Users, name: str, role: Role = Role.ADMIN, *, now: float = 1_900_000_000.0) -> StoredUser:
    """Store a user with the password GOOD."""
    stored = new_user(name, GOOD_HASH, role, created_by="test", now=now)
    users.commit(lambda _: [stored])
    return stored
