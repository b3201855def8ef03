"""Free-form extra arguments for llama-server, let through by allow-list. Read by `launch.py`.

What comes out holds only flags of the classes safe and path (and ``--flash-attn``, which documented requests
carry here), each followed by exactly the values it takes, so that the engine cannot read a value as a flag.
Presets, launches and restores all pass through :func:`parse_extra_args`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from llamaman.core.config_values import has_controls
from llamaman.core.extra_args_table import FLAGS, ON_OFF_AUTO, PATH_FLAGS, Flag
from llamaman.errors import InvalidField
from llamaman.limits import EXTRA_ARGS, EXTRA_ARGS_BYTES

FIELD = "extra_args"

_FLAG = re.compile(r"--?[A-Za-z].*")
_FLASH_ATTENTION = frozenset({"-fa", "--flash-attn"})
_SCALE = re.compile(r"-?[0-9]{1,6}(\.[0-9]{1,6})?")

ModelFile = Callable[[str], Path | None]


def normalise(token: str) -> str:
    """A flag as the engine reads it: ``_`` means ``-`` in the forms that start with ``--``."""
    return token.replace("_", "-") if token.startswith("--") else token


def parse_extra_args(text: str, *, allow_unlisted: bool, is_model_file: ModelFile) -> tuple[str, ...]:
    """Check and split extra arguments.

    :param allow_unlisted: let flags through that are in no class (setting ``launch.allow_unlisted_args``).
    :param is_model_file: text -> the scanned file below MODELS_DIR that it names, or None.
    :returns: argv tokens, at most 64.
    :raises InvalidField: field ``extra_args``; names the flag, its class and what to do.
    """
    tokens = _split(text)
    result: list[str] = []
    position = 0
    while position < len(tokens):
        name = normalise(tokens[position])
        position += 1
        if not _FLAG.fullmatch(name):
            raise InvalidField(FIELD, f"extra_args: {_short(name)} is neither a flag nor the value of one")
        if "=" in name:
            raise InvalidField(
                FIELD,
                f"extra_args: write {_short(name.split('=')[0])} and its value as two words, without '='",
            )
        if name in _FLASH_ATTENTION:
            value, position = _flash_attention(tokens, position)
            result += (name, value)
            continue
        flag = FLAGS.get(name)
        if flag is None:
            if not allow_unlisted:
                raise InvalidField(
                    FIELD,
                    f"extra_args: {_short(name)} is an unlisted flag; an administrator can allow such flags "
                    "with the setting launch.allow_unlisted_args",
                )
            taken = _unlisted_values(tokens, position)
            result += (name, *taken)
            position += len(taken)
            continue
        _refuse(flag)
        values = tokens[position : position + len(flag.values)]
        if len(values) < len(flag.values):
            raise InvalidField(FIELD, f"extra_args: {name} needs a value: {flag.values[len(values)].allowed}")
        position += len(values)
        result.append(name)
        if flag.kind == "path":
            result.append(_files(name, values[0], is_model_file))
        else:
            result += (_checked(flag, index, value) for index, value in enumerate(values))
    return tuple(result)


def _split(text: str) -> list[str]:
    if len(text.encode("utf-8", "replace")) > EXTRA_ARGS_BYTES:
        raise InvalidField(FIELD, f"extra_args must be at most {EXTRA_ARGS_BYTES} bytes")
    if has_controls(text):
        raise InvalidField(FIELD, "extra_args must not hold control characters such as line breaks")
    try:
        tokens = shlex.split(text)
    except ValueError as error:
        raise InvalidField(FIELD, f"extra_args cannot be split into words: {error}") from error
    if len(tokens) > EXTRA_ARGS:
        raise InvalidField(FIELD, f"extra_args must be at most {EXTRA_ARGS} words")
    return tokens


def _refuse(flag: Flag) -> None:
    if flag.kind == "owned":
        raise InvalidField(FIELD, f"extra_args: {flag.name} is an owned flag; LlamaMan sets this itself")
    if flag.kind == "option":
        raise InvalidField(FIELD, f"extra_args: {flag.name} is an option flag; use the field {flag.note}")
    if flag.kind == "refused":
        raise InvalidField(FIELD, f"extra_args: {flag.name} is a refused flag: {flag.note}")


def _flash_attention(tokens: list[str], position: int) -> tuple[str, int]:
    """The value of ``--flash-attn``; bare it means ``on``, as in builds that took it as a switch."""
    if position == len(tokens) or _FLAG.fullmatch(tokens[position]):
        return "on", position
    try:
        return ON_OFF_AUTO.check(tokens[position].lower()), position + 1
    except ValueError:
        raise InvalidField(FIELD, f"extra_args: --flash-attn takes {ON_OFF_AUTO.allowed}") from None


def _unlisted_values(tokens: list[str], position: int) -> list[str]:
    """The words behind a flag of unknown arity; none of them looks like a flag to the engine."""
    taken = []
    for token in tokens[position:]:
        if token.startswith("-") and not re.fullmatch(r"-[0-9][0-9.]*", token):
            break
        taken.append(token)
    return taken


def _checked(flag: Flag, index: int, value: str) -> str:
    try:
        return flag.values[index].check(value)
    except (ValueError, RecursionError):
        raise InvalidField(
            FIELD, f"extra_args: {flag.name} takes {flag.values[index].allowed}, not {_short(value)}"
        ) from None


def _files(name: str, value: str, is_model_file: ModelFile) -> str:
    """Replace each file of a comma-separated list by the path of the scanned file."""
    scaled = PATH_FLAGS[name]
    result = []
    for part in value.split(","):
        path, _, scale = part.rpartition(":") if scaled else (part, "", "")
        if scaled and (not path or not _SCALE.fullmatch(scale)):
            raise InvalidField(FIELD, f"extra_args: {name} takes FILE:SCALE, not {_short(part)}")
        found = is_model_file(path) if path and not path.startswith("-") else None
        if found is None:
            raise InvalidField(
                FIELD,
                f"extra_args: {name} takes a .gguf file below MODELS_DIR; {_short(path)} is none of them",
            )
        # The engine splits lists at commas (and scaled ones at colons) and reads quotes; such a path would
        # name other files than the one that was checked.
        if any(char in str(found) for char in ',"' + (":" if scaled else "")):
            raise InvalidField(FIELD, f"extra_args: {name} cannot take a path with ',', '\"' or ':' in it")
        result.append(f"{found}:{scale}" if scaled else str(found))
    return ",".join(result)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
