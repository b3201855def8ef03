"""The little of Go's templates that clients send with ``/api/generate``. Pure."""

from __future__ import annotations

import re

from llamaman import InvalidField

#: Characters of a template; no client's comes near, and its parts are searched for one after another.
_LONGEST = 1 << 16
#: Characters of what it makes: as many as the largest request has bytes.
_LONGEST_PROMPT = 64 << 20
_IF = re.compile(
    r"\{\{-?\s*if\s+\.(System|Prompt)\s*-?\}\}((?:(?!\{\{-?\s*(?:if|else|range)\b).)*?)\{\{-?\s*end\s*-?\}\}",
    re.DOTALL,
)
_VALUE = re.compile(r"\{\{-?\s*\.(System|Prompt|Response)\s*-?\}\}")


def fill(template: str, system: str, prompt: str) -> str | None:
    """The prompt that a template makes, up to where the response begins; None for one that is beyond us.

    :raises InvalidField: it repeats a long prompt until nothing has room for it.
    """
    if len(template) > _LONGEST:
        return None
    values = {"System": system, "Prompt": prompt, "Response": ""}
    before = _VALUE_RESPONSE.split(template, maxsplit=1)[0] if _VALUE_RESPONSE.search(template) else template
    chosen = _IF.sub(lambda found: found[2] if values[found[1]] else "", before)
    rest = _VALUE.sub("", chosen)
    if "{{" in rest or "}}" in rest:
        return None
    size = len(rest) + sum(len(values[name]) for name in _VALUE.findall(chosen))
    if size > _LONGEST_PROMPT:
        raise InvalidField("template", f"template makes a prompt of more than {_LONGEST_PROMPT >> 20} MiB")
    return _VALUE.sub(lambda found: values[found[1]], chosen)


_VALUE_RESPONSE = re.compile(r"\{\{-?\s*\.Response\s*-?\}\}")
