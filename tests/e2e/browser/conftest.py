"""A real Chromium, a real manager on every address of this machine, and a hostile web server beside it.

One browser and one manager serve a whole module; a context (cookies, storage) is a test's own. Playwright's
loop lives in the thread of the tests, so it ends with its module: elsewhere tests run loops of their own.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from llamaman.testing import processes
from llamaman.testing.manager import Manager
from llamaman.testing.wire import lan_address

PASSWORD = "correct horse battery staple"
FLAGS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Names of somebody else that lead here: a foreign origin, and one whose DNS answer has changed.
    "--host-resolver-rules=MAP *.example 127.0.0.1",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``host`` is each name under which a browser on this machine finds the manager."""
    if "host" in metafunc.fixturenames:
        lan = lan_address()
        metafunc.parametrize("host", ["localhost", "127.0.0.1", *([lan] if lan else [])])


@pytest.fixture(scope="session")
def plain_host() -> str:
    """The name under which a browser protects us least: on plain HTTP from a network, where there is one."""
    return lan_address() or "127.0.0.1"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for the tests of one module."""
    program = os.environ.get("LLAMAMAN_TEST_CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("no Chromium: install it (apt install chromium) or name one in LLAMAMAN_TEST_CHROMIUM")
    started = sync_playwright()
    try:
        playwright = started.__enter__()
    except Exception as error:  # whatever its driver, a program of its own, dies of
        pytest.skip(
            f"Playwright's driver does not start ({error}); Debian's libatomic1 is what it lacks most often"
        )
    try:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()
    finally:
        started.__exit__(None, None, None)


@dataclass(frozen=True, slots=True)
class Visit:
    """A browser profile, with what its pages complained about."""

    context: BrowserContext
    complaints: list[str] = field(default_factory=list)

    def page(self) -> Page:
        """A new tab."""
        page = self.context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: self.complaints.append(f"{page.url}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"{page.url}: {error}"))
        return page

    def log_in(self, origin: str, password: str = PASSWORD, name: str = "admin") -> Page:
        """Log in by the form, as a person does; the tab on which that happened."""
        page = self.page()
        page.goto(f"{origin}/login")
        page.fill("input[name=username]", name)
        page.fill("input[name=password]", password)
        self.press(page, "Log in")
        return page

    def press(self, page: Page, label: str) -> None:
        """Press a button that sends a form, and wait for the page that answers."""
        with page.expect_navigation():
            page.get_by_role("button", name=label, exact=True).first.click()

    def own(self, origin: str) -> Page:
        """A tab on our origin that may fetch: our pages forbid it to themselves, an answer of the API does not."""
        page = self.page()
        page.goto(f"{origin}/api/me")
        return page

    def me(self, origin: str) -> tuple[int, Any]:
        """Who this browser is: status and answer of ``/api/me``."""
        page = self.page()
        answer = page.goto(f"{origin}/api/me")
        assert answer is not None
        found = (answer.status, answer.json())
        page.close()
        return found

    def session(self) -> Mapping[str, Any]:
        """The session's cookie as the browser keeps it."""
        (cookie,) = [c for c in self.context.cookies() if _is_session(str(c.get("name")))]
        return dict(cookie)


def _is_session(name: str) -> bool:
    return name.startswith("llamaman_") and not name.endswith("_pre")


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A browser profile of this test's own."""
    context = browser.new_context()
    yield Visit(context)
    context.close()


@pytest.fixture
def another_visit(browser: Browser) -> Iterator[Visit]:
    """A second person at another machine."""
    context = browser.new_context()
    yield Visit(context)
    context.close()


class NewManager(Protocol):
    """Makes a running manager on every address of this machine, with ``tiny.gguf`` among its models."""

    def __call__(self, *, env: Mapping[str, str] | None = None, weakened: str | None = None) -> Manager: ...


@pytest.fixture(scope="module")
def new_manager(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[NewManager]:
    """Makes managers for one module.

    Its ``weakened`` is a defence that the manager shall be without, see ``weakened.py``.
    """
    with ExitStack() as stack:

        def make(*, env: Mapping[str, str] | None = None, weakened: str | None = None) -> Manager:
            runner = Path(__file__).parent / "weakened.py"
            manager = Manager(
                tmp_path_factory.mktemp("manager"),
                env={"LLAMAMAN_HOST": "0.0.0.0", **(env or {})},
                program=[sys.executable, str(runner), weakened] if weakened else None,
            )
            shutil.copy(tiny_model, manager.models / "tiny.gguf")
            stack.callback(_end, manager)
            manager.start()
            return manager

        yield make


def _end(manager: Manager) -> None:
    manager.close()
    assert "Traceback" not in manager.output(), manager.output()[-4000:]


@pytest.fixture(scope="module")
def manager(new_manager: NewManager) -> Manager:
    """A running manager whose administrator is ``admin``."""
    return new_manager(env={"LLAMAMAN_ADMIN_PASSWORD": PASSWORD})


@dataclass(frozen=True, slots=True)
class Hostile:
    """A web server that means no good, on a port of its own and on every address of this machine.

    :ivar visits: the paths and ``Host`` of what it was asked for.
    """

    port: int
    visits: list[str] = field(default_factory=list)


_BLANK = b"<!doctype html><title>A page</title><body></body>"


@pytest.fixture(scope="module")
def hostile() -> Iterator[Hostile]:
    """Serves an empty page everywhere, in which the tests run their scripts."""
    (port,) = processes.free_ports(1)
    kept = Hostile(port)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kept.visits.append(f"{self.headers['Host']}{self.path}")
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(_BLANK)))
            self.end_headers()
            self.wfile.write(_BLANK)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("0.0.0.0", port), Handler)
    threading.Thread(target=server.serve_forever, name="hostile", daemon=True).start()
    yield kept
    server.shutdown()
    server.server_close()
