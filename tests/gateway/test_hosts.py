"""Which Host values name us."""

from __future__ import annotations

import pytest

from llamaman.errors import Misdirected
from llamaman.gateway.hosts import check_host, is_ours, own_names

NAMES = own_names(["nas.example.org", "Box.Example.ORG.", "[2001:db8::5]", None, ""])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:5000",
        "192.168.1.10:5000",
        "8.8.8.8",
        "[::1]",
        "[::1]:5000",
        "[fe80::1]:5000",
        "localhost",
        "localhost:5000",
        "localhost.",
        "llamaman",
        "llamaman:42069",
        "my_service:42069",
        "a.localhost:5000",
        "nas.local",
        "nas.lan:5000",
        "nas.lan.:5000",
        "x.y.internal",
        "host.docker.internal:5000",
        "nas.home.arpa",
        "nas.example.org",
        "nas.example.org:8443",
        "nas.example.org.",
        "box.example.org",
    ],
)
def test_names_that_no_stranger_can_own_and_ours_pass(host: str) -> None:
    check_host(host, NAMES)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:5000",
        "evil.example.:5000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192-168-1-10.evil.example",
        "nas.example.org.evil.example",
        "evilnas.example.org",
        "example.org",
        "x.nas.example.org",
        "evil.notlocal",
        "evillan.com",
        "local.com",
        "a.lan.com",
        "127.1.x",
        "1.2.3",
        "999.1.1.1",
    ],
)
def test_every_other_name_is_refused(host: str) -> None:
    assert not is_ours(host, NAMES)
    with pytest.raises(Misdirected):
        check_host(host, NAMES)


def test_the_refusal_names_the_variable_and_what_to_paste() -> None:
    with pytest.raises(Misdirected, match=r"LLAMAMAN_ALLOWED_HOSTS=llm\.example\.com ") as refused:
        check_host("llm.example.com:5000", NAMES)
    assert refused.value.status == 421


def test_a_name_in_a_final_dot_is_the_same_name() -> None:
    assert is_ours("box.example.org.:1", NAMES)
    assert not is_ours("evil.example.", NAMES)
