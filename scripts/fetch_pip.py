"""Fetches one pinned pip wheel from the package index with the standard library alone, for bootstrap_venv.py.

Guarantees: the bytes are those of the sha256 below whatever the index or a proxy answers; the index,
certificates and proxies that the user configured for pip are used; a failure says which address failed and
what to do.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

WHEEL = "pip-26.3-py3-none-any.whl"
SHA256 = (
    "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"  # as listed by PyPI's simple index
)
PUBLIC_INDEX = "https://pypi.org/simple"  # pip's own default
LIMIT = 32 * 1024 * 1024
TIMEOUT_S = 30.0
OTHER_WAY = (
    "or install it yourself (Debian, Ubuntu: apt-get install python3-venv) and run the same command again"
)


class FetchError(Exception):
    """pip could not be fetched; the text names the address, the cause and the ways out."""


def pip_settings() -> dict[str, str]:
    """The [global] and [install] values of pip's configuration files; later files win, as in pip."""
    files = ["/etc/pip.conf", "/etc/xdg/pip/pip.conf", "~/.pip/pip.conf"]
    files.append(os.path.join(os.environ.get("XDG_CONFIG_HOME") or "~/.config", "pip", "pip.conf"))
    files.append(os.environ.get("PIP_CONFIG_FILE", ""))
    found: dict[str, str] = {}
    parser = configparser.RawConfigParser()
    for name in files:
        if not name or name == os.devnull:
            continue
        try:
            parser.read(os.path.expanduser(name))
        except configparser.Error as error:
            raise FetchError(f"pip's configuration file {name} cannot be read: {error}") from error
    for section in ("global", "install"):
        if parser.has_section(section):
            found.update(parser.items(section))
    return found


def index_url(settings: dict[str, str]) -> str:
    """The index that pip itself would ask first."""
    return (os.environ.get("PIP_INDEX_URL") or settings.get("index-url") or PUBLIC_INDEX).strip().rstrip("/")


def certificates(settings: dict[str, str]) -> ssl.SSLContext:
    """Trust what the user told pip, requests or OpenSSL to trust, else the system's store."""
    names = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    named = [os.environ.get(name) for name in names] + [settings.get("cert")]
    bundle = next((path for path in named if path and os.path.isfile(path)), None)
    return ssl.create_default_context(cafile=bundle)


def read(url: str, context: ssl.SSLContext) -> bytes:
    """GET `url` (user:password@ in it becomes basic authentication), at most LIMIT bytes."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("https", "http", "file"):
        raise FetchError(
            f"the index address {redacted(url)} is neither https, http nor file; correct PIP_INDEX_URL"
        )
    accept = "application/vnd.pypi.simple.v1+html, text/html;q=0.9, */*;q=0.1"  # HTML: every mirror has it
    request = urllib.request.Request(redacted(url), headers={"Accept": accept})  # noqa: S310 - scheme checked above
    if parts.username:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_header("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:  # noqa: S310 - as above
        return bytes(answer.read(LIMIT))


def redacted(url: str) -> str:
    """`url` without the credentials that may stand in it."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def wheel_url(page: str, base: str) -> str | None:
    """The address of the pinned wheel on an index page; None when the index does not list it."""
    for href in re.findall(r"""href\s*=\s*["']([^"']+)["']""", page, flags=re.IGNORECASE):
        address = urllib.parse.urljoin(base, href.replace("&amp;", "&"))
        if urllib.parse.unquote(urllib.parse.urlsplit(address).path).endswith("/" + WHEEL):
            return str(urllib.parse.urldefrag(address).url)
    return None


def fetch_pip_wheel(folder: Path, say: Callable[[str], None]) -> Path:
    """Download the pinned pip wheel into `folder` and return its path. Raises FetchError."""
    settings = pip_settings()
    index = index_url(settings)
    page_url = f"{index}/pip/" if not index.startswith("file:") else f"{index}/pip/index.html"
    context = certificates(settings)
    try:
        try:
            content = download(page_url, context)
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLCertVerificationError):
                raise
            say("no trusted certificates here; going on, because the pinned sha256 proves pip's wheel")
            content = download(page_url, ssl._create_unverified_context())  # noqa: S323 - the pinned sha256 decides
    except (OSError, ValueError) as error:  # URLError is an OSError; ValueError: a malformed address
        raise FetchError(
            f"pip could not be fetched from {redacted(page_url)}: {error}. "
            "Check the network (https_proxy, a mirror in PIP_INDEX_URL, certificates in PIP_CERT), "
            f"{OTHER_WAY}."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise FetchError(
            f"{WHEEL} from {redacted(page_url)} has sha256 {digest}, expected {SHA256}; nothing was run."
        )
    target = folder / WHEEL
    target.write_bytes(content)
    return target


def download(page_url: str, context: ssl.SSLContext) -> bytes:
    """The pinned wheel's bytes as the index page at `page_url` points to them."""
    address = wheel_url(read(page_url, context).decode("utf-8", errors="replace"), page_url)
    if address is None:
        raise FetchError(
            f"{redacted(page_url)} does not list {WHEEL}; use another index in PIP_INDEX_URL, {OTHER_WAY}."
        )
    return read(address, context)
