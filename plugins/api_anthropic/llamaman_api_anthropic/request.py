"""A request as the body of a chat completion. Pure.

Read by the dialect. What a client may leave out or what is unknown here is never refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llamaman_api_anthropic.fields import required, whole
from llamaman_api_anthropic.messages import continues, messages_of
from llamaman_api_anthropic.options import output_format, sampling, thinking, tools

#: llama-server repeats the whole prompt to say by which text it stopped; beyond this it is not asked.
_MOST_REPEATED = 1 << 20
_CHARACTERS_PER_TOKEN = 4


def prompt_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """What makes the prompt: messages, tools and thinking.

    :raises InvalidField: a field that the model's prompt depends on is wrong.
    """
    messages = messages_of(body)
    asked = {"messages": messages, **tools(body)}
    asked |= thinking(body, forced=asked.get("tool_choice") == "required")
    if continues(messages):
        asked |= {"continue_final_message": True, "add_generation_prompt": False}
    return asked


def completion_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The whole body of a streamed chat completion.

    :raises InvalidField: a field is wrong.
    """
    limit = whole(required(body, "max_tokens"), "max_tokens", 1)
    asked = prompt_body(body) | sampling(body) | output_format(body)
    asked |= {"max_tokens": limit, "stream": True, "stream_options": {"include_usage": True}}
    if "stop" in asked and estimated_tokens(asked) * _CHARACTERS_PER_TOKEN < _MOST_REPEATED:
        asked["verbose"] = True
    return asked


def estimated_tokens(asked: Mapping[str, Any]) -> int:
    """About how many tokens the prompt has; images count little."""
    size = sum(_size(message) for message in asked["messages"]) + len(json.dumps(asked.get("tools", [])))
    return max(1, size // _CHARACTERS_PER_TOKEN)


def _size(message: Mapping[str, Any]) -> int:
    content = message["content"]
    said = content if isinstance(content, str) else "".join(part.get("text", " " * 1024) for part in content)
    return (
        len(said) + len(json.dumps(message.get("tool_calls", []))) + len(message.get("reasoning_content", ""))
    )
