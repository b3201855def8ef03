"""From the set-up link to logging out, as a person does it, with the cookie as the browser keeps it.

Our pages break no rule of their own Content-Security-Policy on the way: the browser would say so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from llamaman.testing.manager import Manager

pytestmark = pytest.mark.real("chromium")

PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module")
def manager(new_manager: Any) -> Manager:
    """A manager that was set up in a browser, from another machine's point of view, with the link."""
    return new_manager()


@pytest.fixture(scope="module")
def origin(manager: Manager) -> str:
    return f"http://127.0.0.1:{manager.port}"


@pytest.fixture(autouse=True)
def _no_complaints(visit: Any) -> Iterator[None]:
    """No page breaks its Content-Security-Policy; a refusal (4xx) may be noted in the console."""
    visit.context.add_init_script(
        "addEventListener('securitypolicyviolation', event => console.error('violation', event.blockedURI))"
    )
    yield
    assert [line for line in visit.complaints if "Failed to load resource" not in line] == []


@pytest.fixture(scope="module")
def set_up(browser: Any, manager: Manager, plain_host: str) -> tuple[str, Any]:
    """The first user, made by the form behind the link: its path, and who the browser is afterwards."""
    path = urlsplit(manager.manage("GET", "/api/setup-link")["link"]).path
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://{plain_host}:{manager.port}{path}")
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", PASSWORD)
    page.fill("input[name=confirm]", PASSWORD)
    with page.expect_navigation():
        page.get_by_role("button").click()
    me = page.goto(f"http://{plain_host}:{manager.port}/api/me")
    found = (me.status, me.json())
    context.close()
    return path, found


def test_the_link_leads_to_a_form_that_makes_the_first_user_and_logs_them_in(
    manager: Manager, set_up: tuple[str, Any], visit: Any, origin: str
) -> None:
    path, (status, me) = set_up
    assert (status, me["name"], me["role"]) == (200, "admin", "admin")
    assert manager.manage("GET", "/api/setup-link") == {"link": None}
    page = visit.page()
    page.goto(f"{origin}{path}")
    assert urlsplit(page.url).path == "/login", "the code has died with the first user"


def test_a_wrong_password_is_told_on_the_page_and_does_not_say_whether_the_user_exists(
    set_up: object, visit: Any, origin: str
) -> None:
    for name in ("admin", "nobody"):
        page = visit.log_in(origin, password="not the password", name=name)
        assert urlsplit(page.url).path == "/login"
        assert page.get_by_text("Invalid username or password").is_visible()
        assert visit.me(origin)[0] == 401


def test_the_right_password_opens_the_first_page_with_a_cookie_that_scripts_cannot_read(
    set_up: object, visit: Any, origin: str
) -> None:
    page = visit.log_in(origin)
    assert urlsplit(page.url).path == "/"
    assert visit.me(origin)[1]["name"] == "admin"
    cookie = visit.session()
    assert re.fullmatch(r"llamaman_[0-9a-f]{8}", cookie["name"])
    assert cookie["domain"] == "127.0.0.1", "host-only: no Domain was set"
    assert (cookie["path"], cookie["httpOnly"], cookie["sameSite"]) == ("/", True, "Lax")
    assert cookie["secure"] is False, "plain HTTP"
    assert cookie["expires"] == -1 or cookie["expires"] <= time.time() + 14 * 86400 + 60
    assert cookie["name"] not in page.evaluate("document.cookie")


def test_a_stranger_is_led_to_the_login(set_up: object, visit: Any, origin: str) -> None:
    page = visit.page()
    page.goto(f"{origin}/")
    assert urlsplit(page.url).path == "/login"


def test_a_cookie_known_before_the_login_is_worth_nothing_after_it(
    set_up: object, visit: Any, another_visit: Any, origin: str
) -> None:
    visit.log_in(origin)
    first = visit.session()
    fixed = {"name": first["name"], "value": "f" * len(first["value"]), "url": origin}
    another_visit.context.add_cookies([fixed])
    another_visit.log_in(origin)
    assert another_visit.session()["value"] not in (fixed["value"], first["value"])
    visit.log_in(origin)
    again = visit.session()
    assert again["value"] != first["value"], "each login has an id of its own"
    visit.context.add_cookies([{"name": first["name"], "value": first["value"], "url": origin}])
    assert visit.me(origin)[0] == 401, "and the one before it has ended"


def test_logging_out_by_the_form_ends_the_session_itself(set_up: object, visit: Any, origin: str) -> None:
    page = visit.log_in(origin)
    cookie = visit.session()
    visit.press(page, "Log out")
    assert urlsplit(page.url).path == "/login"
    assert visit.me(origin)[0] == 401
    visit.context.add_cookies([{"name": cookie["name"], "value": cookie["value"], "url": origin}])
    assert visit.me(origin)[0] == 401, "not only the cookie is gone"


def test_a_link_to_the_logout_on_our_own_page_logs_out(set_up: object, visit: Any, origin: str) -> None:
    page = visit.log_in(origin)
    with page.expect_navigation():
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<a id=out href=/logout>out</a>')")
        page.click("#out")
    assert visit.me(origin)[0] == 401


def test_an_address_typed_by_hand_asks_before_it_logs_out(set_up: object, visit: Any, origin: str) -> None:
    visit.log_in(origin)
    typed = visit.page()
    typed.goto(f"{origin}/logout")
    assert visit.me(origin)[0] == 200
    visit.press(typed, "Log out")
    assert visit.me(origin)[0] == 401


def test_logging_out_everywhere_ends_the_sessions_in_other_browsers(
    set_up: object, visit: Any, another_visit: Any, origin: str
) -> None:
    page = visit.log_in(origin)
    another_visit.log_in(origin)
    assert another_visit.me(origin)[0] == 200
    visit.press(page, "Log out everywhere")
    assert urlsplit(page.url).path == "/login"
    assert visit.me(origin)[0] == 401
    assert another_visit.me(origin)[0] == 401
