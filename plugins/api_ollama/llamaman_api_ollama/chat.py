"""``POST /api/chat`` as llama-server's ``/v1/chat/completions``. Pure."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llamaman import Event, Lease, ModelView, Op, Request, Result, Serving
from llamaman_api_ollama import answer, engine, errors, media, messages, options, stream
from llamaman_api_ollama.asked import Asking, Chat, Common
from llamaman_api_ollama.media import Media
from llamaman_api_ollama.messages import Message

PATH = "/v1/chat/completions"
#: Tokens that Ollama reckons with for a picture.
PICTURE_TOKENS = 768
_NO_SWITCH = ("gpt-oss", "gptoss")  # architectures that always think, only more or less


def serve(asking: Asking, asked: Chat, model: ModelView, lease: Lease, request: Request) -> Serving:
    """Answer a chat."""
    common, typed = asked.common, messages.joined(asked.messages)
    found = media.read_all([message.images for message in typed])
    extra = {**common_fields(common, model, lease), **({"tools": list(asked.tools)} if asked.tools else {})}
    kept, found = yield from _fit(typed, found, extra, common, lease)
    body = {"messages": messages.to_engine(kept, found), **extra}
    if kept and kept[-1].is_prefill:
        body.update(continue_final_message=True, add_generation_prompt=False)
    name = asking.name or model.name
    if common.debug:
        yield from rendered(body, "chat", name, lease, images=sum(map(len, found)))
        return
    manner = answer.Manner("chat", name, common.stream, common.top_logprobs, stream.read_chat)
    # llama-server does not stream probabilities beside tool calls.
    streamed = not (asked.tools and common.logprobs)
    yield from answer.tell(engine.call(PATH, body, streamed=streamed), manner, request, lease)


def rendered(
    body: Mapping[str, Any], shape: stream.Shape, name: str, lease: Lease, *, images: int
) -> Serving:
    """``_debug_render_only``: what the model would have been given."""
    result = yield engine.call(engine.TEMPLATE, body)
    assert isinstance(result, Result)
    prompt = engine.member(result, "prompt")
    if not isinstance(prompt, str):
        yield errors.reply(errors.of_engine(result))
        return
    info: dict[str, Any] = {"rendered_template": prompt}
    if images:
        info["image_count"] = images
    yield answer.json_reply({**stream.answer(shape, name, lease.granted), "_debug_info": info})


def common_fields(common: Common, model: ModelView, lease: Lease) -> dict[str, Any]:
    """What a body has besides its messages."""
    body = options.fields(common.options, lease.context_length)
    body.update(thinking(common.think, model))
    if common.format is not None:
        body["response_format"] = (
            {"type": "json_schema", "json_schema": {"name": "format", "schema": common.format}}
            if common.format
            else {"type": "json_object"}
        )
    if common.logprobs:
        body.update(logprobs=True, top_logprobs=max(common.top_logprobs, 1))
    return body


def thinking(think: bool | str | None, model: ModelView) -> dict[str, Any]:
    """How a template is told to think; nothing for a model that cannot.

    A model that thinks does so unless it is told not to.
    """
    details = model.details
    known = details is not None and bool(details.capabilities)
    able = known and details is not None and "thinking" in details.capabilities
    if (known and not able) or (think is None and not able):
        return {}
    no_switch = details is not None and details.architecture in _NO_SWITCH
    if think is False and no_switch:
        return {}
    kwargs: dict[str, Any] = {"enable_thinking": think is not False}
    if isinstance(think, str):
        kwargs["reasoning_effort"] = "high" if think == "max" and no_switch else think
    return {"chat_template_kwargs": kwargs}


# --- truncate ------------------------------------------------------------------------------------------------


def _fit(
    typed: tuple[Message, ...],
    found: list[list[Media]],
    extra: Mapping[str, Any],
    common: Common,
    lease: Lease,
) -> Generator[Op, Event, tuple[tuple[Message, ...], list[list[Media]]]]:
    """Leave out the oldest messages until the rest fits: never the last one, never a system message.

    What still does not fit is for the engine to refuse, in its own words.
    """
    context = lease.context_length
    droppable = [index for index, message in enumerate(typed[:-1]) if message.role != "system"]
    if context is None or not common.truncate or not droppable or _is_small(typed, extra, context):
        return typed, found

    def left(dropped: int) -> list[int]:
        gone = set(droppable[:dropped])
        return [index for index in range(len(typed)) if index not in gone]

    # The fewest that must go, found by halves: rendering and counting a long conversation takes time.
    low, high = 0, len(droppable)
    first = True
    while low < high:
        middle = 0 if first else (low + high) // 2
        first = False
        kept = [typed[index] for index in left(middle)]
        tokens = yield from _count(kept, extra)
        if tokens is None:
            return typed, found
        if tokens < context:
            high = middle
        else:
            low = middle + 1
    kept_indexes = left(low)
    return tuple(typed[index] for index in kept_indexes), [found[index] for index in kept_indexes]


def _is_small(typed: Sequence[Message], extra: Mapping[str, Any], context: int) -> bool:
    """Whether it fits without counting: a token is at least one byte of the body."""
    body = engine.call(PATH, {"messages": messages.to_engine(typed), **extra}).body
    pictures = sum(len(message.images) for message in typed)
    return len(body) + pictures * PICTURE_TOKENS < context


def _count(kept: Sequence[Message], extra: Mapping[str, Any]) -> Generator[Op, Event, int | None]:
    bare = [replace(message, images=()) for message in kept]
    prompt = yield from engine.render({"messages": messages.to_engine(bare), **extra})
    if prompt is None:
        return None
    tokens = yield from engine.tokens(prompt, special=True)
    if tokens is None:
        return None
    return len(tokens) + PICTURE_TOKENS * sum(len(message.images) for message in kept)
