"""Which URLs and addresses are asked at all."""

from __future__ import annotations

import ipaddress

import pytest

from llamaman.core.addresses import is_public
from llamaman.core.safe_url import Origin, Target, UrlRefused, check_target, parse_url


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "path"),
    [
        ("https://example.org", "https", "example.org", 443, "/"),
        ("https://Example.ORG./a?b=c#d", "https", "example.org", 443, "/a?b=c"),
        ("HTTPS://example.org:8443?x", "https", "example.org", 8443, "/?x"),
        ("http://mirror.lan/x", "http", "mirror.lan", 80, "/x"),
        ("https://8.8.8.8/", "https", "8.8.8.8", 443, "/"),
        ("https://8.8.8.8./", "https", "8.8.8.8", 443, "/"),
        ("https://[2606:4700::1]:444/", "https", "2606:4700::1", 444, "/"),
        ("https://example.org/ä%20ö", "https", "example.org", 443, "/%C3%A4%20%C3%B6"),
        ("https://example.org/a@b:c", "https", "example.org", 443, "/a@b:c"),
        ("https://my_bucket.example.org/", "https", "my_bucket.example.org", 443, "/"),
    ],
)
def test_a_url_is_read_as_every_other_program_reads_it(
    url: str, scheme: str, host: str, port: int, path: str
) -> None:
    assert parse_url(url) == Target(Origin(scheme, host, port), path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "//example.org",
        "ftp://example.org",
        "file:///etc/passwd",
        "gopher://example.org",
        "https:/example.org",
        "https:example.org",
        "https://",
        "https:///x",
        "https://user@example.org",
        "https://user:pass@example.org",
        "https://example.org@127.0.0.1",
        "https://example.org\\@127.0.0.1/",
        "https://example.org\\.evil.example/",
        "https://exa mple.org",
        " https://example.org",
        "https://example.org\r\nHost: x",
        "https://example.org/\x00",
        "https://example.org:0",
        "https://example.org:65536",
        "https://example.org:",
        "https://example.org:x",
        "https://exämple.org",
        "https://example。org",
        "https://①②⑦.0.0.1",
        "https://a..b",
        "https://.a",
        "https://2130706433",
        "https://0x7f000001",
        "https://0x7f.1",
        "https://0177.0.0.1",
        "https://127.1",
        "https://127.0.0.01",
        "https://256.1.1.1",
        "https://1.2.3.4.5",
        "https://[::1",
        "https://[::1%25lo]",
        "https://[fe80::1%eth0]",
        "https://[::ffff:999.1.1.1]",
        "https://" + "a" * 9000,
    ],
)
def test_a_url_that_two_programs_could_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        parse_url(url)


def test_only_https_is_asked_and_no_port_of_other_services() -> None:
    for url in ("https://example.org/", "https://example.org:8443/", "https://example.org:443/"):
        check_target(parse_url(url), frozenset())
    for url in ("http://example.org/", "https://example.org:22/", "https://example.org:25/"):
        with pytest.raises(UrlRefused):
            check_target(parse_url(url), frozenset())


def test_what_an_administrator_has_named_may_be_plain_http_and_only_that_very_origin() -> None:
    trusted = frozenset({Origin("http", "mirror.lan", 80)})
    check_target(parse_url("http://mirror.lan/x"), trusted)
    for url in ("http://mirror.lan:8080/", "http://mirror.lan.evil.example/", "http://x.mirror.lan/"):
        with pytest.raises(UrlRefused):
            check_target(parse_url(url), trusted)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00::2",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_no_private_or_special_address_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "223.255.255.255",
        "2606:4700::1111",
        "2a00:1450::1",
        "2001:200::1",
    ],
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
