"""The pages behind the real door: cookies, forms and tokens as they cross the event loop, with real password hashes."""

from __future__ import annotations

from management_door import Manager

from llamaman.access import Scope
from llamaman.testing.visitor import Visitor

PASSWORD = "correct horse battery"


def test_the_way_from_the_set_up_to_a_logged_out_browser(manager: Manager) -> None:
    link = manager.kernel.accounts.setup.link("")
    assert link is not None
    browser = Visitor(manager.port)
    made = browser.submit(link, username="ada", password=PASSWORD, confirm=PASSWORD)
    assert (made.status, made.headers["location"]) == (303, "/")
    home = browser.call("GET", "/", headers={"Accept": "text/html", "User-Agent": "curl/8.5"})
    assert home.status == 200
    assert "ada" in home.text
    me = browser.call("GET", "/api/me").json()
    assert (me["kind"], me["role"]) == ("session", "admin")
    changed = browser.manage("POST", "/api/me/password", {"current": PASSWORD, "new": "staple this one too"})
    assert changed.status == 200
    assert browser.manage("POST", "/api/me/sudo", {"password": "staple this one too"}).status == 200
    key = browser.manage("POST", "/api/api-keys", {"scope": "view"}).json()["key"]
    assert manager.call("GET", "/api/me", key=key)[1]["scope"] == Scope.VIEW
    out = browser.submit("/logout")
    assert (out.status, out.headers["location"]) == (303, "/login")
    assert browser.call("GET", "/api/me").status == 401


def test_a_login_by_the_form_shows_where_from_and_with_what(manager: Manager) -> None:
    manager.kernel.accounts.ensure_first("ada", PASSWORD)
    browser = Visitor(manager.port)
    sent = browser.submit(
        "/login", headers={"User-Agent": "curl/8.5"}, username="ada", password=PASSWORD, next="/api/me"
    )
    assert (sent.status, sent.headers["location"]) == (303, "/api/me")
    [session] = browser.call("GET", "/api/me/sessions").json()
    assert (session["address"], session["agent"], session["current"]) == ("127.0.0.1", "curl/8.5", True)
    assert browser.submit("/login", username="ada", password="a wrong one").status == 401
    assert browser.call("GET", "/api/me").status == 200


def test_a_link_logs_out_from_our_own_pages_alone(manager: Manager) -> None:
    manager.kernel.accounts.ensure_first("ada", PASSWORD)
    browser = Visitor(manager.port)
    browser.log_in("ada", PASSWORD)
    for referer in ("http://evil.example/", f"http://127.0.0.1:{manager.port + 1}/"):
        browser.call("GET", "/logout", headers={"Referer": referer})
        assert browser.call("GET", "/api/me").status == 200
    answer = browser.call("GET", "/logout", headers={"Referer": f"http://{browser.host}/"})
    assert (answer.status, answer.headers["location"]) == (302, "/login")
    assert browser.call("GET", "/api/me").status == 401
