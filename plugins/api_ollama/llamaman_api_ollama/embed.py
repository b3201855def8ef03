"""``POST /api/embed`` and ``/api/embeddings`` as llama-server's ``/v1/embeddings``. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Sequence
from typing import Any

import orjson

from llamaman import Call, Event, Lease, ModelView, Op, Reply, Request, Result, Serving, Value, Work
from llamaman_api_ollama import engine, errors, stream
from llamaman_api_ollama.asked import Asking, Embed

PATH = "/v1/embeddings"

Input = str | list[int]
_LARGE = 128 << 10  # bytes of an answer that the event loop had better not read


def empty(asked: Embed, name: str) -> dict[str, Any]:
    """The answer to a request that only loads the model."""
    return {"embedding": []} if asked.kind == "embeddings" else {"model": name, "embeddings": []}


def serve(asking: Asking, asked: Embed, model: ModelView, lease: Lease, request: Request) -> Serving:
    """Answer with vectors. An input that is too long is cut where the client allows it."""
    inputs: Sequence[Input] = asked.texts
    result = yield _call(inputs)
    assert isinstance(result, Result)
    if result.status >= 400:
        refusal = errors.of_engine(result)
        limit = _limit(result, lease)
        if limit is None:
            yield errors.reply(refusal)
            return
        if not asked.truncate:
            yield errors.reply(errors.Told(400, errors.TOO_LONG))
            return
        inputs = yield from _cut(asked.texts, limit)
        if not all(inputs):
            yield errors.reply(errors.Told(400, errors.NO_ROOM))
            return
        result = yield _call(inputs)
        assert isinstance(result, Result)
        if result.status >= 400:
            yield errors.reply(errors.of_engine(result))
            return
    figures = stream.figures(None, received=request.received, granted=lease.granted, ended=result.at)
    arguments = (result.body, asked, asking.name or model.name, figures)
    if len(result.body) > _LARGE:
        value = yield Work(_reply, arguments)
        assert isinstance(value, Value)
        yield value.value
    else:
        yield _reply(*arguments)


def _call(inputs: Sequence[Input]) -> Call:
    return engine.call(PATH, {"input": list(inputs), "encoding_format": "float"})


def _limit(result: Result, lease: Lease) -> int | None:
    """Tokens that an input may have, where a refusal is about length; None for any other refusal."""
    text = result.body.decode(errors="replace")
    batch = errors.largest_batch(text)
    if batch is None and "exceed_context_size" not in text:
        return None
    known = [each for each in (batch, lease.context_length) if each]
    return min(known) if known else None


def _cut(texts: Sequence[str], limit: int) -> Generator[Op, Event, list[Input]]:
    """Texts that have more than ``limit`` tokens as their first ones, with what the model wants around a text.

    An empty list stands for a text of which nothing can stay.
    """
    made: list[Input] = []
    for text in texts:
        if len(text.encode()) < limit:  # a token is a byte at least, but for the two around it
            made.append(text)
            continue
        whole = yield from engine.tokens(text, special=True)
        bare = yield from engine.tokens(text, special=False)
        if whole is None or bare is None or len(whole) <= limit:
            made.append(text)
            continue
        around = len(whole) - len(bare)
        after = around - 1 if around and whole[0] != bare[0] else around
        room = limit - around
        made.append(whole[: limit - after] + whole[len(whole) - after :] if room > 0 else [])
    return made


def _reply(body: bytes, asked: Embed, name: str, figures: dict[str, int]) -> Reply:
    try:
        data = orjson.loads(body)
        vectors = [entry["embedding"] for entry in sorted(data["data"], key=lambda entry: entry["index"])]
        tokens = data.get("usage", {}).get("prompt_tokens")
    except (ValueError, LookupError, TypeError, AttributeError):
        return errors.reply(errors.Told(502, "the engine's answer is not understood"))
    if asked.size:
        vectors = [_shortened(vector, asked.size) for vector in vectors]
    if asked.kind == "embeddings":
        return Reply(200, errors.JSON, orjson.dumps({"embedding": vectors[0] if vectors else []}))
    if isinstance(tokens, int) and tokens > 0:
        figures = {**figures, "prompt_eval_count": tokens}
    head = json.dumps({"model": name})[:-1].encode()  # non-ASCII escaped, as everywhere
    return Reply(
        200, errors.JSON, head + b',"embeddings":' + orjson.dumps(vectors) + b"," + orjson.dumps(figures)[1:]
    )


def _shortened(vector: list[float], size: int) -> list[float]:
    """A vector's first numbers, of length 1 again."""
    if size >= len(vector):
        return vector
    cut = vector[:size]
    length = math.sqrt(sum(number * number for number in cut))
    return [number / length for number in cut] if length else cut
