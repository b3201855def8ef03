"""The pages that need no dashboard: set up, log in, log out, and who you are."""

from __future__ import annotations

import re
from typing import Any

import pytest
from browser_site import INSTALL, ORIGIN, PASSWORD, Site, token_in

from llamaman.access import Role, Scope
from llamaman.core.accounts.cookies import cookie_name, presession_name
from llamaman.dashboard.pages.forms import local_path, read_form, same_authority
from llamaman.errors import LlamaManError
from llamaman.limits import FAILURES_PER_ACCOUNT, FORM_BODY, SESSION_LONGEST_S, SETUP_CODES

COOKIE = cookie_name(INSTALL, False)
SETUP = {"username": "Ada", "password": PASSWORD, "confirm": PASSWORD}


def line_of(answer: Any, name: str) -> str:
    """The Set-Cookie line of a cookie."""
    [line] = [line for line in answer.headers.getlist("Set-Cookie") if line.startswith(f"{name}=")]
    return line


# --- every page ----------------------------------------------------------------------------------------


def test_every_page_runs_no_script_and_cannot_be_framed_cached_or_sniffed(site: Site) -> None:
    anonymous = site.browser()
    answers = [anonymous.open("/setup"), anonymous.open("/setup/abc"), anonymous.open("/login")]
    site.user("ada")
    ada = site.logged_in("ada")
    answers += [ada.open("/"), ada.open("/logout"), ada.open("/login"), anonymous.open("/login")]
    answers += [anonymous.open("/login", "POST", data={"x": "1"}), anonymous.log_in("ada")]
    for answer in answers:
        headers = answer.headers
        assert headers["Content-Security-Policy"] == (
            "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
            "frame-ancestors 'none'; base-uri 'none'"
        )
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "same-origin"
        assert "<script" not in answer.text
        assert " style=" not in answer.text
        assert not re.search(r"\son[a-z]+=", answer.text)


def test_the_stylesheet_and_the_sign_are_open_and_asked_about_each_time(site: Site) -> None:
    for path, kind in (("/static/llamaman.css", "text/css"), ("/static/llamaman.svg", "image/svg+xml")):
        answer = site.browser().open(path)
        assert answer.status_code == 200
        assert answer.mimetype == kind
        assert answer.headers["Cache-Control"] == "no-cache"
        again = site.browser().open(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b"")


# --- set-up --------------------------------------------------------------------------------------------


def test_without_a_user_the_login_leads_to_the_set_up(site: Site) -> None:
    browser = site.browser()
    assert (browser.open("/login").status_code, browser.open("/login").headers["Location"]) == (302, "/setup")
    posted = browser.open("/login", "POST", data={"username": "a", "password": "b"})
    assert (posted.status_code, posted.headers["Location"]) == (303, "/setup")


def test_the_link_with_the_code_makes_the_first_user_an_administrator_who_is_logged_in(site: Site) -> None:
    browser = site.browser()
    page = browser.open(f"/setup/{site.code}")
    assert f'value="{site.code}"' in page.text
    answer = browser.open("/setup", "POST", data={**SETUP, "code": site.code, "csrf_token": token_in(page)})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert site.accounts.users.get("ada").role is Role.ADMIN
    assert browser.caller().identity.name == "Ada"
    assert set(browser.jar) == {COOKIE}


def test_the_code_may_also_stay_in_the_forms_address(site: Site) -> None:
    answer = site.browser().submit(f"/setup/{site.code}", SETUP)
    assert answer.status_code == 303


def test_without_the_code_nobody_is_made_and_the_form_says_where_it_is(site: Site) -> None:
    browser = site.browser()
    for code in ("", "guess"):
        answer = browser.submit("/setup", {**SETUP, "code": code})
        assert answer.status_code == 403
        assert "setup-link" in answer.text
        assert 'value="Ada"' in answer.text
        assert PASSWORD not in answer.text
    assert not site.accounts.users.exists()


def test_after_ten_wrong_codes_every_code_is_refused(site: Site) -> None:
    browser = site.browser()
    right = site.code
    for _ in range(SETUP_CODES):
        assert browser.submit("/setup", {**SETUP, "code": "guess"}).status_code == 403
    assert browser.submit("/setup", {**SETUP, "code": right}).status_code == 429
    assert not site.accounts.users.exists()


def test_the_owner_of_the_machine_needs_no_code(site: Site) -> None:
    browser = site.browser(owns_machine=True)
    assert 'name="code"' not in browser.open("/setup").text
    assert 'name="code"' in site.browser().open("/setup").text
    assert browser.submit("/setup", SETUP).status_code == 303


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"username": ""}, "Username is required."),
        ({"username": "  "}, "Username is required."),
        ({"password": "short", "confirm": "short"}, "Password must be at least 10 characters."),
        ({"confirm": PASSWORD + "!"}, "Passwords do not match."),
        ({"username": "a/b"}, "name must not hold"),
        ({"password": "password123", "confirm": "password123"}, "password"),
    ],
)
def test_what_is_wrong_with_a_first_user_stands_above_the_form(
    site: Site, wrong: dict[str, str], sentence: str
) -> None:
    answer = site.browser(owns_machine=True).submit("/setup", {**SETUP, **wrong})
    assert answer.status_code == 400
    [problem] = re.findall(r'<p class="problem" role="alert">(.*?)</p>', answer.text)
    assert sentence in problem
    assert not site.accounts.users.exists()


def test_once_a_user_exists_the_set_up_is_closed(site: Site) -> None:
    code = site.code
    open_form = site.browser()
    token = token_in(open_form.open("/setup"))
    site.user("ada")
    for path in ("/setup", f"/setup/{code}"):
        shown = open_form.open(path)
        assert (shown.status_code, shown.headers["Location"]) == (302, "/login")
        sent = open_form.open(path, "POST", data={**SETUP, "code": code, "csrf_token": token})
        assert (sent.status_code, sent.headers["Location"]) == (303, "/login")
    assert [user.name for user in site.accounts.users.list()] == ["ada"]


# --- logging in ----------------------------------------------------------------------------------------


def test_the_right_password_gives_a_new_session_in_a_cookie_that_scripts_and_other_sites_do_not_get(
    site: Site,
) -> None:
    site.user("ada")
    browser = site.browser()
    answer = browser.log_in("Ada")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    line = line_of(answer, COOKIE)
    assert set(line.partition("; ")[2].split("; ")) == {
        "Path=/", "HttpOnly", "SameSite=Lax", f"Max-Age={SESSION_LONGEST_S}",
    }  # fmt: skip
    assert browser.caller().identity.name == "ada"
    assert presession_name(INSTALL, False) not in browser.jar


def test_over_tls_the_cookies_are_bound_to_this_host(site: Site) -> None:
    site.user("ada")
    browser = site.browser(secure=True)
    answer = browser.log_in("ada")
    name = cookie_name(INSTALL, True)
    assert name.startswith("__Host-")
    assert "Secure" in line_of(answer, name).split("; ")
    assert "Domain" not in line_of(answer, name)


def test_a_wrong_password_and_an_unknown_user_look_the_same(site: Site) -> None:
    site.user("ada")
    answers = []
    for name in ("ada", "bob"):
        answer = site.browser().log_in(name, "a wrong password")
        assert answer.status_code == 401
        assert "Invalid username or password" in answer.text
        assert "Set-Cookie" not in answer.headers
        answers.append(re.sub(r'value="[^"]*"', "", answer.text))
    assert answers[0] == answers[1]


def test_after_some_failures_the_next_attempt_is_told_when_to_come_back(site: Site) -> None:
    site.user("ada")
    browser = site.browser()
    for _ in range(FAILURES_PER_ACCOUNT):
        assert browser.log_in("ada", "a wrong password").status_code == 401
    answer = browser.log_in("ada", "a wrong password")
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 60


def test_an_id_from_before_the_login_is_dead_after_it(site: Site) -> None:
    site.user("ada")
    browser = site.logged_in("ada")
    before = browser.jar[COOKIE]
    browser.log_in("ada")
    assert browser.jar[COOKIE] != before
    browser.keep(before)
    assert browser.session is None
    assert len(site.accounts.sessions.list()) == 1


def test_a_made_up_session_id_is_not_taken_over_by_a_login(site: Site) -> None:
    site.user("ada")
    browser = site.browser()
    browser.keep("chosen-by-somebody-else")
    browser.log_in("ada")
    assert browser.jar[COOKIE] != "chosen-by-somebody-else"


def test_a_browser_keeps_its_token_over_several_pages(site: Site) -> None:
    site.user("ada")
    browser = site.browser()
    first = browser.open("/login")
    assert token_in(browser.open("/login")) == token_in(first)
    assert "Set-Cookie" not in browser.open("/login").headers


@pytest.mark.parametrize(
    ("wanted", "target"),
    [
        ("/", "/"),
        ("/models?page=2#x", "/models?page=2#x"),
        ("", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("\\\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("/a\r\nSet-Cookie: x=y", "/"),
        ("https://evil.example/", "/"),
        ("javascript:alert(1)", "/"),
        ("models", "/"),
        ("/logout", "/"),
        ("/login?next=/", "/"),
        ("/setup/abc", "/"),
        ("/" + "a" * 2000, "/"),
    ],
)
def test_a_login_leads_only_to_a_path_of_ours(wanted: str, target: str) -> None:
    assert local_path(wanted) == target


def test_the_wanted_path_survives_the_login_form(site: Site) -> None:
    site.user("ada")
    browser = site.browser()
    page = browser.open("/login?next=/api/openapi.json")
    assert '<input type="hidden" name="next" value="/api/openapi.json">' in page.text
    answer = browser.submit("/login", {"username": "ada", "password": PASSWORD, "next": "/api/openapi.json"})
    assert answer.headers["Location"] == "/api/openapi.json"
    assert site.browser().log_in("ada", next="//evil.example").headers["Location"] == "/"


# --- forms ---------------------------------------------------------------------------------------------


def test_a_form_without_the_browsers_own_token_changes_nothing(site: Site) -> None:
    site.user("ada")
    browser, other = site.browser(), site.browser()
    browser.open("/login")
    stolen = token_in(other.open("/login"))
    for token in ("", "0" * 64, stolen, "ä"):
        answer = browser.open(
            "/login", "POST", data={"username": "ada", "password": PASSWORD, "csrf_token": token}
        )
        assert answer.status_code == 403
        assert "send it again" in answer.text
        assert browser.session is None
        fresh = {"username": "ada", "password": PASSWORD, "csrf_token": token_in(answer)}
    assert browser.open("/login", "POST", data=fresh).status_code == 303


def test_a_browser_without_cookies_gets_a_fresh_form_that_works(site: Site) -> None:
    browser = site.browser(owns_machine=True)
    answer = browser.open("/setup", "POST", data=SETUP)
    assert answer.status_code == 403
    assert not site.accounts.users.exists()
    assert browser.open("/setup", "POST", data={**SETUP, "csrf_token": token_in(answer)}).status_code == 303


def test_only_plain_forms_are_read(site: Site) -> None:
    site.user("ada")
    browser = site.browser()
    for kind in ("application/json", "multipart/form-data; boundary=x", "text/plain", ""):
        for path in ("/login", "/setup", "/setup/x", "/logout"):
            answer = browser.open(path, "POST", data=b"username=ada", headers={"Content-Type": kind})
            assert answer.status_code == 415, (path, kind)
            assert answer.mimetype == "text/html"


def test_a_form_that_is_too_large_or_not_ours_is_refused(site: Site) -> None:
    site.user("ada")
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    for body, status, word in (
        (b"username=" + b"a" * FORM_BODY, 413, "larger"),
        (b"username=a&usrname=b", 400, "usrname"),
        (b"username=a&username=b", 400, "twice"),
        (b"username=%ff", 400, "UTF-8"),
        (b"\xff=1", 400, "UTF-8"),
        (b"&".join(b"a%d=1" % number for number in range(40)), 400, "many"),
        (b"username=%00", 400, "control"),
        (b"%3Cscript%3E=1", 400, "&lt;script&gt;"),
    ):
        answer = site.browser().open("/login", "POST", data=body, headers=kind)
        assert (answer.status_code, word in answer.text) == (status, True), body[:40]


def test_what_was_typed_is_shown_as_text(site: Site) -> None:
    site.user("ada")
    answer = site.browser().log_in('"><img src=x onerror=alert(1)>', "a wrong password")
    assert "<img src=x" not in answer.text
    assert "&gt;&lt;img src=x" in answer.text


def test_reading_a_form_is_strict() -> None:
    kind = "application/x-www-form-urlencoded; charset=UTF-8"
    assert read_form(b"a=%C3%A4+b&c=", kind) == {"a": "ä b", "c": ""}
    assert read_form(b"", kind) == {}
    for data, content_type, encoding, status in (
        (b"a=1", None, None, 415),
        (b"a=1", "application/x-www-form-urlencoded; charset=utf-16", None, 415),
        (b"a=1", kind, "gzip", 415),
    ):
        with pytest.raises(LlamaManError) as caught:
            read_form(data, content_type, content_encoding=encoding)
        assert caught.value.status == status


# --- logging out ---------------------------------------------------------------------------------------


def test_the_button_ends_the_session_and_takes_the_cookie(site: Site) -> None:
    site.user("ada")
    browser = site.logged_in("ada")
    secret = browser.jar[COOKIE]
    answer = browser.submit("/logout", {})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/login")
    assert "Max-Age=0" in line_of(answer, COOKIE)
    browser.keep(secret)
    assert browser.session is None


def test_a_link_logs_out_only_from_our_own_pages(site: Site) -> None:
    site.user("ada")
    browser = site.logged_in("ada")
    for referer in (None, "http://evil.example/", f"{ORIGIN}.evil.example/", "http://manager.lan:8000/", "x"):
        answer = browser.open("/logout", headers={"Referer": referer} if referer else {})
        assert answer.status_code == 200
        assert '<form method="post" action="/logout">' in answer.text
        assert browser.session is not None
    answer = browser.open("/logout", headers={"Referer": f"{ORIGIN}/"})
    assert (answer.status_code, answer.headers["Location"]) == (302, "/login")
    assert browser.session is None


def test_a_referer_counts_when_its_host_and_port_are_ours() -> None:
    assert same_authority("http://Manager.lan:5000/x?y", "manager.lan:5000")
    assert same_authority("https://[::1]:5000/", "[::1]:5000")
    for referer in (
        "http://manager.lan/",
        "http://u@manager.lan:5000/",
        "ftp://manager.lan:5000/",
        "http://[",
        None,
    ):
        assert not same_authority(referer, "manager.lan:5000")
    assert not same_authority("http:///", "")
    assert not same_authority("http://x/", None)


def test_a_logout_without_the_sessions_token_changes_nothing(site: Site) -> None:
    site.user("ada")
    browser = site.logged_in("ada")
    for fields in ({"session": ""}, {"everywhere": "yes"}, {"csrf_token": "0" * 64}):
        assert browser.open("/logout", "POST", data=fields).status_code == 403
    assert browser.session is not None


def test_a_stranger_is_led_to_the_login(site: Site) -> None:
    browser = site.browser()
    browser.keep("of-a-session-that-ended")
    answer = browser.open("/logout")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/login")
    assert browser.jar == {}
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert browser.open("/logout", "POST", headers=kind).headers["Location"] == "/login"


# --- the start page ------------------------------------------------------------------------------------


def test_the_start_page_says_who_you_are_and_where_you_are_logged_in(site: Site) -> None:
    site.user("ada")
    site.user("vic", Role.VIEWER)
    site.logged_in("vic")
    browser = site.logged_in("vic")
    page = browser.open("/").text
    assert "vic" in page
    assert "viewer" in page
    assert page.count("192.0.2.7") >= 2
    assert page.count("this browser") == 1
    assert 'href="/api/openapi.json"' in page
    site.logged_in("ada")
    assert browser.open("/").text == page  # other people's sessions are not shown


def test_one_of_ones_own_sessions_can_be_ended_from_the_start_page(site: Site) -> None:
    site.user("ada")
    lost, browser = site.logged_in("ada"), site.logged_in("ada")
    answer = browser.submit("/logout", {"session": lost.session or ""}, shown_at="/")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert (lost.session, browser.session is not None) == (None, True)


def test_another_users_session_cannot_be_ended_by_the_form(site: Site) -> None:
    site.user("ada")
    site.user("vic", Role.VIEWER)
    ada, vic = site.logged_in("ada"), site.logged_in("vic")
    vic.submit("/logout", {"session": ada.session or ""}, shown_at="/")
    assert ada.session is not None
    assert vic.session is not None


def test_log_out_everywhere_ends_all_of_ones_sessions_and_no_others(site: Site) -> None:
    site.user("ada")
    site.user("vic", Role.VIEWER)
    ada, vic, also_vic = site.logged_in("ada"), site.logged_in("vic"), site.logged_in("vic")
    answer = vic.submit("/logout", {"everywhere": "yes"}, shown_at="/")
    assert answer.headers["Location"] == "/login"
    assert (vic.session, also_vic.session) == (None, None)
    assert ada.session is not None


def test_a_key_sees_what_it_is_and_no_forms(site: Site) -> None:
    page = site.browser(identity=site.key(Scope.VIEW)).open("/")
    assert page.status_code == 200
    assert "view" in page.text
    assert "<form" not in page.text
    assert "Set-Cookie" not in page.headers
