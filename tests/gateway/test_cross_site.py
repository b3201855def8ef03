"""Whether a session's request comes from our own pages: origin and token, each on its own."""

from __future__ import annotations

import pytest

from llamaman.errors import Forbidden
from llamaman.gateway.client_address import ClientFacts
from llamaman.gateway.cross_site import check_change, check_form, check_read, is_form_page, is_setup
from llamaman.gateway.origins import parse_origin

PLAIN = ClientFacts("192.0.2.1", False, "nas.lan:5000", False)
SECURE = ClientFacts("192.0.2.1", True, "llm.example.org", True)
PUBLIC = parse_origin("https://llm.example.org")
TOKEN = "0123456789abcdef"
OURS = {b"origin": b"http://nas.lan:5000"}


def headers(**given: str) -> dict[bytes, bytes]:
    return {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in given.items()}


@pytest.mark.parametrize(
    "given",
    [
        headers(origin="http://nas.lan:5000"),
        headers(origin="http://NAS.lan:5000"),
        headers(origin="https://nas.lan:5000"),  # TLS that a proxy ended without telling us
        headers(referer="http://nas.lan:5000/users?x=1"),
        headers(referer="http://nas.lan:5000"),
        headers(origin="https://llm.example.org"),
        headers(referer="https://llm.example.org/login"),
        headers(origin="http://nas.lan:5000", sec_fetch_site="same-origin"),
        headers(origin="http://nas.lan:5000", referer="https://evil.example/"),
    ],
)
def test_a_change_from_our_own_page_with_the_token_passes(given: dict[bytes, bytes]) -> None:
    check_form(given, PLAIN, PUBLIC)
    check_change({**given, b"x-csrf-token": TOKEN.encode()}, PLAIN, PUBLIC, TOKEN)


@pytest.mark.parametrize(
    "given",
    [
        {},
        headers(origin="null"),
        headers(origin=""),
        headers(origin="null", referer="http://nas.lan:5000/"),
        headers(origin="http://nas.lan"),
        headers(origin="http://nas.lan:8000"),
        headers(origin="http://nas.lan:50000"),
        headers(origin="http://evil.example"),
        headers(origin="http://nas.lan.evil.example:5000"),
        headers(origin="http://nas.lan:5000@evil.example"),
        headers(origin="http://evil.example", referer="http://nas.lan:5000/"),
        headers(origin="app://nas.lan:5000"),
        headers(origin="http://llm.example.org"),
        headers(origin="https://llm.example.org:5000"),
        headers(referer="http://nas.lan:8000/"),
        headers(referer="http://evil.example/http://nas.lan:5000/"),
        headers(referer="http://nas.lan:5000@evil.example/"),
        headers(referer="about:blank"),
        headers(referer=""),
        headers(origin="http://nas.lan:5000", sec_fetch_site="cross-site"),
        headers(origin="http://nas.lan:5000", sec_fetch_site="same-site"),
        headers(origin="http://nas.lan:5000", sec_fetch_site="none"),
        headers(origin="http://nas.lan:5000", sec_fetch_site=""),
    ],
)
def test_a_change_from_anywhere_else_fails_even_with_the_token(given: dict[bytes, bytes]) -> None:
    with pytest.raises(Forbidden):
        check_form(given, PLAIN, PUBLIC)
    with pytest.raises(Forbidden):
        check_change({**given, b"x-csrf-token": TOKEN.encode()}, PLAIN, PUBLIC, TOKEN)


@pytest.mark.parametrize("token", [None, b"", TOKEN[:-1].encode(), TOKEN.upper().encode(), b"\xff" * 16])
def test_a_change_without_the_token_fails_even_from_our_own_page(token: bytes | None) -> None:
    given = dict(OURS) if token is None else {**OURS, b"x-csrf-token": token}
    with pytest.raises(Forbidden, match="X-CSRF-Token"):
        check_change(given, PLAIN, PUBLIC, TOKEN)


def test_over_tls_a_page_of_the_plain_address_is_another_page() -> None:
    check_form(headers(origin="https://llm.example.org"), SECURE, None)
    with pytest.raises(Forbidden):
        check_form(headers(origin="http://llm.example.org"), SECURE, None)


def test_a_refusal_says_what_to_set_if_the_address_is_ours() -> None:
    with pytest.raises(Forbidden, match="LLAMAMAN_PUBLIC_URL"):
        check_form(headers(origin="https://llm.example.com"), PLAIN, None)


@pytest.mark.parametrize(
    ("given", "page"),
    [
        ({}, False),
        (headers(sec_fetch_site="same-origin"), False),
        (headers(sec_fetch_site="none", sec_fetch_mode="navigate"), False),
        (headers(origin="http://nas.lan:5000"), False),
        (headers(sec_fetch_site="cross-site", sec_fetch_mode="navigate"), True),
        (headers(sec_fetch_site="same-site", sec_fetch_mode="navigate"), True),
        (headers(sec_fetch_site="same-origin", sec_fetch_mode="no-cors"), True),
    ],
)
def test_reading_passes_when_we_or_the_user_asked(given: dict[bytes, bytes], page: bool) -> None:
    check_read(given, PLAIN, PUBLIC, page=page)


@pytest.mark.parametrize(
    ("given", "page"),
    [
        (headers(origin="http://nas.lan:8000"), False),
        (headers(origin="http://nas.lan:8000"), True),
        (headers(origin="null"), False),
        (headers(origin="null", sec_fetch_site="same-origin"), False),
        (headers(sec_fetch_site="same-site"), False),
        (headers(sec_fetch_site="cross-site"), False),
        (headers(sec_fetch_site="cross-site", sec_fetch_mode="navigate"), False),
        (headers(sec_fetch_site="cross-site", sec_fetch_mode="no-cors"), True),
        (headers(sec_fetch_site="same-site", sec_fetch_mode="cors"), True),
    ],
)
def test_reading_fails_when_another_page_asked(given: dict[bytes, bytes], page: bool) -> None:
    with pytest.raises(Forbidden):
        check_read(given, PLAIN, PUBLIC, page=page)


@pytest.mark.parametrize("path", ["/login", "/logout", "/setup", "/setup/abc"])
def test_form_pages(path: str) -> None:
    assert is_form_page(path)


@pytest.mark.parametrize(
    "path",
    ["/", "/login/", "/loginx", "/login/x", "/setup/", "/setup/a/b", "/setups", "/api/setup", "/Login"],
)
def test_other_paths_take_no_forms(path: str) -> None:
    assert not is_form_page(path)


def test_setup_is_a_path_and_what_is_below() -> None:
    assert is_setup("/setup")
    assert is_setup("/setup/x")
    assert not is_setup("/setups")
