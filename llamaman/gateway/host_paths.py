"""Where files lie on the host is nobody's business who asks a model: it is taken out of what an engine says. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

#: Members of llama-server's answers that hold paths of files.
_PRIVATE = frozenset({"model_path", "path", "args"})
#: An absolute path of at least two segments; neither part of a URL nor one of the API's own paths.
_PATH = re.compile(rb"""(?<![\w/.:-])/(?!v1/)(?:[^\s/"'\\:;,()<>{}\[\]]+/)+([^\s/"'\\:;,()<>{}\[\]]+)""")


def without_paths(body: bytes) -> bytes:
    """A JSON answer of llama-server without the members that hold paths; what is no JSON stays as it is."""
    try:
        data = json.loads(body)
    except ValueError:
        return body
    return json.dumps(_stripped(data), ensure_ascii=False).encode()


def names_only(error: bytes) -> bytes:
    """An error of llama-server: every path in it becomes the name of its file."""
    return _PATH.sub(rb"\1", error)


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _stripped(item) for name, item in value.items() if name not in _PRIVATE}
    if isinstance(value, list):
        return [_stripped(item) for item in value]
    return value
