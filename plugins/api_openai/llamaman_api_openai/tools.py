"""Which tools a model may call, and whether it has to: OpenAI's forms of ``tool_choice``. Pure.

Read by the dialect. llama-server takes every choice that is an object for ``auto``; so it is offered the chosen tools
alone, and told that it must call one. In chat completions a function is a member of the tool, in the Responses API it
is the tool itself.
"""

from __future__ import annotations

from typing import Any

from llamaman import InvalidField


def chosen(body: dict[str, Any]) -> dict[str, Any]:
    """What is laid over a body so that its choice of tools holds.

    :raises InvalidField: a choice that cannot be met.
    """
    choice = body.get("tool_choice")
    offered = body["tools"] if isinstance(body.get("tools"), list) else []
    if choice == "required" and not offered:
        raise InvalidField("tool_choice", "tool_choice is required, and there are no tools to choose from")
    if not isinstance(choice, dict):
        return {}
    kind = choice.get("type")
    if kind == "function":
        names, mode = [_name(choice)], "required"
    elif kind == "allowed_tools":
        told = choice.get("allowed_tools")
        told = told if isinstance(told, dict) else choice
        mode, some = str(told.get("mode")), told.get("tools")
        if mode not in ("auto", "required") or not isinstance(some, list):
            raise InvalidField(
                "tool_choice", "allowed_tools needs a mode, auto or required, and a list of tools"
            )
        names = list(dict.fromkeys(map(_name, some)))  # each once: there may be very many
    else:
        raise InvalidField(
            "tool_choice", "of the tools only functions can be chosen here: type function or allowed_tools"
        )
    known = {_name(tool): tool for tool in offered if _name(tool)}
    for name in names:
        if name not in known:
            raise InvalidField(
                "tool_choice", f"tool_choice names '{name or ''}', which is not among the tools"
            )
    return {"tools": [tool for name, tool in known.items() if name in names], "tool_choice": mode}


def _name(tool: object) -> str | None:
    """The name of a function, of either API."""
    if not isinstance(tool, dict):
        return None
    function = tool.get("function")
    name = (function if isinstance(function, dict) else tool).get("name")
    return name if isinstance(name, str) else None
