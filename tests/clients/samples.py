"""What several clients are asked with."""

from __future__ import annotations

from typing import Any

HELLO: list[Any] = [{"role": "user", "content": "hello"}]

WEATHER_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

#: A schema that leaves a random model no choice.
MOOD: dict[str, Any] = {
    "type": "object",
    "properties": {"mood": {"enum": ["calm"]}, "legs": {"type": "integer", "minimum": 4, "maximum": 4}},
    "required": ["mood", "legs"],
    "additionalProperties": False,
}
ONLY_MOOD = {"mood": "calm", "legs": 4}

#: A PNG of one pixel, in base64.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
