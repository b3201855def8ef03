"""``options`` of a request as llama-server's fields. Pure.

Ollama sends every sampler with every request, because its defaults are not llama-server's; so does this. What
belongs to a launch (``num_gpu``, ``num_thread``, ...) and what nobody knows is ignored, except ``num_ctx``, which
the kernel is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamaman import InvalidField
from llamaman_api_ollama.fields import INT32, whole

_FLOAT32 = 3.4028234663852886e38
_SEED = 0xFFFFFFFF  # llama-server's 32 bits; all of them set stands for a random seed

_FLOATS: Mapping[str, float] = {
    "temperature": 0.8,
    "top_p": 0.9,
    "min_p": 0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
#: Those that llama-server knows and Ollama has no defaults for any more; sent when given.
_FURTHER_FLOATS = ("mirostat_tau", "mirostat_eta")
_INTEGERS: Mapping[str, int] = {
    "num_predict": -1,
    "num_keep": 4,
    "seed": -1,
    "top_k": 40,
    "repeat_last_n": 64,
}
_FURTHER_INTEGERS = (
    "mirostat",
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "draft_num_predict",
)
_BOOLEANS = ("use_mmap",)
_MOST_CONTEXTS = 10


@dataclass(frozen=True, slots=True)
class Options:
    """What a client asked for, checked.

    :ivar context: tokens, or None.
    """

    floats: Mapping[str, float] = field(default_factory=dict)
    integers: Mapping[str, int] = field(default_factory=dict)
    stop: tuple[str, ...] = ()

    @property
    def context(self) -> int | None:
        """``num_ctx``; None when it was not given or asks for nothing."""
        asked = self.integers.get("num_ctx", 0)
        return asked if asked > 0 else None


def read(given: Mapping[str, Any]) -> Options:
    """Check a request's options.

    :raises InvalidField: one is of the wrong type.
    """
    floats: dict[str, float] = {}
    integers: dict[str, int] = {}
    for name in (*_FLOATS, *_FURTHER_FLOATS):
        value = given.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _FLOAT32:
            raise _wrong(name, "float32")
        floats[name] = value
    for name in (*_INTEGERS, *_FURTHER_INTEGERS):
        value = given.get(name)
        if value is None:
            continue
        number = whole(value)
        if number is None:
            raise _wrong(name, "integer")
        integers[name] = number if name == "seed" else max(-INT32, min(number, INT32))
    for name in _BOOLEANS:
        if not isinstance(given.get(name, None), bool | None):
            raise _wrong(name, "boolean")
    return Options(floats, integers, _stop(given.get("stop")))


def fields(options: Options, context: int | None) -> dict[str, Any]:
    """llama-server's sampling fields, every one of them.

    :param context: tokens that the request may use, or None where the engine did not say.
    """
    floats, integers = options.floats, {**_INTEGERS, **options.integers}
    body: dict[str, Any] = {name: floats.get(name, default) for name, default in _FLOATS.items()}
    body["top_k"] = integers["top_k"]
    body["n_predict"] = _most_tokens(integers["num_predict"], context)
    body["n_keep"] = max(-1, integers["num_keep"])
    body["seed"] = _seed(integers["seed"])
    body["repeat_last_n"] = _window(integers["repeat_last_n"], context or options.context)
    body.update((name, floats[name]) for name in _FURTHER_FLOATS if name in floats)
    if integers.get("mirostat") in (0, 1, 2):  # an engine may not survive another number
        body["mirostat"] = integers["mirostat"]
    if options.stop:
        body["stop"] = list(options.stop)
    body["cache_prompt"] = True
    return body


def _stop(value: Any) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise _wrong("stop", "array")
    if not all(isinstance(text, str) for text in value):
        raise _wrong("stop", "array of strings")
    return tuple(text for text in value if text)


def _wrong(name: str, kind: str) -> InvalidField:
    return InvalidField(f"options.{name}", f'option "{name}" must be of type {kind}')


def _most_tokens(asked: int, context: int | None) -> int:
    """Below -1 means "fill the context"; without a limit an engine that shifts its context would never end."""
    if context is None:
        return max(-1, asked)
    if asked < -1:
        return context
    most = min(_MOST_CONTEXTS * context, INT32)
    return most if asked == -1 else min(asked, most)


def _seed(asked: int) -> int:
    """Programs send 63 bits; the lower 32 are as good, but one value of them means "random"."""
    if asked < 0:
        return _SEED
    seed = asked & _SEED
    return seed - 1 if seed == _SEED else seed


def _window(asked: int, context: int | None) -> int:
    """-1 means the whole context, which llama-server is told in tokens; it also reserves memory for that many."""
    most = context or 4096
    return most if asked < 0 else min(asked, most)
