"""Cookies: whose name it is, what a browser is told, what comes back."""

from __future__ import annotations

import pytest

from llamaman.core.accounts.cookies import clear_cookie, cookie_name, presession_name, set_cookie, values


def test_a_name_carries_the_installation_so_that_two_on_one_host_do_not_collide() -> None:
    assert cookie_name("a" * 32, False) != cookie_name("b" * 32, False)
    assert cookie_name("a" * 32, False).startswith("llamaman_")
    assert len(cookie_name("a" * 32, False)) == len("llamaman_") + 8


def test_over_tls_the_host_prefix_keeps_plain_http_from_setting_it() -> None:
    plain, secure = cookie_name("a" * 32, False), cookie_name("a" * 32, True)
    assert secure == f"__Host-{plain}"
    assert presession_name("a" * 32, True) == f"{secure}_pre"


def test_a_cookie_is_for_this_host_alone_and_out_of_reach_of_scripts() -> None:
    plain = set_cookie("llamaman_1", "v", secure=False, max_age_s=None).split("; ")
    assert plain == ["llamaman_1=v", "Path=/", "HttpOnly", "SameSite=Lax"]
    secure = set_cookie("__Host-llamaman_1", "v", secure=True, max_age_s=60).split("; ")
    assert {"Secure", "Max-Age=60", "Path=/"} <= set(secure)
    assert not any(part.startswith("Domain") for part in secure)


def test_a_removed_cookie_is_empty_and_over() -> None:
    assert clear_cookie("llamaman_1", secure=False).startswith("llamaman_1=; ")
    assert "Max-Age=0" in clear_cookie("llamaman_1", secure=True)


@pytest.mark.parametrize(
    ("name", "value"), [("a;b", "v"), ("a", "v; Domain=x"), ("a", "v\r\nX: y"), ("a b", "v")]
)
def test_nothing_breaks_out_of_the_header(name: str, value: str) -> None:
    with pytest.raises(ValueError):
        set_cookie(name, value, secure=False, max_age_s=None)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"", []),
        (b"n=1", ["1"]),
        (b"n=planted; other=x; n=good", ["planted", "good"]),
        (b"xn=1; nx=2; N=3", []),
        (b" n = 1 ;n=2", ["1", "2"]),
        (b"n", []),
        (b"n=", []),
        (b"n=a=b", ["a=b"]),
        (b"n=\xff\x00;;;=;n=ok", ["\xff\x00", "ok"]),
    ],
)
def test_every_cookie_of_the_name_is_seen_in_the_order_sent(header: bytes, expected: list[str]) -> None:
    assert values(header, "n") == expected
