"""Parsers of environment variables. Read by `config.py` only.

A :class:`Parser` turns text into a value or raises ``ValueError``; ``allowed`` finishes the sentence
"... is not allowed; it must be ...". No parser's own error text repeats the value, which may be a secret.
"""

from __future__ import annotations

import ipaddress
import math
import os
import pwd
import re
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_DOCKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,100}")
_IMAGE = re.compile(
    r"[a-z0-9][a-z0-9._/-]*(:[0-9]+/[a-z0-9._/-]+)?(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_GPU_LIST = re.compile(r"[0-9]{1,3}(,[0-9]{1,3})*")
_API_KEY = re.compile(r"llm-[A-Za-z0-9_-]{32,128}")
_PLUGIN_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Parser:
    """How one kind of value is read.

    :ivar parse: text (stripped, never empty) -> value; raises ``ValueError``.
    :ivar allowed: what is allowed, in words for the operator.
    """

    parse: Callable[[str], Any]
    allowed: str


def has_controls(value: str) -> bool:
    """True when the text holds a control character (C0, DEL or C1) or half of a surrogate pair."""
    return any(unicodedata.category(char) in ("Cc", "Cs") for char in value)


def text(limit: int, allowed: str = "") -> Parser:
    """Printable text of at most ``limit`` characters."""

    def parse(value: str) -> str:
        if len(value) > limit or has_controls(value):
            raise ValueError
        return value

    return Parser(parse, allowed or f"text of at most {limit} characters without control characters")


def integer(low: int, high: int | None = None) -> Parser:
    """A whole number from ``low`` to ``high`` (both included; None: no upper end)."""

    def parse(value: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", value):
            raise ValueError
        number = int(value)
        if number < low or (high is not None and number > high):
            raise ValueError
        return number

    span = f"of {low} or more" if high is None else f"from {low} to {high}"
    return Parser(parse, f"a whole number {span}")


def number(low: float, *, exclusive: bool = False, unit: str) -> Parser:
    """A finite number of at least (``exclusive``: more than) ``low``."""

    def parse(value: str) -> float:
        result = float(value)
        if not math.isfinite(result) or result < low or (exclusive and result == low):
            raise ValueError
        return result

    return Parser(parse, f"a number of {unit}, {'more than' if exclusive else 'at least'} {low:g}")


def choice(*words: str) -> Parser:
    """One of the words, in any case."""

    def parse(value: str) -> str:
        if value.lower() not in words:
            raise ValueError
        return value.lower()

    return Parser(parse, "one of " + ", ".join(words))


def items(one: Parser) -> Parser:
    """A comma-separated list -> tuple; empty items are dropped."""

    def parse(value: str) -> tuple[Any, ...]:
        return tuple(one.parse(item.strip()) for item in value.split(",") if item.strip())

    return Parser(parse, f"a comma-separated list, each item {one.allowed}")


def _boolean(value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise ValueError


def _folder(value: str) -> Path:
    if has_controls(value) or len(value) > 4096:
        raise ValueError
    return Path(os.path.abspath(os.path.expanduser(value)))


def _folders(value: str) -> tuple[Path, ...]:
    parts = [part for part in value.split(":") if part]
    paths = tuple(dict.fromkeys(_folder(part) for part in parts))
    if not paths:
        raise ValueError
    return paths


def _program(value: str) -> Path:
    found = shutil.which(os.path.expanduser(value))
    if found is None:
        raise ValueError
    return Path(os.path.abspath(found))


def _account(value: str) -> str:
    try:
        pwd.getpwnam(value)
    except KeyError:
        raise ValueError from None
    return value


def _bind_host(value: str) -> str:
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return _host_name(value)


def _host_name(value: str) -> str:
    if len(value) > 253 or not _HOST_NAME.fullmatch(value):
        raise ValueError
    return value.lower()


def _network(value: str) -> IPNetwork:
    return ipaddress.ip_network(value, strict=False)


def _split_url(value: str, schemes: tuple[str, ...]) -> tuple[str, str, str]:
    parts = urlsplit(value)
    if parts.scheme.lower() not in schemes or not parts.hostname or "@" in parts.netloc:
        raise ValueError
    if parts.query or parts.fragment or has_controls(value) or " " in value:
        raise ValueError
    _ = parts.port  # raises ValueError for a port that is none
    return parts.scheme.lower(), parts.netloc.lower(), parts.path.rstrip("/")


def _web_address(value: str) -> str:
    scheme, netloc, path = _split_url(value, ("http", "https"))
    return f"{scheme}://{netloc}{path}"


def _origin(value: str) -> str:
    scheme, netloc, path = _split_url(value, ("http", "https", "app", "tauri", "vscode-webview"))
    if path:
        raise ValueError
    return f"{scheme}://{netloc}"


def _docker_host(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    if not separator or not rest or has_controls(value) or " " in value:
        raise ValueError
    scheme = scheme.lower()
    if scheme == "unix":
        if not rest.startswith("/") or rest.endswith("/"):
            raise ValueError
        return f"unix://{rest}"
    if scheme == "ssh":
        return f"ssh://{rest}"
    scheme, netloc, path = _split_url(value, ("tcp", "http", "https"))
    if urlsplit(value).port is None:
        raise ValueError
    return f"{scheme}://{netloc}{path}"


def _any_text(value: str) -> bool:
    if has_controls(value):
        raise ValueError
    return True


def _database(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    if not separator or not rest or has_controls(value) or not re.fullmatch(r"[a-z0-9+]{1,40}", scheme):
        raise ValueError
    return value


def _matching(pattern: re.Pattern[str]) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError
        return value

    return parse


def _gpu_devices(value: str) -> str:
    compact = value.replace(" ", "")
    if compact.lower() == "all":
        return ""
    if not _GPU_LIST.fullmatch(compact):
        raise ValueError
    return ",".join(dict.fromkeys(str(int(index)) for index in compact.split(",")))


def _password(value: str) -> str:
    normal = unicodedata.normalize("NFKC", value)
    if not 10 <= len(normal) <= 256:
        raise ValueError
    return value


BOOLEAN = Parser(_boolean, "true/1/yes/on or false/0/no/off")
PORT = integer(1, 65535)
FOLDER = Parser(_folder, "a folder")
FOLDERS = Parser(_folders, "one or more folders separated by ':'")
PROGRAM = Parser(_program, "an executable file, or the name of one on PATH")
ACCOUNT = Parser(_account, "the name of an existing account of this machine")
BIND_HOST = Parser(_bind_host, "an IP address or a host name")
HOST_NAME = Parser(_host_name, "a host name")
NETWORK = Parser(_network, "an IP address or a network such as 10.0.0.0/8")
WEB_ADDRESS = Parser(_web_address, "an http:// or https:// address without user name or query")
ORIGIN = Parser(_origin, "an origin such as https://chat.example.org, without a path")
DOCKER_HOST = Parser(
    _docker_host,
    "unix:///path/of/docker.sock, tcp://host:port, http(s)://host:port or ssh://user@host "
    "(npipe:// is of Windows, where LlamaMan does not run)",
)
ANY_TEXT = Parser(_any_text, "any text, which means yes, or blank, which means no")
DATABASE = Parser(_database, "a database URL such as mysql+pymysql://user:password@host:3306/llamaman")
DOCKER_NAME = Parser(_matching(_DOCKER_NAME), "letters, digits, '_', '.' and '-'")
IMAGE = Parser(_matching(_IMAGE), "an image name such as ghcr.io/ggml-org/llama.cpp:server-cuda")
GPU_DEVICES = Parser(_gpu_devices, "GPU indices separated by commas such as 0,1, or all")
PASSWORD = Parser(_password, "10 to 256 characters")
API_KEY = Parser(_matching(_API_KEY), "llm- followed by at least 32 random letters, digits, '_' or '-'")
PLUGIN_NAMES = Parser(
    lambda value: frozenset(items(Parser(_matching(_PLUGIN_NAME), "")).parse(value)),
    "plugin names such as api_openai, separated by commas",
)
