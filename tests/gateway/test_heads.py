"""Which request heads are accepted, and what the accepted ones mean."""

from __future__ import annotations

import pytest

from llamaman.gateway.heads import BadHead, Head, check_head, check_partial_head, version_of

HOST = (b"Host", b"localhost:5000")


def head(
    target: bytes = b"/v1/models",
    *headers: tuple[bytes, bytes],
    method: bytes = b"GET",
    version: str = "1.1",
    host: bool = True,
) -> Head:
    return check_head(method, target, version, [HOST, *headers] if host else list(headers))


def test_a_head_is_decoded_once_and_keeps_the_wire_form() -> None:
    result = head(b"/v1/mod%65ls/a%2525?q=%2F..", (b"X-Thing", b"1"), method=b"POST")
    assert (result.method, result.path, result.raw_path, result.query) == (
        "POST",
        "/v1/models/a%25",
        b"/v1/mod%65ls/a%2525",
        b"q=%2F..",
    )
    assert result.headers == [(b"host", b"localhost:5000"), (b"x-thing", b"1")]
    assert result.host == "localhost:5000"
    assert (result.content_length, result.chunked, result.expect_continue) == (None, False, False)


def test_names_with_an_underscore_are_dropped_because_cgi_reads_them_as_a_dash() -> None:
    result = head(b"/", (b"X_Cluster_Secret", b"x"), (b"Content_Length", b"5"))
    assert result.headers == [(b"host", b"localhost:5000")]
    assert result.content_length is None


def test_unicode_paths_are_accepted_in_escapes() -> None:
    assert head(b"/api/presets/caf%C3%A9").path == "/api/presets/café"


@pytest.mark.parametrize("path", [b"/a.b/..c/.d", b"/...", b"/a/b..", b"/.well-known/x", b"/%2Ea"])
def test_dots_inside_names_are_ordinary(path: bytes) -> None:
    assert head(path).path.startswith("/")


@pytest.mark.parametrize(
    "target",
    [
        b"http://other.example/v1",
        b"other.example:443",
        b"*",
        b"",
        b"v1/models",
        b"/" + b"a" * 8192,
        b"//v1",
        b"/v1//models",
        b"/v1/%2fmodels",
        b"/v1%2Fmodels",
        b"/v1/../models",
        b"/v1/./models",
        b"/v1/..",
        b"/v1/.",
        b"/..",
        b"/v1/%2e%2e/x",
        b"/v1/%2E/x",
        b"/v1/.%2e",
        b"/v1/%00",
        b"/v1/\x00",
        b"/v1/%0d%0aSet-Cookie:x",
        b"/v1/%7f",
        b"/v1\\models",
        b"/v1/%5cmodels",
        b"/v1/%ff",
        b"/v1/%c0%ae",
        b"/v1/\xff",
        b"/v1/%",
        b"/v1/%2",
        b"/v1/%zz",
        b"/v1/a b",
        b"/v1#fragment",
    ],
)
def test_a_target_that_two_programs_could_read_differently_is_refused(target: bytes) -> None:
    with pytest.raises(BadHead):
        head(target)


@pytest.mark.parametrize(
    "value",
    [
        b"localhost",
        b"localhost:5000",
        b"127.0.0.1:1",
        b"[::1]:5000",
        b"[::1]",
        b"my-host.example.",
        b"a",
        b"my_host:80",
    ],
)
def test_host_grammar_accepts_names_and_addresses(value: bytes) -> None:
    assert check_head(b"GET", b"/", "1.1", [(b"Host", value)]).host == value.decode()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"a b",
        b"a,b",
        b"a/b",
        b"user@a",
        b"a:b",
        b"a:",
        b":80",
        b"a:99999",
        b"a:123456",
        b"[::1",
        b"::1",
        b"a?b",
        b"\xff",
    ],
)
def test_a_malformed_host_is_refused(value: bytes) -> None:
    with pytest.raises(BadHead, match="Host"):
        check_head(b"GET", b"/", "1.1", [(b"Host", value)])


def test_exactly_one_host_is_needed_in_every_version() -> None:
    for version in ("1.0", "1.1"):
        with pytest.raises(BadHead, match="Host"):
            head(host=False, version=version)
        with pytest.raises(BadHead, match="more than once"):
            head(b"/", (b"HOST", b"localhost:5000"), version=version)


@pytest.mark.parametrize("version", ["0.9", "2.0", "1.2", ""])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(BadHead, match=r"HTTP/1\.1"):
        head(version=version)


@pytest.mark.parametrize("method", [b"CONNECT", b"TRACE", b"G T", b"", b"G\xff"])
def test_methods_that_are_no_business_of_ours_are_refused(method: bytes) -> None:
    with pytest.raises(BadHead, match="method"):
        head(method=method)


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\xe9", b"a\x00", b'a"', b"(a)"])
def test_a_header_name_is_a_token(name: bytes) -> None:
    with pytest.raises(BadHead, match="name"):
        head(b"/", (name, b"x"))


def test_a_header_name_has_an_end() -> None:
    assert head(b"/", (b"x" * 256, b"1")).headers[-1] == (b"x" * 256, b"1")
    with pytest.raises(BadHead, match="256 bytes"):
        head(b"/", (b"x" * 257, b"1"))


@pytest.mark.parametrize(
    "name",
    [
        b"Authorization",
        b"X-Api-Key",
        b"Origin",
        b"Content-Type",
        b"Cookie",
        b"X-Cluster-Secret",
        b"x-cluster-anything",
        b"Content-Length",
        b"Expect",
    ],
)
def test_headers_that_decide_something_may_come_only_once(name: bytes) -> None:
    assert head(b"/", (name, b"1")).headers[-1] == (name.lower(), b"1")
    with pytest.raises(BadHead, match="more than once"):
        head(b"/", (name, b"1"), (name.upper(), b"1"))


def test_ordinary_headers_may_repeat() -> None:
    assert len(head(b"/", (b"Accept", b"a"), (b"Accept", b"b")).headers) == 3


def test_a_hundred_headers_is_the_limit() -> None:
    headers = [(b"X-%d" % n, b"") for n in range(99)]
    assert len(head(b"/", *headers).headers) == 100
    with pytest.raises(BadHead, match="100 headers"):
        head(b"/", *headers, (b"X-more", b""))


def test_both_key_headers_must_carry_the_same_key() -> None:
    same = head(b"/", (b"Authorization", b"Bearer  abc"), (b"X-Api-Key", b"abc"))
    assert len(same.headers) == 3
    assert len(head(b"/", (b"Authorization", b"abc"), (b"X-Api-Key", b"abc")).headers) == 3
    with pytest.raises(BadHead, match="different keys") as refused:
        head(b"/", (b"Authorization", b"Bearer abc"), (b"X-Api-Key", b"abd"))
    assert "abc" not in str(refused.value)


@pytest.mark.parametrize("value", [b"-1", b"+1", b"1 ", b"0x1", b"1,1", b"", b"9" * 19, b"\xb2"])
def test_content_length_is_plain_digits(value: bytes) -> None:
    with pytest.raises(BadHead, match="Content-Length"):
        head(b"/", (b"Content-Length", value))


def test_body_framing_is_read_from_one_header_only() -> None:
    assert head(b"/", (b"Content-Length", b"12")).content_length == 12
    assert head(b"/", (b"Transfer-Encoding", b"Chunked")).chunked
    for headers in (
        [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"1")],
        [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"gzip, chunked")],
        [(b"Transfer-Encoding", b"identity")],
    ):
        with pytest.raises(BadHead):
            head(b"/", *headers)
    with pytest.raises(BadHead):
        head(b"/", (b"Transfer-Encoding", b"chunked"), version="1.0")


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        ("1.1", [], True),
        ("1.0", [], False),
        ("1.1", [b"close"], False),
        ("1.1", [b"foo, Close"], False),
        ("1.0", [b"Keep-Alive"], True),
        ("1.1", [b"keep-alive", b"close"], False),
    ],
)
def test_keep_alive_follows_version_and_connection_options(
    version: str, connection: list[bytes], kept: bool
) -> None:
    headers = [(b"Connection", value) for value in connection]
    assert head(b"/", *headers, version=version).keep_alive is kept


def test_expect_continue_is_for_http_1_1() -> None:
    assert head(b"/", (b"Expect", b"100-Continue")).expect_continue
    assert not head(b"/", (b"Expect", b"100-continue"), version="1.0").expect_continue
    assert not head(b"/", (b"Expect", b"fun")).expect_continue


@pytest.mark.parametrize(
    "part", [b"\x16\x03\x01\x02", b" GET /", b"GET / HTTP/1.1\nHost", b"GET /\r\n", b"GET / RTSP/1.0\r\n"]
)
def test_what_can_never_become_a_head_is_refused_before_its_end(part: bytes) -> None:
    with pytest.raises(BadHead):
        check_partial_head(part)


@pytest.mark.parametrize(
    "part", [b"G", b"GET / HTTP/1.1", b"GET / HTTP/1.1\r", b"GET / HTTP/1.0\r\nHost: x\r"]
)
def test_the_beginning_of_a_head_is_waited_for(part: bytes) -> None:
    check_partial_head(part)


def test_the_version_is_read_from_the_request_line() -> None:
    assert version_of(b"GET / HTTP/1.1\r\nX: HTTP/1.0\r\n\r\n") == "1.1"
    assert version_of(b"SOURCE / ICE/1.0\r\n\r\n") == ""
