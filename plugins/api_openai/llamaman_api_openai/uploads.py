"""What has to be known of an upload (multipart/form-data) that is passed on untouched. Pure.

Only the small fields are read. A part's content is skipped by searching for the boundary, so that 25 MB take
milliseconds.
"""

from __future__ import annotations

import re

from llamaman import InvalidField, InvalidRequest

_MULTIPART = re.compile(
    r'multipart/form-data; *boundary=("[\w\'()+,./:=? -]{1,70}"|[\w\'+.-]{1,70})', re.ASCII | re.IGNORECASE
)
_NAME = re.compile(r';[ \t]*name=(?:"((?:[^"\\]|\\.)*)"|([\w.-]+))', re.IGNORECASE)
_MOST_PARTS = 64
_MOST_BYTES = 4096


def small_fields(raw: bytes, content_type: bytes, names: frozenset[str]) -> dict[str, str]:
    """The named fields of a form.

    :raises InvalidRequest: it is no form, or broken. :raises InvalidField: a field is there twice or no short text.
    """
    match = _MULTIPART.fullmatch(content_type.decode("latin-1"))
    if match is None:
        raise InvalidRequest("send this as multipart/form-data, with the boundary in the Content-Type header")
    delimiter = b"\r\n--" + match[1].strip('"').encode()
    found: dict[str, str] = {}
    at = 0 if raw.startswith(delimiter[2:]) else raw.find(delimiter) + 2
    for _ in range(_MOST_PARTS):
        end_of_line = raw.find(b"\r\n", at)
        if at < 0 or not raw.startswith(delimiter[2:], at) or end_of_line < 0:
            break
        head_end = raw.find(b"\r\n\r\n", end_of_line, end_of_line + 8192)
        body_end = raw.find(delimiter, head_end + 2) if head_end >= 0 else -1
        if body_end < 0:
            raise InvalidRequest("the form is broken: a part of it has no end")
        name = _name(raw[end_of_line + 2 : head_end])
        if name in names:
            if name in found:
                raise InvalidField(name, f"{name} is given twice")
            found[name] = _text(name, raw[head_end + 4 : body_end])
        at = body_end + 2
        if raw.startswith(b"--", at + len(delimiter) - 2):
            return found
    raise InvalidRequest("the form is broken: its parts do not end with the boundary")


def _name(head: bytes) -> str:
    for line in head.decode("utf-8", "replace").split("\r\n"):
        header, _, value = line.partition(":")
        if header.strip().lower() == "content-disposition" and (found := _NAME.search(value)):
            return found[1] or found[2] or ""
    return ""


def _text(name: str, data: bytes) -> str:
    try:
        if len(data) <= _MOST_BYTES:
            return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise InvalidField(name, f"{name} must be a short text")
