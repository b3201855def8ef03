"""Tools, thinking, sampling and limits of a request as fields of a chat completion. Pure.

Read by :mod:`llamaman_api_anthropic.request`. Only what the client gave is sent, so that the launch's own sampling
defaults count otherwise. All functions raise :class:`llamaman.InvalidField`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamaman_api_anthropic.fields import array, flag, invalid, join, number, obj, required, text, whole

Fields = dict[str, Any]

_THINKING = ("enabled", "disabled", "adaptive")


def sampling(body: Mapping[str, Any]) -> Fields:
    """``temperature``, ``top_p``, ``top_k`` and stop sequences."""
    fields: Fields = {}
    if (value := body.get("temperature")) is not None:
        fields["temperature"] = number(value, "temperature", 0, 2)
    if (value := body.get("top_p")) is not None:
        fields["top_p"] = number(value, "top_p", 0, 1)
    if (value := body.get("top_k")) is not None:
        fields["top_k"] = whole(value, "top_k", 0)
    if stops := stop_sequences(body):
        fields["stop"] = stops
    return fields


def stop_sequences(body: Mapping[str, Any]) -> list[str]:
    """The texts that end an answer; empty ones are left out."""
    value = body.get("stop_sequences")
    if value is None:
        return []
    stops = array(value, "stop_sequences")
    return [found for n, stop in enumerate(stops) if (found := text(stop, join("stop_sequences", n)))]


def tools(body: Mapping[str, Any]) -> Fields:
    """Tools and which of them the model may or must call."""
    value = body.get("tools")
    offered = (
        []
        if value is None
        else [_tool(each, join("tools", n)) for n, each in enumerate(array(value, "tools"))]
    )
    functions = [tool for tool in offered if tool]
    choice = body.get("tool_choice")
    if choice is None:
        return {"tools": functions} if functions else {}
    kind = required(obj(choice, "tool_choice"), "type", "tool_choice")
    if kind not in ("auto", "any", "tool", "none"):
        raise invalid("tool_choice.type", "Input should be 'auto', 'any', 'tool' or 'none'")
    if kind == "tool":  # llama-server takes the choice of one function for `auto`
        name = text(required(choice, "name", "tool_choice"), "tool_choice.name")
        functions = [tool for tool in functions if tool["function"]["name"] == name]
        if not functions:
            raise invalid("tool_choice.name", f"Tool '{name}' not found in provided tools")
    if not functions:
        if kind == "any":
            raise invalid("tool_choice", "may only be 'any' while providing tools that this server can offer")
        return {}
    fields: Fields = {
        "tools": functions,
        "tool_choice": {"any": "required", "tool": "required"}.get(kind, kind),
    }
    if flag(choice.get("disable_parallel_tool_use"), "tool_choice.disable_parallel_tool_use"):
        fields["parallel_tool_calls"] = False
    return fields


def _tool(value: Any, place: str) -> dict[str, Any] | None:
    """A function; None for a tool that only Anthropic's servers can run."""
    tool = obj(value, place)
    if tool.get("type") not in (None, "custom") and "input_schema" not in tool:
        return None
    name = text(required(tool, "name", place), join(place, "name"))
    if not name:
        raise invalid(join(place, "name"), "String should have at least 1 character")
    schema = obj(required(tool, "input_schema", place), join(place, "input_schema"))
    function: Fields = {"name": name, "parameters": schema}
    if (description := tool.get("description")) is not None:
        function["description"] = text(description, join(place, "description"))
    return {"type": "function", "function": function}


def thinking(body: Mapping[str, Any], *, forced: bool = False) -> Fields:
    """Whether, how long and how hard the model thinks. Where nothing is said it does not.

    :param forced: it must call a tool; then it does not think, as with Anthropic: llama-server holds no model that
        thinks to its tools.
    """
    kwargs: Fields = {"enable_thinking": False}
    fields: Fields = {"chat_template_kwargs": kwargs}
    if (value := body.get("thinking")) is not None:
        wanted = obj(value, "thinking")
        kind = required(wanted, "type", "thinking")
        if kind not in _THINKING:
            raise invalid("thinking.type", f"Input should be one of {', '.join(_THINKING)}")
        kwargs["enable_thinking"] = kind != "disabled" and not forced
        budget = wanted.get("budget_tokens")
        if kind == "enabled" and budget is not None:
            fields["thinking_budget_tokens"] = whole(budget, "thinking.budget_tokens", 1)
    config = _config(body)
    if (effort := config.get("effort")) is not None:
        kwargs["reasoning_effort"] = _effort(text(effort, "output_config.effort"))
    return fields


def _effort(level: str) -> str:
    """Levels that templates know: nothing above ``high``."""
    return level if level in ("low", "medium", "high") else "high"


def output_format(body: Mapping[str, Any]) -> Fields:
    """A JSON schema that the answer must fit."""
    value = _config(body).get("format")
    place = "output_config.format"
    if value is None:
        value, place = body.get("output_format"), "output_format"
    if value is None:
        return {}
    wanted = obj(value, place)
    if wanted.get("type") != "json_schema":
        raise invalid(join(place, "type"), "Input should be 'json_schema'")
    schema = obj(required(wanted, "schema", place), join(place, "schema"))
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def _config(body: Mapping[str, Any]) -> Mapping[str, Any]:
    config = body.get("output_config")
    return {} if config is None else obj(config, "output_config")
