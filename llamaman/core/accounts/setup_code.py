"""The one-time code that whoever sets up an installation must know: it stands in the log and in a private file.

Held by ``accounts.py`` while no user exists; new at each boot, and gone with the first user.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
from pathlib import Path

from llamaman.core.datadir import write_private
from llamaman.errors import ConfigError, Forbidden, TooManyRequests
from llamaman.limits import SETUP_CODES

log = logging.getLogger(__name__)

FILE = "setup_code"
_BYTES = 16


class SetupCode:
    """:param needed: whether there is no user yet; a file that a run before left is removed if there is one.

    :raises ConfigError: the file cannot be written.
    """

    __slots__ = ("_code", "_lock", "_path", "_wrong")

    def __init__(self, data_dir: Path, *, needed: bool) -> None:
        self._path = data_dir / FILE
        self._lock = threading.Lock()
        self._wrong = 0
        self._code: str | None = None
        if not needed:
            self._remove()
            return
        code = secrets.token_urlsafe(_BYTES)
        try:
            write_private(self._path, f"{code}\n".encode())
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be written: {error.strerror}") from error
        self._code = code

    def __repr__(self) -> str:
        return f"SetupCode({'***' if self._code else 'retired'})"

    def link(self, base_url: str) -> str | None:
        """``<base>/setup/<code>``; None once a user exists."""
        code = self._code
        return f"{base_url.rstrip('/')}/setup/{code}" if code else None

    def check(self, code: str | None) -> None:
        """Pass whoever knows the code.

        :raises Forbidden: none or a wrong one.
        :raises TooManyRequests: too many wrong ones in this run; also for the right one.
        """
        where = "the link to it is in LlamaMan's log; 'llamaman setup-link' prints it"
        with self._lock:
            if self._wrong >= SETUP_CODES:
                raise TooManyRequests(
                    "too many wrong set-up codes; restart LlamaMan, which makes a new one, or set up from the "
                    "machine itself"
                )
            if not code:
                raise Forbidden(f"setting up needs the one-time code: {where}")
            expected = self._code
            if expected is None or not hmac.compare_digest(
                code.encode("utf-8", "surrogatepass"), expected.encode()
            ):
                self._wrong += 1
                raise Forbidden(f"this is not the set-up code of this run: {where}")

    def retire(self) -> None:
        """A user exists: the code opens nothing any more, and its file goes. Doing it twice is no error."""
        if self._code is not None:
            self._code = None
            self._remove()

    def _remove(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning(
                "%s cannot be removed (%s); the code in it opens nothing any more", self._path, error.strerror
            )
