"""Launch options and settings as the fields of a body, each with its JSON Schema. Pure; read by the views that
take them and, through ``@operation``, by ``openapi.py``.

Everything here is made from the declarations, so an option or a setting of a plugin describes itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from llamaman.core import launch_values
from llamaman.core.launch_options import OPTIONS, Kind, LaunchOption
from llamaman.dashboard.bodies import Check, anything
from llamaman.errors import InvalidField

JsonSchema = dict[str, Any]

#: What a kind of launch option adds to its ranges and choices, which the table has.
_KINDS: Final[Mapping[Kind, Mapping[str, Any]]] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "text": {"type": "string"},
    "choice": {"type": "string"},
    "layers": {"type": "integer"},
    "memory": {"type": "string", "examples": ["32g", "8192m"]},
    "devices": {"type": "string", "examples": ["0,1", "all"]},
    "proportions": {"type": "string", "examples": ["3,1"]},
    "file": {"type": "string", "maxLength": 4096},
    "engine": {"type": "string", "maxLength": 256},
}
_SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "text": {"type": "string", "maxLength": 4096},
    "choice": {"type": "string"},
    "list": {"type": "array", "maxItems": 1000, "items": {"type": "string", "maxLength": 4096}},
    "time": {"type": ["number", "null"]},
}


def option_schema(option: LaunchOption) -> JsonSchema:
    """One launch option: what :func:`llamaman.core.launch_values.read` takes for it."""
    value: JsonSchema = dict(_KINDS[option.kind])
    if option.choices:
        value["enum"] = list(option.choices)
    if option.kind == "text":
        value["maxLength"] = int(option.maximum or 4096)
    else:
        value |= _range(option.minimum, option.maximum)
    others: list[JsonSchema] = []
    if option.kind == "layers":
        others.append({"type": "string", "enum": ["auto", "all"]})
    if option.nullable:
        others.append({"type": "string", "const": ""})
    if option.nullable or option.kind in ("text", "devices"):  # null is read as no text
        others.append({"type": "null"})
    about = {"description": option.help, "default": option.default, "x-llamaman-live": option.live}
    return {"anyOf": [value, *others], **about} if others else {**value, **about}


def _range(low: float | None, high: float | None) -> JsonSchema:
    bounds = (("minimum", low), ("maximum", high))
    return {name: bound for name, bound in bounds if bound is not None}


def _option_check(option: LaunchOption) -> Check:
    return Check(lambda name, value: launch_values.read(option, value), option_schema(option))


#: Every launch option as a field. What only holds for several together is :func:`launch.validate`'s to say.
OPTION_FIELDS: Final[Mapping[str, Check]] = {option.name: _option_check(option) for option in OPTIONS}


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidField(name, f"{name} must be an object of launch options")
    return value


#: Launch options as an object inside a body; ``options.py`` knows their rules.
LAUNCH_OPTIONS: Final = Check(
    _object,
    {
        "title": "LaunchOptions",
        "type": "object",
        "properties": {name: dict(check.schema) for name, check in OPTION_FIELDS.items()},
        "additionalProperties": False,
    },
)


def setting_schema(row: Mapping[str, Any]) -> JsonSchema:
    """One setting, of its row in :meth:`llamaman.core.settings.Settings.describe`."""
    schema: JsonSchema = {**_SETTINGS[row["type"]], **_range(row["minimum"], row["maximum"])}
    if row["choices"]:
        schema["enum"] = list(row["choices"])
    if row["pattern"]:
        shape = {"pattern": f"^(?:{row['pattern']})$"}
        schema = schema | ({"items": schema["items"] | shape} if row["type"] == "list" else shape)
    default = row["default"]
    return schema | {
        "description": row["help"],
        "default": list(default) if isinstance(default, tuple) else default,
        "x-llamaman-scope": row["scope"],
        "x-llamaman-owner": row["owner"],
        "readOnly": not row["editable"],
    }


def settings_schema(rows: Iterable[Mapping[str, Any]], *, complete: bool) -> JsonSchema:
    """All settings as the nested object of ``/api/settings``.

    :param complete: every setting is there (what is read); otherwise any of them (what is sent).
    """
    root = _branch()
    for row in rows:
        place = root
        *parents, last = row["name"].split(".")
        for part in parents:
            place = place["properties"].setdefault(part, _branch())
        place["properties"][last] = setting_schema(row)
    if complete:
        _require_all(root)
    return root


def setting_fields(rows: Iterable[Mapping[str, Any]]) -> dict[str, Check]:
    """The fields of a body that changes settings: nested as they are read, or by their dotted names.

    Their values are checked by :meth:`llamaman.core.settings.Settings.update`, all of them or none.
    """
    known = tuple(rows)
    nested: Mapping[str, JsonSchema] = settings_schema(known, complete=False)["properties"]
    dotted = {row["name"]: setting_schema(row) for row in known if "." in row["name"]}
    return {name: Check(anything.run, schema) for name, schema in {**nested, **dotted}.items()}


def _branch() -> JsonSchema:
    return {"type": "object", "properties": {}, "additionalProperties": False}


def _require_all(branch: JsonSchema) -> None:
    branch["required"] = list(branch["properties"])
    for child in branch["properties"].values():
        if "properties" in child:
            _require_all(child)
