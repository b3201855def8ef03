"""How an environment variable is declared and read. Read by `config.py`, which holds the table.

Nothing here knows a variable by name. Values of secret variables never appear in a problem's text.
"""

from __future__ import annotations

import difflib
import socket
from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any

from llamaman.core.config_values import Parser
from llamaman.core.redact import redact
from llamaman.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable.

    :ivar default: what the attribute holds when the variable is unset; a callable gets the attributes parsed
        before this one (declaration order), for defaults such as "same as MODELS_DIR".
    :ivar shown: the default as documentation prints it.
    :ivar file: ``<env>_FILE`` may name a file that holds the value (the convention of Docker secrets).
    :ivar cli: read by the command-line client too, which needs no other variable.
    """

    env: str
    attribute: str
    parser: Parser
    default: Any
    shown: str
    help: str
    section: str
    required: bool = False
    secret: bool = False
    file: bool = False
    cli: bool = False


_DECLARED = "llamaman.variable"


def variable(
    env: str,
    parser: Parser,
    default: Any,
    help: str,
    *,
    section: str,
    shown: str | None = None,
    required: bool = False,
    secret: bool = False,
    cli: bool = False,
) -> Any:
    """Declare the attribute it is assigned to as environment variable ``env``; see :class:`Variable`."""
    declared = {
        "env": env,
        "parser": parser,
        "default": default,
        "shown": _shown(default) if shown is None else shown,
        "help": help,
        "section": section,
        "required": required,
        "secret": secret,
        "file": secret,
        "cli": cli,
    }
    return field(metadata={_DECLARED: declared}, repr=not secret)


def _shown(default: Any) -> str:
    if default is None or default in ((), ""):
        return "(unset)"
    if isinstance(default, bool):
        return "true" if default else "false"
    if isinstance(default, tuple | frozenset):
        return ":".join(str(item) for item in default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def declared_variables(declared: tuple[Field[Any], ...]) -> tuple[Variable, ...]:
    """The variables among a dataclass's fields, in order of declaration."""
    return tuple(
        Variable(attribute=item.name, **item.metadata[_DECLARED])
        for item in declared
        if _DECLARED in item.metadata
    )


def read_variables(
    variables: tuple[Variable, ...], environ: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """Parse each variable -> (attribute values, problems); attributes with a problem are left out."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for item in variables:
        try:
            given = _given(item, environ)
            if given is not None:
                values[item.attribute] = item.parser.parse(given)
                continue
        except ConfigError as error:
            problems.append(error.message)
            continue
        except ValueError:
            told = "(secret, not shown)" if item.secret else redact(repr(given))
            problems.append(f"{item.env}: {told} is not allowed; it must be {item.parser.allowed}")
            continue
        if item.required:
            problems.append(_required(item))
        elif callable(item.default):
            # A variable that failed to parse is missing here; its own problem is already in the list.
            try:
                values[item.attribute] = item.default(values)
            except KeyError:
                continue
        else:
            values[item.attribute] = item.default
    return values, problems


def _given(item: Variable, environ: Mapping[str, str]) -> str | None:
    """The variable's text, from the environment or its file; None when unset or blank."""
    direct = environ.get(item.env, "").strip()
    name = f"{item.env}_FILE"
    path = environ.get(name, "").strip() if item.file else ""
    if direct and path:
        raise ConfigError(f"{item.env} and {name} are both set; keep one of them")
    if not path:
        return direct or None
    try:
        content = Path(path).read_bytes()[: 64 * 1024].decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{name}: cannot read {path!r}: {reason}") from error
    if not content:
        raise ConfigError(f"{name}: {path!r} is empty; it must hold {item.parser.allowed}")
    return content


def _required(item: Variable) -> str:
    example = socket.gethostname().split(".")[0] or "srv1"
    return (
        f"{item.env} is not set. {item.help} Choose it once and keep it; to use this machine's name, run:\n"
        f"    export {item.env}={example}"
    )


def unknown_names(variables: tuple[Variable, ...], environ: Mapping[str, str]) -> list[str]:
    """A misspelt variable would otherwise have no effect and no trace."""
    known = {item.env for item in variables} | {f"{item.env}_FILE" for item in variables if item.file}
    unknown = sorted(name for name in environ if name.startswith("LLAMAMAN_") and name not in known)
    warnings = []
    for name in unknown:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        warnings.append(f"{name} is not a variable of LlamaMan and has no effect{hint}")
    return warnings
