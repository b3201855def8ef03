"""Reading plain HTML forms, and the two questions about addresses that forms raise. Pure; read by the pages.

A form either is one or is a 4xx that says why: other types, other encodings and fields given twice are refused
rather than guessed at.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

from llamaman.dashboard.bodies import is_compressed, is_of_type, shown
from llamaman.errors import InvalidField, InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from llamaman.gateway.origins import origin_of_url
from llamaman.limits import FORM_BODY

KIND: Final = "application/x-www-form-urlencoded"

#: Visible ASCII without the backslash, which browsers read as a slash, after exactly one slash. Tabs and line
#: ends are out as well: browsers drop them, so that "/<tab>/host" would become "//host".
_LOCAL = re.compile(r"/(?![/\\])[!-\[\]-~]{0,1023}")
#: Pages that would lead back to where the visitor comes from, or log them out again.
_NO_TARGET = frozenset({"login", "logout", "setup"})


def read_form(
    data: bytes, content_type: str | None, *, content_encoding: str | None = None
) -> dict[str, str]:
    """The fields of a form; those left out are absent.

    :raises UnsupportedMediaType: not a URL-encoded form in UTF-8, or compressed.
    :raises PayloadTooLarge: over ``FORM_BODY`` bytes.
    :raises InvalidField: a field given twice.
    :raises InvalidRequest: not UTF-8, or no form at all.
    """
    if is_compressed(content_encoding):
        raise UnsupportedMediaType("a form must not be compressed (Content-Encoding)")
    if not is_of_type(KIND, content_type):
        raise UnsupportedMediaType(f"send the form as 'Content-Type: {KIND}' in UTF-8")
    if len(data) > FORM_BODY:
        raise PayloadTooLarge(f"the form is larger than {FORM_BODY} bytes")
    found: dict[str, str] = {}
    for name, value in _pairs(data):
        if name in found:
            raise InvalidField(name, f"{shown(name)} is given twice")
        found[name] = value
    return found


def _pairs(data: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            data.decode("ascii"), keep_blank_values=True, encoding="utf-8", errors="strict", max_num_fields=32
        )
    except UnicodeDecodeError:
        raise InvalidRequest("the form is not UTF-8") from None
    except ValueError:
        raise InvalidRequest("the form has too many fields") from None


def local_path(wanted: str | None) -> str:
    """Where to go after a login: a path of ours, ``/`` for anything else."""
    if not wanted or not _LOCAL.fullmatch(wanted):
        return "/"
    return "/" if re.split(r"[/?#]", wanted)[1] in _NO_TARGET else wanted


def same_authority(referer: str | None, host: str | None) -> bool:
    """Whether a Referer names the host that was asked, as origins are compared."""
    origin = origin_of_url(referer or "")
    return origin is not None and origin.scheme in ("http", "https") and origin.is_authority_of(host or "")
