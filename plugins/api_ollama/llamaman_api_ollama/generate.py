"""``POST /api/generate`` on llama-server: through the chat template, raw, filled in, or continued. Pure."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from llamaman import Event, Lease, ModelView, Op, Request, Result, Serving
from llamaman_api_ollama import answer, chat, engine, errors, go_template, media, messages, options, stream
from llamaman_api_ollama.asked import Asking, Generate
from llamaman_api_ollama.media import Media
from llamaman_api_ollama.messages import Message

COMPLETION = "/completion"
INFILL = "/infill"

log = logging.getLogger("llamaman.api_ollama")
_PLACE = re.compile(r"\[img-([0-9]{1,9})\]")
_BEGINNING = 64  # characters in which a literal first token is looked for


def serve(asking: Asking, asked: Generate, model: ModelView, lease: Lease, request: Request) -> Serving:
    """Answer a prompt."""
    common, name = asked.common, asking.name or model.name
    (found,) = media.read_all([asked.images])
    if asked.suffix and not asked.raw:
        yield from _infill(asked, model, name, lease, request)
        return
    typed = _messages(asked)
    body = {
        "messages": messages.to_engine(typed, [found if message.images else () for message in typed]),
        **chat.common_fields(common, model, lease),
    }
    if asked.raw:
        prompt: str | None = yield from _without_doubled_first_token(asked.prompt)
    else:
        prompt = yield from _continued(asked, body)
    if common.debug:
        if prompt is None:
            yield from chat.rendered(body, "generate", name, lease, images=len(found))
        else:
            info = {"rendered_template": prompt, **({"image_count": len(found)} if found else {})}
            yield answer.json_reply({**stream.answer("generate", name, lease.granted), "_debug_info": info})
        return
    if prompt is None:
        call, read = engine.call(chat.PATH, body, streamed=True), stream.read_chat
    else:
        try:
            whole = _with_media(prompt, found, lease.engine.media_marker if lease.engine else None)
        except errors.Told as refusal:
            yield errors.reply(refusal)
            return
        given = {"prompt": whole, **_completion_fields(asked, lease)}
        call, read = engine.call(COMPLETION, given, streamed=True), stream.read_completion

    def context(text: str) -> Generator[Op, Event, dict[str, Any]]:
        """The tokens of prompt and answer, which a client gives back to go on from there."""
        before = prompt if prompt is not None else (yield from engine.render(body))
        if before is None:
            return {}
        tokens = yield from engine.tokens(before + text, special=False)
        return {"context": tokens} if tokens else {}

    manner = answer.Manner(
        "generate",
        name,
        common.stream,
        common.top_logprobs,
        read,
        None if asked.raw or found else context,
    )
    yield from answer.tell(call, manner, request, lease)


def _messages(asked: Generate) -> list[Message]:
    system = [Message("system", asked.system)] if asked.system else []
    return [*system, Message("user", asked.prompt, images=asked.images)]


def _completion_fields(asked: Generate, lease: Lease) -> dict[str, Any]:
    common = asked.common
    body = options.fields(common.options, lease.context_length)
    if common.format is not None:
        body["json_schema"] = common.format or {"type": "object"}
    if common.logprobs:
        body["n_probs"] = max(common.top_logprobs, 1)
    return body


def _infill(asked: Generate, model: ModelView, name: str, lease: Lease, request: Request) -> Serving:
    """What stands between a prompt and a suffix."""
    body = {
        "input_prefix": asked.prompt,
        "input_suffix": asked.suffix,
        "prompt": "",
        **_completion_fields(asked, lease),
    }
    common = asked.common
    if common.debug:
        info = {"rendered_template": asked.prompt + asked.suffix}
        yield answer.json_reply({**stream.answer("generate", name, lease.granted), "_debug_info": info})
        return
    manner = answer.Manner("generate", name, common.stream, common.top_logprobs, stream.read_completion)
    telling = answer.tell(engine.call(INFILL, body, streamed=True), manner, request, lease)
    event: Event = None
    while True:
        try:
            op = telling.send(event)
        except StopIteration:
            return
        event = yield op
        if isinstance(event, Result) and errors.is_without_insert(event):
            telling.close()
            yield errors.reply(errors.no_feature(model, name, "insert"))
            return


def _continued(asked: Generate, body: Mapping[str, Any]) -> Generator[Op, Event, str | None]:
    """The whole prompt where it is not the chat template's alone: a template of the client's, or a context."""
    prompt = None
    if asked.template:
        prompt = go_template.fill(asked.template, asked.system, asked.prompt)
        if prompt is None:
            log.info("a request's template is beyond what is supported; the model's own is used")
    if not asked.context:
        return prompt
    before = yield from engine.text_of(asked.context)
    if prompt is None:
        prompt = yield from engine.render(body)
    return (before or "") + prompt if prompt is not None else None


def _without_doubled_first_token(prompt: str) -> Generator[Op, Event, str]:
    """A raw prompt without the literal of a token that the engine puts in front of every prompt."""
    if not prompt.startswith(("<", "[")):
        return prompt
    found = yield from engine.pieces(prompt[:_BEGINNING])
    if len(found) > 1 and found[0].get("id") == found[1].get("id"):
        literal = found[1].get("piece")
        if isinstance(literal, str) and literal:
            return prompt.removeprefix(literal)
    return prompt


def _with_media(prompt: str, found: Sequence[Media], marker: str | None) -> str | dict[str, Any]:
    """A prompt with its pictures, each at its place ``[img-N]``, else in front.

    :param marker: what stands for a picture; one that was rendered has it already.
    :raises Told: the engine has no marker, so it sees no pictures.
    """
    if not found:
        return prompt
    if not marker:
        raise errors.Told(400, "image input is not supported by this model")
    waiting = {str(index) for index in range(len(found))}

    def mark(place: re.Match[str]) -> str:
        if place[1] not in waiting:
            return place[0]
        waiting.discard(place[1])
        return marker

    prompt = _PLACE.sub(mark, prompt)
    missing = max(0, len(found) - prompt.count(marker))
    return {"prompt_string": marker * missing + prompt, "multimodal_data": [each.data for each in found]}
