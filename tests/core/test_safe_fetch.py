"""Fetching by URL with real servers: what is asked, at which address, with which credentials, and how much is taken.

``media.example`` and ``cdn.example`` are public here, at an address of loopback that passes for public; everything
else of this machine is what it is. The canary listens on loopback's own address and must never hear of anything.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llamaman.core import safe_fetch as module
from llamaman.core.safe_fetch import Fetch, Fetched, FetchFailed, FetchTooLarge, Rules, safe_fetch
from llamaman.core.safe_url import Origin, UrlRefused
from llamaman.testing.wire import lan_address

from .web import Page, Web, certificate, redirect, serve

PUBLIC = "127.77.0.2"
OTHER = "127.77.0.3"
NAMES = {"media.example": [PUBLIC], "cdn.example": [OTHER], "half.example": [PUBLIC, "127.0.0.1"]}

Ask = Callable[..., Fetched]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"), "media.example", "cdn.example", "half.example")


@pytest.fixture(scope="module")
def servers(tls: tuple[Path, Path]) -> Iterator[tuple[Web, Web, Web]]:
    """The first host, the second one, and the canary at the same port as the first."""
    with (
        serve(PUBLIC, tls) as media,
        serve(OTHER, tls) as cdn,
        serve("127.0.0.1", port=media.port) as canary,
    ):
        yield media, cdn, canary


@pytest.fixture
def web(
    servers: tuple[Web, Web, Web], tls: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Web, Web, Web]]:
    """The servers with nothing to tell; afterwards nobody was at the canary."""
    context = ssl.create_default_context(cafile=str(tls[0]))
    really = module.is_public
    monkeypatch.setattr(module, "_tls", lambda: context)
    monkeypatch.setattr(module, "is_public", lambda a: str(a) in (PUBLIC, OTHER) or really(a))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for each in servers:
        each.pages.clear()
        each.asked.clear()
        each.connections = 0
    yield servers
    assert servers[2].connections == 0, "the canary was asked"


def lookup(host: str, port: int) -> list[str]:
    if host in NAMES:
        return NAMES[host]
    return module.resolve(host, port)


def ask(url: str, headers: dict[str, str] | None = None, **rules: object) -> Fetched:
    options = {"most_bytes": 1000, "deadline_s": 10.0, "stall_s": 5.0, "resolve": lookup, **rules}
    return safe_fetch(url, Rules(**options), headers)  # type: ignore[arg-type] # the fields of Rules


def test_a_file_is_fetched_with_what_its_host_says_of_it(web: tuple[Web, Web, Web]) -> None:
    media = web[0]
    media.pages["/a?b=1"] = Page(b"picture", headers=[("Content-Type", "image/png")])
    url = f"https://media.example:{media.port}/a?b=1"
    assert ask(url + "#c") == Fetched(url, "image/png", b"picture")
    (asked,) = media.asked
    assert asked.headers["host"] == f"media.example:{media.port}"
    assert asked.headers["accept-encoding"] == "identity"


def test_a_host_must_prove_its_name(web: tuple[Web, Web, Web]) -> None:
    with pytest.raises(FetchFailed, match="CERTIFICATE_VERIFY_FAILED"):
        ask(f"https://stranger.example:{web[0].port}/", resolve=lambda host, port: [PUBLIC])
    assert web[0].asked == []


# --- addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "[::]",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "half.example",
        "user@127.0.0.1",
        "media.example@127.0.0.1",
        "LAN",
    ],
)
def test_what_is_not_on_the_internet_is_not_even_connected_to(
    web: tuple[Web, Web, Web], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    def connect(*args: object, **options: object) -> socket.socket:
        raise AssertionError(f"a connection to {args}")

    monkeypatch.setattr(socket, "create_connection", connect)
    port = web[2].port
    web[0].pages["/"] = redirect(f"https://{host}:{port}/")
    name = (lan_address() or "192.168.0.1") if host == "LAN" else host
    for scheme in ("https", "http"):
        with pytest.raises(UrlRefused):
            ask(f"{scheme}://{name}:{port}/")


def test_this_machines_own_address_is_not_asked_although_it_were_public(
    web: tuple[Web, Web, Web], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = lan_address()
    if own is None:
        pytest.skip("this machine has no address besides loopback")
    monkeypatch.setattr(module, "is_public", lambda address: True)
    with pytest.raises(UrlRefused), serve(own) as here:
        ask(f"https://{own}:{here.port}/")
    assert here.connections == 0


def test_the_address_that_was_judged_is_the_one_that_is_asked(web: tuple[Web, Web, Web]) -> None:
    looked: list[str] = []

    def changing(host: str, port: int) -> list[str]:
        looked.append(host)
        return [PUBLIC] if len(looked) == 1 else ["127.0.0.1"]

    web[0].pages["/"] = Page(b"here")
    assert ask(f"https://media.example:{web[0].port}/", resolve=changing).data == b"here"
    assert looked == ["media.example"]


def test_a_name_whose_address_changes_between_redirects_is_judged_again(web: tuple[Web, Web, Web]) -> None:
    looked: list[str] = []

    def changing(host: str, port: int) -> list[str]:
        looked.append(host)
        return [PUBLIC] if len(looked) == 1 else ["127.0.0.1"]

    web[0].pages["/"] = redirect("/again")
    with pytest.raises(UrlRefused):
        ask(f"https://media.example:{web[0].port}/", resolve=changing)


def test_the_systems_own_resolver_cannot_lead_elsewhere(
    web: tuple[Web, Web, Web], monkeypatch: pytest.MonkeyPatch
) -> None:
    really = socket.getaddrinfo
    names: list[object] = []

    def changing(host: str, *args: int, **options: int) -> object:
        if host == "media.example":
            names.append(host)
            return really(PUBLIC if len(names) == 1 else "127.0.0.1", *args, **options)
        return really(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    web[0].pages["/"] = Page(b"here")
    assert ask(f"https://media.example:{web[0].port}/", resolve=module.resolve).data == b"here"
    assert names == ["media.example"]


@pytest.mark.parametrize("answer", [[], ["fe80::1%lo"], ["no address"]])
def test_a_resolver_that_answers_nonsense_leads_nowhere(web: tuple[Web, Web, Web], answer: list[str]) -> None:
    with pytest.raises((UrlRefused, FetchFailed)):
        ask(f"https://media.example:{web[0].port}/", resolve=lambda host, port: answer)


# --- redirects and credentials ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_relative_ones_too(web: tuple[Web, Web, Web], status: int) -> None:
    media, cdn, _ = web
    media.pages["/a/b"] = redirect("../c", status)
    media.pages["/c"] = redirect(f"https://cdn.example:{cdn.port}/d", status)
    cdn.pages["/d"] = Page(b"there")
    fetched = ask(f"https://media.example:{media.port}/a/b")
    assert (fetched.data, fetched.url) == (b"there", f"https://cdn.example:{cdn.port}/d")


@pytest.mark.parametrize(
    "to",
    [
        "https://127.0.0.1:{port}/",
        "https://localhost:{port}/",
        "http://127.0.0.1:{port}/",
        "//127.0.0.1:{port}/",
        "https://[::ffff:127.0.0.1]:{port}/",
        "https://2130706433:{port}/",
        "https://x@127.0.0.1:{port}/",
        "https://169.254.169.254/latest/meta-data/",
        "https://half.example:{port}/",
        "http://media.example:{port}/",
        "file:///etc/passwd",
        "ftp://media.example/",
        "https://media.example:25/",
        "https://media.example\\@127.0.0.1:{port}/",
    ],
)
def test_every_redirect_is_judged_like_the_url_itself(web: tuple[Web, Web, Web], to: str) -> None:
    media, cdn, canary = web
    media.pages["/"] = redirect(f"https://cdn.example:{cdn.port}/on")
    cdn.pages["/on"] = redirect(to.format(port=canary.port))
    with pytest.raises(UrlRefused):
        ask(f"https://media.example:{media.port}/")
    assert [asked.path for asked in media.asked + cdn.asked] == ["/", "/on"]


def test_five_redirects_are_followed_and_no_sixth(web: tuple[Web, Web, Web]) -> None:
    media = web[0]
    for number in range(6):
        media.pages[f"/{number}"] = redirect(f"/{number + 1}")
    media.pages["/6"] = Page(b"end")
    base = f"https://media.example:{media.port}"
    assert ask(f"{base}/1").data == b"end"
    with pytest.raises(FetchFailed, match="more than 5 redirects"):
        ask(f"{base}/0")
    assert media.asked[-1].path == "/5"


def test_a_token_never_reaches_a_second_host(web: tuple[Web, Web, Web]) -> None:
    media, cdn, _ = web
    media.pages["/file"] = redirect("/moved")
    media.pages["/moved"] = redirect(f"https://cdn.example:{cdn.port}/file")
    cdn.pages["/file"] = redirect(f"https://media.example:{media.port}/back")
    media.pages["/back"] = Page(b"found")
    secrets = {"Authorization": "Bearer hf_secret", "cookie": "a=b", "X-Api-Key": "c"}
    headers = {**secrets, "Range": "bytes=0-"}
    assert ask(f"https://media.example:{media.port}/file", headers).data == b"found"
    first, moved, back = media.asked
    (other,) = cdn.asked
    for asked in (first, moved):
        assert asked.headers["authorization"] == "Bearer hf_secret"
        assert asked.headers["x-api-key"] == "c"
    for asked in (other, back):
        assert not {"authorization", "cookie", "x-api-key"} & set(asked.headers)
        assert asked.headers["range"] == "bytes=0-", "what is no secret goes on"


def test_another_port_is_another_host_to_a_token(web: tuple[Web, Web, Web], tls: tuple[Path, Path]) -> None:
    media = web[0]
    with serve(PUBLIC, tls) as neighbour:
        media.pages["/"] = redirect(f"https://media.example:{neighbour.port}/")
        neighbour.pages["/"] = Page(b"found")
        assert ask(f"https://media.example:{media.port}/", {"Authorization": "x"}).data == b"found"
        assert "authorization" not in neighbour.asked[0].headers


# --- how much and how long ----------------------------------------------------------------------------


def test_what_declares_too_much_is_not_read(web: tuple[Web, Web, Web]) -> None:
    web[0].pages["/"] = Page(b"x" * 1001, headers=[("Content-Type", "image/png")])
    web[0].pages["/fits"] = Page(b"x" * 1000)
    url = f"https://media.example:{web[0].port}"
    with pytest.raises(FetchTooLarge, match="declares 1001 bytes; the most is 1000"):
        ask(f"{url}/")
    assert len(ask(f"{url}/fits").data) == 1000


def test_what_declares_nothing_is_cut_at_the_limit(web: tuple[Web, Web, Web]) -> None:
    web[0].pages["/"] = Page(b"x" * 200_000, chunked=True)
    with pytest.raises(FetchTooLarge, match="sends more than 1000 bytes"):
        ask(f"https://media.example:{web[0].port}/")


def test_a_body_that_breaks_off_is_no_body(web: tuple[Web, Web, Web]) -> None:
    web[0].pages["/"] = Page(b"x" * 10, length=20)
    with pytest.raises(FetchFailed, match="broke off after 10 of 20 bytes"):
        ask(f"https://media.example:{web[0].port}/")


def test_silence_and_dripping_end_in_time(web: tuple[Web, Web, Web]) -> None:
    web[0].pages["/silent"] = Page(b"x", pause_s=5)
    web[0].pages["/drip"] = Page(b"x" * 500, pause_s=0.02)
    url = f"https://media.example:{web[0].port}"
    began = time.monotonic()
    with pytest.raises(FetchFailed, match=r"was silent for 0\.2 s"):
        ask(f"{url}/silent", stall_s=0.2)
    with pytest.raises(FetchFailed, match=r"took longer than 0\.3 s"):
        ask(f"{url}/drip", deadline_s=0.3)
    assert time.monotonic() - began < 4


def test_a_body_that_would_grow_when_unpacked_is_refused(web: tuple[Web, Web, Web]) -> None:
    web[0].pages["/"] = Page(b"x", headers=[("Content-Encoding", "gzip")])
    with pytest.raises(FetchFailed, match="compressed"):
        ask(f"https://media.example:{web[0].port}/")


def test_an_error_of_the_host_is_told_and_a_large_file_can_be_read_in_pieces(
    web: tuple[Web, Web, Web],
) -> None:
    web[0].pages["/"] = Page(b"x" * 100_000)
    url = f"https://media.example:{web[0].port}"
    with pytest.raises(FetchFailed, match="answered 404"):
        ask(f"{url}/nothing")
    rules = Rules(1 << 20, None, 5.0, resolve=lookup)
    with Fetch(f"{url}/", rules) as fetch:
        assert (fetch.status, fetch.headers["content-length"]) == (200, "100000")
        assert sum(map(len, fetch.chunks())) == 100_000


# --- who is trusted, and proxies ----------------------------------------------------------------------


def test_an_origin_that_the_administrator_named_may_be_private_and_plain(tmp_path: Path) -> None:
    with serve("127.0.0.1") as mirror, serve("127.0.0.1") as canary:
        mirror.pages["/file"] = Page(b"model")
        mirror.pages["/on"] = redirect(f"http://127.0.0.1:{canary.port}/")
        trusted = frozenset({Origin("http", "127.0.0.1", mirror.port)})
        url = f"http://127.0.0.1:{mirror.port}"
        assert ask(f"{url}/file", trusted=trusted).data == b"model"
        with pytest.raises(UrlRefused):
            ask(f"{url}/on", trusted=trusted)
        with pytest.raises(UrlRefused):
            ask(f"{url}/file")
        assert canary.connections == 0


def test_only_listed_hosts_are_asked_when_there_is_a_list(web: tuple[Web, Web, Web]) -> None:
    media, cdn, _ = web
    media.pages["/"] = Page(b"here")
    media.pages["/on"] = redirect(f"https://cdn.example:{cdn.port}/")
    hosts = frozenset({"media.example"})
    assert ask(f"https://media.example:{media.port}/", hosts=hosts).data == b"here"
    with pytest.raises(UrlRefused, match=r"cdn\.example is not among the hosts"):
        ask(f"https://media.example:{media.port}/on", hosts=hosts)
    with pytest.raises(UrlRefused):
        ask(f"https://half.example:{media.port}/", hosts=frozenset({"half.example"}))


def test_behind_a_proxy_a_list_of_hosts_takes_the_place_of_the_addresses(
    web: tuple[Web, Web, Web], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve("127.0.0.1") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:pass%20word@127.0.0.1:{proxy.port}")
        for url in ("https://media.example/", "https://127.0.0.1/", "https://evil.example/"):
            with pytest.raises(UrlRefused):
                ask(url)
        assert proxy.asked == []
        hosts = frozenset({"far.example"})
        with pytest.raises(UrlRefused):
            ask("https://evil.example/", hosts=hosts)
        with pytest.raises(FetchFailed):  # this proxy only listens
            ask("https://far.example/", {"Authorization": "token"}, hosts=hosts)
        (asked,) = proxy.asked
        assert asked.path == "far.example:443"
        assert asked.headers["proxy-authorization"] == "Basic bWU6cGFzcyB3b3Jk"
        assert "authorization" not in asked.headers
        monkeypatch.setenv("NO_PROXY", "media.example")
        web[0].pages["/"] = Page(b"direct")
        assert ask(f"https://media.example:{web[0].port}/").data == b"direct"
        assert len(proxy.asked) == 1


def test_a_proxy_forwards_plain_http_only_to_a_trusted_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve("127.0.0.1") as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        proxy.pages["http://mirror.example/file"] = Page(b"model")
        trusted = frozenset({Origin("http", "mirror.example", 80)})
        assert ask("http://mirror.example/file", trusted=trusted).data == b"model"
        with pytest.raises(UrlRefused):
            ask("http://other.example/file", trusted=trusted, hosts=frozenset({"other.example"}))
        assert len(proxy.asked) == 1


def test_the_address_that_passes_for_public_here_is_not() -> None:
    assert not module.is_public(ipaddress.IPv4Address(PUBLIC))
