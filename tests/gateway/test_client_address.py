"""Where a request comes from: what counts of X-Forwarded-*, from whom, and read from which side."""

from __future__ import annotations

import ipaddress

import pytest

from llamaman.gateway.client_address import ClientFacts, client_facts, is_loopback, parse_address
from llamaman.gateway.origins import origin_of_url

TRUSTED = (
    ipaddress.ip_network("10.0.0.0/8"),
    ipaddress.ip_network("fd00::/8"),
    ipaddress.ip_network("127.0.0.1/32"),
)


def facts(
    peer: str | None,
    host: str = "llm.lan:5000",
    *,
    trusted: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = TRUSTED,
    public: str | None = None,
    **headers: str,
) -> ClientFacts:
    named = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
    return client_facts(peer, host, named, trusted=trusted, public=origin_of_url(public) if public else None)


def test_a_chain_is_read_as_far_as_chains_of_proxies_go() -> None:
    """Whoever sits in a trusted network could have every request of theirs walk over thousands of addresses."""
    proxies = ", ".join(["10.0.0.2"] * 31)
    assert facts("10.1.1.1", x_forwarded_for=f"203.0.113.5, {proxies}").address == "203.0.113.5"
    assert facts("10.1.1.1", x_forwarded_for=f"203.0.113.5, 10.0.0.2, {proxies}").address == "10.0.0.2"


@pytest.mark.parametrize(
    ("chain", "address"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("203.0.113.5:4711", "203.0.113.5"),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]:443", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("::ffff:203.0.113.5", "203.0.113.5"),
        # three hops: client, two proxies of ours, the second being the peer
        ("203.0.113.5, 10.0.0.2", "203.0.113.5"),
        ("203.0.113.5, 10.0.0.3, 10.0.0.2", "203.0.113.5"),
        ("203.0.113.5, [fd00::2]:80, 10.0.0.2", "203.0.113.5"),
        # what the client wrote itself stands further left, and nobody asks
        ("127.0.0.1, 203.0.113.5", "203.0.113.5"),
        ("10.0.0.9, 203.0.113.5, 10.0.0.2", "203.0.113.5"),
        ("198.51.100.1, 203.0.113.5, 10.0.0.2", "203.0.113.5"),
        (" , ,203.0.113.5, ", "203.0.113.5"),
        # nobody but proxies: the furthest of them asks
        ("10.0.0.2", "10.0.0.2"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        # what is no address says only that the proxy before it does not tell
        ("unknown", "10.1.1.1"),
        ("203.0.113.5, unknown", "10.1.1.1"),
        ("203.0.113.5, _hidden, 10.0.0.2", "10.0.0.2"),
        ("203.0.113.5, 10.0.0.2evil", "10.1.1.1"),
        ("203.0.113.5, 999.0.0.1", "10.1.1.1"),
        ("203.0.113.5, [fd00::2", "10.1.1.1"),
        ("203.0.113.5, 10.0.0.2:port", "10.1.1.1"),
        ("", "10.1.1.1"),
        (",", "10.1.1.1"),
    ],
)
def test_the_client_is_the_first_from_the_right_whom_we_do_not_trust(chain: str, address: str) -> None:
    assert facts("10.1.1.1", x_forwarded_for=chain).address == address


@pytest.mark.parametrize("peer", ["203.0.113.9", "2001:db8::9", "11.0.0.1", "127.0.0.2"])
def test_nothing_that_an_untrusted_peer_says_counts(peer: str) -> None:
    found = facts(
        peer, x_forwarded_for="10.0.0.5", x_forwarded_proto="https", x_forwarded_host="localhost", via="x"
    )
    assert found == ClientFacts(peer, False, "llm.lan:5000", True)


def test_without_trusted_proxies_nobody_is_trusted() -> None:
    found = facts("127.0.0.1", trusted=(), x_forwarded_for="203.0.113.5", x_forwarded_proto="https")
    assert found == ClientFacts("127.0.0.1", False, "llm.lan:5000", True)


def test_a_unix_socket_has_no_address() -> None:
    assert facts(None, x_forwarded_for="203.0.113.5") == ClientFacts(None, False, "llm.lan:5000", True)


@pytest.mark.parametrize(
    ("chain", "proto", "secure"),
    [
        ("203.0.113.5", "https", True),
        ("203.0.113.5", "HTTPS", True),
        ("203.0.113.5", "http", False),
        ("203.0.113.5", "wss", False),
        ("203.0.113.5", "", False),
        # the one proxy adds to what the client wrote
        ("203.0.113.5", "https, http", False),
        ("203.0.113.5", "http, https", True),
        # TLS ends at the first of two proxies; the second adds how the first reached it, or nothing
        ("203.0.113.5, 10.0.0.2", "https, http", True),
        ("203.0.113.5, 10.0.0.2", "https", True),
        ("203.0.113.5, 10.0.0.2", "http, https", False),
        ("203.0.113.5, 10.0.0.2", "https, http, http", False),
        # the trusted proxy itself asks
        ("10.0.0.2", "https", True),
    ],
)
def test_the_scheme_is_the_one_that_the_proxy_at_the_client_saw(chain: str, proto: str, secure: bool) -> None:
    assert facts("10.1.1.1", x_forwarded_for=chain, x_forwarded_proto=proto).secure is secure


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("llm.example.org", "llm.example.org"),
        ("LLM.example.org:8443", "llm.example.org:8443"),
        ("evil.example, llm.example.org", "llm.example.org"),
        ("", "llm.lan:5000"),
        ("user@llm.example.org", "llm.lan:5000"),
        ("a b", "llm.lan:5000"),
        ("llm.example.org:99999", "llm.lan:5000"),
    ],
)
def test_the_host_is_the_one_that_the_proxy_was_asked_for(given: str, host: str) -> None:
    assert facts("10.1.1.1", x_forwarded_host=given).host == host


@pytest.mark.parametrize(
    ("url", "host", "secure"),
    [
        ("https://llm.example.org", "llm.example.org", True),
        ("https://llm.example.org", "llm.example.org:443", True),
        ("https://llm.example.org:8443/llm", "llm.example.org:8443", True),
        ("https://llm.example.org", "llm.example.org:5000", False),
        ("https://llm.example.org", "llm.lan:5000", False),
        ("http://llm.example.org", "llm.example.org", False),
    ],
)
def test_a_public_https_address_makes_requests_to_it_secure(url: str, host: str, secure: bool) -> None:
    assert facts("203.0.113.9", host, public=url).secure is secure


@pytest.mark.parametrize(
    "name", ["forwarded", "via", "x_real_ip", "x_forwarded_for", "x_forwarded_port", "x_forwarded_anything"]
)
def test_a_proxy_shows_by_any_of_its_headers(name: str) -> None:
    assert facts("127.0.0.1", **{name: "1"}).via_proxy
    assert not facts("127.0.0.1", user_agent="x").via_proxy


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1.2.3",
        "1.2.3.4.5",
        "1.2.3.4:",
        "1.2.3.4:1:2",
        "[::1]x",
        "[::1]:x",
        "[1.2.3.4",
        "::1]",
        "1.2.3.4:²",
    ],
)
def test_what_is_no_address_is_none(text: str) -> None:
    assert parse_address(text) is None


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "[::1]:80"])
def test_loopback_addresses_are_known_in_every_spelling(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", [None, "", "localhost", "10.0.0.1", "::2", "0.0.0.0"])
def test_nothing_else_is_loopback(address: str | None) -> None:
    assert not is_loopback(address)
