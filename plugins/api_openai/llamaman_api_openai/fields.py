"""Fields of a request that are read or changed on their way to the engine. Pure."""

from __future__ import annotations

from typing import Any

from llamaman import InvalidField

#: OpenAI's words for how long to think -> what chat templates know; None: not at all.
_EFFORTS: dict[str, str | None] = {
    "none": None,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "ultra": "high",
    "max": "high",
}


def text_or_none(body: dict[str, Any], name: str) -> str | None:
    """A text that may be left out."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidField(name, f"{name} must be a string")
    return value


def flag(body: dict[str, Any], name: str) -> bool:
    """A flag that is off when it is left out."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidField(name, f"{name} must be true or false")
    return bool(value)


def most_tokens(body: dict[str, Any]) -> int | None:
    """The limit that llama-server will apply; it takes these names as aliases."""
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"):
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


#: By endpoint, what changes the meaning of a request and nobody here would do, with what to do instead.
_UNKNOWN = {
    "/v1/chat/completions": {"functions": "use tools"},
    "/v1/completions": {
        "echo": "the client knows the prompt's text",
        "suffix": "ask /infill, with input_prefix and input_suffix",
    },
    "/v1/responses": {"prompt": "nothing is stored; send instructions and input"},
}


def check_unknown(path: str, body: dict[str, Any]) -> None:
    """Refuse what llama-server would leave out in silence, though the answer depends on it."""
    for name, instead in _UNKNOWN.get(path, {}).items():
        if body.get(name):
            raise InvalidField(name, f"{name} is not supported: {instead}")


def check_stop(body: dict[str, Any]) -> None:
    """See that ``stop`` is a text or several."""
    stop = body.get("stop")
    if stop is None or isinstance(stop, str):
        return
    if not isinstance(stop, list) or not all(isinstance(text, str) for text in stop):
        raise InvalidField("stop", "stop must be a string or a list of strings")


def probabilities(body: dict[str, Any]) -> dict[str, Any]:
    """llama-server gives no probabilities at all to who wants those of no other tokens."""
    return {"top_logprobs": 1} if body.get("logprobs") is True and body.get("top_logprobs") == 0 else {}


def effort(body: dict[str, Any]) -> str | None:
    """How long the client wants the model to think, in OpenAI's words; None when it does not say.

    :raises InvalidField: a word that OpenAI does not know.
    """
    name, value = "reasoning_effort", body.get("reasoning_effort")
    if value is None and isinstance(reasoning := body.get("reasoning"), dict):
        name, value = "reasoning.effort", reasoning.get("effort")
    if value is None:
        return None
    if not isinstance(value, str) or value not in _EFFORTS:
        raise InvalidField(name, f"{name} must be one of {', '.join(_EFFORTS)}")
    return value


def thinking(body: dict[str, Any]) -> dict[str, Any]:
    """What is laid over a body so that the engine thinks as long as it should."""
    word = effort(body)
    if word is None:
        return {}
    known = _EFFORTS[word]
    if known is not None:
        return {} if body.get("reasoning_effort") == known else {"reasoning_effort": known}
    kwargs = body.get("chat_template_kwargs")
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    return {"reasoning_effort": None, "chat_template_kwargs": {**kwargs, "enable_thinking": False}}
