"""The real Flask app over a real store, keys and accounts, and browsers with a cookie jar that call it.

The door between is played by :meth:`Browser.caller`: it turns cookies into the sealed caller as the event loop
does, with the accounts' own functions. What the door itself refuses is tested where the door is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamaman.access import Role, Scope
from llamaman.core import audit_events
from llamaman.core.accounts.accounts import Accounts
from llamaman.core.accounts.cookies import cookie_name, presession_name
from llamaman.core.accounts.cookies import values as cookie_values
from llamaman.core.accounts.throttle import Throttle
from llamaman.core.audit import Audit
from llamaman.core.auth import Keys
from llamaman.core.config import Config
from llamaman.core.events import Events
from llamaman.core.secrets import RootSecret
from llamaman.core.settings import Settings
from llamaman.core.settings_table import CORE_SETTINGS
from llamaman.dashboard.app import create_app
from llamaman.gateway.caller import HEADER, Caller, new_secret, seal
from llamaman.records import NOBODY, Identity
from llamaman.testing.quick_hasher import QuickHasher
from llamaman_store_json import JsonStore

INSTALL = "installation-of-a-test"
PASSWORD = "correct horse battery"
LOCAL = Identity("local", "uid:0", Scope.ADMIN)
ORIGIN = "http://manager.lan:5000"


@dataclass
class SiteKernel:
    """What the tested views use of the kernel."""

    config: Config
    settings: Settings
    events: Events
    keys: Keys
    accounts: Accounts
    audit: Audit
    plugins: tuple[Any, ...] = ()
    started_at: float = field(default_factory=time.time)


class Site:
    """The app and what it stands on; ``now`` is the accounts' clock and may be moved."""

    def __init__(self, folder: Path) -> None:
        data = folder / "data"
        data.mkdir(mode=0o700)
        self.now = time.time()
        environ = {"DATA_DIR": str(data), "MODELS_DIR": str(folder), "LLAMAMAN_NODE_NAME": "testnode"}
        config = Config.from_environ(environ)
        self.store = JsonStore(data)
        self.root = RootSecret(b"r" * 32)
        events = Events()
        self.accounts = Accounts(
            self.store,
            events,
            root=self.root,
            install_id=INSTALL,
            data_dir=data,
            clock=lambda: self.now,
            hasher=QuickHasher(),
            throttle=Throttle(lambda: self.now),
        )
        settings = Settings(config.node_name, events=events, environ=environ)
        settings.declare(CORE_SETTINGS, "llamaman")
        settings.seal(self.store)
        self.audit = Audit(data / "audit")
        audit_events.follow(self.audit, events)
        self.kernel = SiteKernel(
            config, settings, events, Keys(self.store, events), self.accounts, self.audit
        )
        self.secret = new_secret()
        self.app = create_app(self.kernel, self.secret)  # type: ignore[arg-type]

    def close(self) -> None:
        """Let go of files and threads."""
        self.audit.close()
        self.store.close()

    @property
    def code(self) -> str:
        """The set-up code of this run."""
        link = self.accounts.setup.link("http://x")
        assert link is not None
        return link.rpartition("/")[2]

    def user(self, name: str, role: Role = Role.ADMIN) -> None:
        """Make a user with the password of all tests."""
        if self.accounts.users.exists():
            self.accounts.create_user(name, PASSWORD, role, by=LOCAL)
        else:
            assert role is Role.ADMIN
            self.accounts.ensure_first(name, PASSWORD)

    def browser(self, **caller: Any) -> Browser:
        """A new browser without cookies."""
        return Browser(self, **caller)

    def logged_in(self, name: str, **caller: Any) -> Browser:
        """A browser with a session of a user; its password was not confirmed since."""
        browser = self.browser(**caller)
        browser.keep(self.accounts.login(name, PASSWORD, address="192.0.2.7", agent="Browser/1").secret)
        return browser

    def key(self, scope: Scope) -> Identity:
        """The caller behind a new key."""
        return self.kernel.keys.create(scope.value, scope, by=LOCAL)[0].identity()


class Browser:
    """One browser: a cookie jar, and how its connection looks."""

    def __init__(
        self,
        site: Site,
        *,
        secure: bool = False,
        owns_machine: bool = False,
        identity: Identity | None = None,
    ) -> None:
        self.site = site
        self.jar: dict[str, str] = {}
        self._secure, self._owns_machine, self._identity = secure, owns_machine, identity

    def keep(self, secret: str) -> None:
        """Hold a session's cookie."""
        self.jar[cookie_name(INSTALL, self._secure)] = secret

    @property
    def session(self) -> str | None:
        """Public id of the session that the browser has."""
        return self.caller().identity.session

    def caller(self) -> Caller:
        """Who this is, as the event loop would say it."""
        header = "; ".join(f"{name}={value}" for name, value in self.jar.items()).encode()
        sessions = self.site.accounts.sessions
        found = sessions.authenticate(cookie_values(header, cookie_name(INSTALL, self._secure)))
        identity = self._identity or found or NOBODY
        pre = cookie_values(header, presession_name(INSTALL, self._secure))
        csrf = None
        if identity.session:
            csrf = sessions.csrf_token(identity.session)
        elif pre:
            csrf = sessions.presession_csrf(pre[0])
        return Caller(
            identity, "manage", "192.0.2.7", self._secure, csrf, self._owns_machine, "manager.lan:5000"
        )

    def open(self, path: str, method: str = "GET", **request: Any) -> Any:
        """One request; cookies of the answer go into the jar."""
        headers = {HEADER: seal(self.caller(), self.site.secret).decode(), **request.pop("headers", {})}
        client = self.site.app.test_client(use_cookies=False)
        answer = client.open(path, method=method, headers=headers, **request)
        for line in answer.headers.getlist("Set-Cookie"):
            name, _, rest = line.partition("=")
            self.jar.pop(name, None)
            if "Max-Age=0" not in line:
                self.jar[name] = rest.partition(";")[0]
        return answer

    def submit(self, path: str, fields: Mapping[str, str], shown_at: str | None = None) -> Any:
        """Open the page, fill in its first form and send it."""
        fields = {"csrf_token": token_in(self.open(shown_at or path)), **fields}
        return self.open(path, "POST", data=fields)

    def log_in(self, name: str, password: str = PASSWORD, **fields: str) -> Any:
        """Log in by the form."""
        return self.submit("/login", {"username": name, "password": password, **fields})

    def json(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of a call of the API."""
        answer = self.open(path, method, **({} if body is None else {"json": body}))
        return answer.status_code, answer.get_json()


def token_in(answer: Any) -> str:
    """The token of the first form of a page."""
    found = re.search(r'name="csrf_token" value="([0-9a-f]{64})"', answer.text)
    assert found, answer.text
    return found[1]
