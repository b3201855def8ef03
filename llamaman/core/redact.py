"""The one redactor: whatever leaves through a log, an event, a record or an error text passes here.

It removes what is shaped like a credential (our keys, hub tokens, authorization headers, cookies, passwords
in URLs, query strings, secrets in assignments) and every secret that was registered with :func:`hide`. It
errs on the side of removing too much.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TextIO

MASK = "***"

#: Registered secrets shorter than this would blank ordinary words.
_SHORTEST = 8

_hidden: tuple[str, ...] = ()
_hidden_lock = threading.Lock()

#: If none of these occurs, no pattern can match. Checked by a test against every pattern's example.
_HINTS = (
    "llm-", "hf_", "bearer", "basic", "key", "secret", "cookie", "authorization", "passw", "token", "csrf",
    "://", "?", "database_url",
)  # fmt: skip

_QUOTED_OR_LINE = r"""(?:b?"[^"\r\n]*"|b?'[^'\r\n]*'|[^\r\n]+)"""
_QUOTED_OR_WORD = r"""(?:b?"[^"\r\n]*"|b?'[^'\r\n]*'|[^\s,;)}\]]+)"""
_SEPARATOR = r"""(?:["']?\s*[:=]\s*|["']\s*,\s*)"""


def _without_values(query: re.Match[str]) -> str:
    return f"?{MASK}" if "=" in query[0] else query[0]


# Each is linear in the length of a text, which may be an engine's and so a stranger's: a match takes all that it has
# looked at, or looks at a bounded part.
_PATTERNS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Whole header values first: a cookie's value may look like anything.
        (rf"(?i)\b((?:set-)?cookie|(?:proxy-)?authorization)({_SEPARATOR}){_QUOTED_OR_LINE}", rf"\1\2{MASK}"),
        (rf"(?i)\b(x-(?:api-key|cluster-secret|csrf-token))({_SEPARATOR}){_QUOTED_OR_WORD}", rf"\1\2{MASK}"),
        (r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}", rf"\1 {MASK}"),
        # Our keys have 43 characters after the prefix. A model may be called llm-jp-3-13b too: short and
        # without capitals is taken for a name.
        (r"\bllm-(?:[A-Za-z0-9_-]{32,}|(?=[a-z0-9_-]*[A-Z])[A-Za-z0-9_-]{12,})", f"llm-{MASK}"),
        (r"\bhf_(?:[a-z]+_)?[A-Za-z0-9]{16,}", f"hf_{MASK}"),
        (
            r"(?i)\b((?:[a-z0-9_]*_)?(?:secret(?:_key)?|api[_-]?key|hf_token|hub_token|password|passwd))"
            rf"({_SEPARATOR})(?!None\b|null\b|true\b|false\b){_QUOTED_OR_WORD}",
            rf"\1\2{MASK}",
        ),
        (r"(?i)(--api-key)(\s+)[^\s,'\"]+", rf"\1\2{MASK}"),
        (r"([A-Za-z][A-Za-z0-9+.-]{0,31}://)[^\s/?#'\"]*@", rf"\1{MASK}@"),
        (r"(?<=[\w/.-])\?[^\s'\"<>#]+", _without_values),
    )
)

#: C0 and C1 controls, line and paragraph separators, and every bidirectional control.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def hide(secret: str) -> None:
    """Remove this very text from everything that passes from now on (SECRET_KEY, CLUSTER_SECRET ...)."""
    global _hidden  # noqa: PLW0603 # one process has one set of secrets, and loggers are global too
    if len(secret) >= _SHORTEST:
        with _hidden_lock:
            _hidden = tuple(sorted({*_hidden, secret}, key=len, reverse=True))


def redact(text: str) -> str:
    """Return ``text`` without credentials; the same object when there is nothing to remove."""
    for secret in _hidden:
        if secret in text:
            text = text.replace(secret, MASK)
    lowered = text.lower()
    for hint in _HINTS:
        if hint in lowered:
            break
    else:
        return text
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


#: Names of fields whose value is never shown, whatever it looks like.
_SECRET_FIELD = re.compile(
    r"(?i)(?:^|[_-])(?:secret|secret_key|api_key|token|password|cookie|authorization)$"
)


def redact_value(value: Any) -> Any:
    """Redact every text in nested mappings and sequences, and every value under the name of a secret."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(item, str) and _SECRET_FIELD.search(str(key)) else redact_value(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        items = list(value)
        return [
            MASK if before == "--api-key" else redact_value(item)
            for before, item in zip([None, *items], items, strict=False)
        ]
    return value


def escape_controls(text: str) -> str:
    """Make control characters visible (``\\x1b``), so that text from outside cannot steer a terminal.

    Tab and line feed stay.
    """
    return _CONTROLS.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class RedactingFormatter(logging.Formatter):
    """Formats a log record without credentials and controls; a line feed inside a message is indented, so
    that a forged line is seen to belong to the one above.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 # logging's own name
        record.message = record.message.replace("\n", "\n    ")
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(redact(super().format(record)))


class RedactingFilter(logging.Filter):
    """For handlers that are not ours (a journal, a test's): redacts the record itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = redact(record.getMessage())
        record.args = ()
        if record.exc_info and not record.exc_text:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
        return True


FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def install_logging(level: str = "INFO", stream: TextIO | None = None) -> logging.Handler:
    """Give the root logger its one handler, so that libraries' lines are redacted too; return it.

    A handler that this function installed before is replaced; others get the :class:`RedactingFilter`.
    """
    root = logging.getLogger()
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(RedactingFormatter(FORMAT))
    handler.set_name("llamaman")
    for other in list(root.handlers):
        if other.get_name() == "llamaman":
            root.removeHandler(other)
        elif not any(isinstance(present, RedactingFilter) for present in other.filters):
            other.addFilter(RedactingFilter())
    root.addHandler(handler)
    root.setLevel(level.upper())
    return handler
