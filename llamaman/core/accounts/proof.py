"""Whether somebody knows a user's password. Called by the use cases in ``accounts.py``; blocks for 0.2 s."""

from __future__ import annotations

from llamaman.core.accounts.hasher import Hasher, dummy_hash
from llamaman.core.accounts.throttle import Throttle
from llamaman.core.accounts.user_record import StoredUser, checked_user_name, user_id
from llamaman.core.accounts.users import Users
from llamaman.errors import InvalidField, LlamaManError, Unauthorized


def account_of(name: str) -> str:
    """What failures are counted under; one key for all names that no user can have, however long they are."""
    try:
        return user_id(checked_user_name(name.strip()))  # a phone's keyboard adds a space
    except InvalidField:
        return ""


class Proof:
    """Checks passwords, as often as the throttle allows."""

    def __init__(self, users: Users, hasher: Hasher, throttle: Throttle) -> None:
        self._users = users
        self._hasher = hasher
        self._throttle = throttle
        self._dummy = dummy_hash()

    def of(
        self,
        known: StoredUser | None,
        account: str,
        password: str,
        *,
        address: str | None,
        logged_in: bool = False,
    ) -> StoredUser:
        """The user as of now, if this is their password. Takes as long for a user that does not exist.

        :param known: the user with the id ``account``; None when there is none.
        :param logged_in: the caller has a session of this user.
        :raises Unauthorized: unknown, disabled, a wrong password, or changed meanwhile: all the same to the caller.
        :raises TooManyRequests: after failures, or while too many passwords are being checked.
        """
        attempt = self._throttle.begin(account, address, logged_in=logged_in)
        try:
            right = self._hasher.verify(known.password_hash if known else self._dummy, password)
        except LlamaManError:
            self._throttle.withdraw(attempt)
            raise
        now = self._users.find(account)
        unchanged = known is not None and now is not None and now.generation == known.generation
        if not right or now is None or not unchanged or now.user.disabled:
            raise Unauthorized("Invalid username or password")
        self._throttle.succeeded(attempt)
        return now
