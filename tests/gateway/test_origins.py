"""Browser origins: grammar, who may ask without a key, and what a preflight is answered."""

from __future__ import annotations

import tracemalloc

import pytest

from llamaman.gateway.origins import (
    Origin,
    answer_headers,
    brings_key,
    is_allowed,
    listed_origins,
    origin_of_url,
    parse_origin,
    preflight_headers,
    requested_headers,
)

HOST = "nas.lan:5000"
LISTED = listed_origins(
    ["https://chat.example.org", "http://tool.example.org:8080", "https://[2001:db8::1]:444"]
)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "http://localhost:3000",
        "https://localhost:3000",
        "http://LOCALHOST:3000",
        "http://app.localhost",
        "https://tauri.localhost",
        "http://127.0.0.1:8080",
        "http://127.44.0.1",
        "http://[::1]:8080",
        "app://obsidian.md",
        "tauri://localhost",
        "vscode-webview://1ab2c3",
        "https://chat.example.org",
        "https://chat.example.org:443",
        "http://tool.example.org:8080",
        "https://[2001:db8::1]:444",
        "http://nas.lan:5000",
    ],
)
def test_pages_of_this_machine_apps_listed_ones_and_our_own_may_ask_without_a_key(origin: str) -> None:
    assert is_allowed(origin, HOST, LISTED)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "*",
        "http://",
        "localhost",
        "//localhost",
        "https://evil.example",
        "http://localhost.evil.example",
        "http://evil-localhost",
        "http://localhost@evil.example",
        "http://evil.example@localhost",
        "http://localhost/path",
        "http://localhost?x",
        "http://localhost#x",
        "http://localhost:99999",
        "http://localhost:",
        "http://localhost http://evil.example",
        "http://localhost, http://evil.example",
        "http://127.0.0.1.evil.example",
        "http://128.0.0.1",
        "http://0.0.0.0",
        "http://[::2]",
        "http://[::1",
        "http://chat.example.org",
        "https://chat.example.org:8443",
        "https://sub.chat.example.org",
        "http://tool.example.org",
        "http://nas.lan",
        "http://nas.lan:8000",
        "file://",
        "file://localhost",
        "ftp://localhost",
        "chrome-extension://abcdef",
        "ftp://nas.lan:5000",
        "javascript://localhost",
        "http://localh\u00f6st",
        "http://localhost\u00a0",
    ],
)
def test_no_other_page_may(origin: str) -> None:
    assert not is_allowed(origin, HOST, LISTED)


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://a", "a", True),
        ("http://a", "a:80", True),
        ("http://a:80", "a", True),
        ("https://a", "a:443", True),
        ("https://a", "a:80", False),
        ("http://a:5000", "a:5000", True),
        ("http://a:5000", "a", False),
        ("http://a", "a:5000", False),
        ("http://A", "a", True),
        ("http://[::1]:1", "[::1]:1", True),
        ("http://a", "b", False),
        ("http://a", "a@b", False),
    ],
)
def test_an_authority_is_compared_with_its_port(origin: str, host: str, same: bool) -> None:
    parsed = parse_origin(origin)
    assert parsed is not None
    assert parsed.is_authority_of(host) is same


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://a:5000/x?y#z", Origin("http", "a", 5000)),
        ("https://A.example/", Origin("https", "a.example", None)),
        ("https://a.example:443?x", Origin("https", "a.example", None)),
        ("http://a", Origin("http", "a", None)),
        ("http://user@a/", None),
        ("http://b@a", None),
        ("http://a\\@b/", None),
        ("http:///a", None),
        ("/a", None),
        ("about:blank", None),
        ("", None),
        ("http://a b/", None),
    ],
)
def test_a_url_belongs_to_one_origin_or_none(url: str, origin: Origin | None) -> None:
    assert origin_of_url(url) == origin


def test_a_page_may_read_but_never_with_the_browsers_credentials() -> None:
    headers = answer_headers(b"https://a.example")
    assert headers == b"access-control-allow-origin: https://a.example\r\nvary: Origin\r\n"
    assert answer_headers(b"null").startswith(b"access-control-allow-origin: null\r\n")


@pytest.mark.parametrize("origin", [b"", b"*", b"x", b"http://a/b", b"http://a\xe9", b"http://a, http://b"])
def test_what_is_no_origin_is_not_echoed(origin: bytes) -> None:
    assert answer_headers(origin) == b""


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, []),
        (b"", []),
        (b"authorization", [b"authorization"]),
        (b"Authorization, Content-Type", [b"authorization", b"content-type"]),
        (b"x-a,x-a , X-A", [b"x-a"]),
        (b'x-stainless-os,x y,x:y,<script>,x\xe9,,"q"', [b"x-stainless-os"]),
        (b"a" * 129, []),
    ],
)
def test_only_header_names_are_echoed(value: bytes | None, names: list[bytes]) -> None:
    assert requested_headers(value) == names


def test_a_preflight_announces_a_key_by_its_header() -> None:
    assert brings_key([b"content-type", b"authorization"])
    assert brings_key([b"x-api-key"])
    assert not brings_key([b"content-type", b"x-key"])


def test_a_preflight_is_answered_with_what_was_asked_and_no_more() -> None:
    bare = dict(preflight_headers(["GET"], [], private_network=False))
    assert bare == {b"access-control-allow-methods": b"GET", b"access-control-max-age": b"600"}
    full = dict(preflight_headers(["GET", "POST"], [b"authorization", b"x-a"], private_network=True))
    assert full == {
        b"access-control-allow-methods": b"GET, POST",
        b"access-control-allow-headers": b"authorization, x-a",
        b"access-control-max-age": b"600",
        b"access-control-allow-private-network": b"true",
    }


def test_what_strangers_send_as_an_origin_is_not_kept() -> None:
    tracemalloc.start()
    try:
        for number in range(600):
            origin = f"http://{number}{'a' * 20_000}"
            assert parse_origin(origin) is None
            assert not is_allowed(origin, "localhost", frozenset())
            assert answer_headers(origin.encode()) == b""
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
