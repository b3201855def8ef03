"""Pictures and sounds that a request holds: judged, and made into what engines read, before an engine gets them.

Read by the pipeline, for every client API and port alike. A model that neither sees nor hears is given them as they
are: its engine refuses them without looking at them, in words of its own. Bodies without any cost a look at their
parts; what takes time is done beside the event loop, and one picture is converted at a time, whoever sent it.
"""

from __future__ import annotations

import asyncio
import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from llamaman.core.model_facts import LOADED, instance_of
from llamaman.errors import InvalidField, ModelUnavailable, PayloadTooLarge, PluginError
from llamaman.gateway.beside import beside_the_loop
from llamaman.gateway.body import dump
from llamaman.gateway.body_guard import ON_LOOP
from llamaman.gateway.dialect import Dialect, Intent, Reply
from llamaman.gateway.dialect import Request as DialectRequest
from llamaman.gateway.encoded import Base64
from llamaman.gateway.inline_media import Conversion, examine, examine_upload
from llamaman.gateway.limits import BufferFull
from llamaman.gateway.media_places import Place, find_inline
from llamaman.gateway.request import Request
from llamaman.records import EngineFacts, InstanceView, ModelView

#: A converted picture of more pixels becomes a JPEG: as a PNG it could be larger than a body may be.
_PNG_PIXELS = 4_000_000
_JPEG_QUALITY = 95
_SENSES = frozenset({"vision", "audio"})


def may_see(model: ModelView, instances: Iterable[InstanceView]) -> bool:
    """Whether a model may see or hear: by what its engine says, else by its files."""
    view = instance_of(model, instances)
    if (
        view is not None
        and view.state in LOADED
        and view.facts is not None
        and view.facts.modalities is not None
    ):
        return bool(view.facts.modalities)
    known = model.details.capabilities if model.details else None
    return not known or bool(known & _SENSES)


def sees(facts: EngineFacts | None) -> bool:
    """Whether the engine that has been granted may see or hear."""
    return facts is None or facts.modalities is None or bool(facts.modalities)


#: What stands for the places in a form, which nobody here has read.
UPLOAD = (Place({}, "file", "file", "", "base64"),)


async def find(asked: DialectRequest) -> Sequence[Place]:
    """Where the request holds pictures and sounds."""
    if asked.route.body == "raw":
        return UPLOAD
    if len(asked.raw) > ON_LOOP:
        return await asyncio.to_thread(find_inline, asked.json)
    return find_inline(asked.json)


class Pictures:
    """Judges and converts. Owns the thread that converts."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    async def settle(
        self,
        places: Sequence[Place],
        intent: Intent,
        asked: DialectRequest,
        dialect: Dialect,
        request: Request,
    ) -> Intent:
        """The intent with media that an engine can read; what was asked is read again where one was converted.

        :raises InvalidField: names the medium that no engine should be given, and the limit.
        :raises PayloadTooLarge: the body is too large once its pictures are converted.
        """
        if places is UPLOAD:
            await beside_the_loop(partial(examine_upload, asked.raw, asked.content_type))
            return intent
        conversions = await beside_the_loop(partial(examine, places))
        if not conversions:
            return intent
        room = asked.route.limit - len(asked.raw)
        made: dict[str, tuple[str, str]] = {}
        for conversion in conversions:
            place = conversion.place
            if place.text not in made:
                made[place.text] = await self._converted(conversion)
            kind, text = made[place.text]
            room -= len(text)
            if room < 0:
                raise PayloadTooLarge("the request would be too large with its WebP pictures converted")
            try:
                request.reserve(len(text))
            except BufferFull:
                raise ModelUnavailable("too many large requests at once; try again", retry_after=1) from None
            _put(place, kind, text)
        again = await beside_the_loop(partial(_reopened, dialect, asked))
        if isinstance(again, Reply):
            raise PluginError(dialect.name, "a request with converted pictures is read as another")
        return again

    def close(self) -> None:
        """Convert no more."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _converted(self, conversion: Conversion) -> tuple[str, str]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        return await asyncio.get_running_loop().run_in_executor(self._thread, convert, conversion)


def convert(conversion: Conversion) -> tuple[str, str]:
    """Media type and base64 of a picture as an engine reads it. Takes some eight bytes of memory for a pixel.

    :raises InvalidField: it is broken.
    """
    from PIL import Image, UnidentifiedImageError

    place, size = conversion.place, conversion.size
    source = Base64(place.text)
    into = io.BytesIO()
    try:
        data = source.read(0, source.size)
        with Image.open(io.BytesIO(data), formats=(size.kind.upper(),)) as picture:
            if picture.size != (size.width, size.height):
                raise ValueError("its size is not the one that it begins with")
            plain = picture.convert("RGB")  # an engine does not look at how transparent it is
        if size.pixels <= _PNG_PIXELS:
            plain.save(into, "PNG", compress_level=1)
            kind = "image/png"
        else:
            plain.save(into, "JPEG", quality=_JPEG_QUALITY)
            kind = "image/jpeg"
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidField(
            place.path, f"{place.path}: the {size.kind} picture cannot be read: {error}"
        ) from None
    return kind, b64encode(into.getbuffer()).decode()


def _reopened(dialect: Dialect, asked: DialectRequest) -> Intent | Reply:
    return dialect.open(replace(asked, raw=dump(asked.json)))


def _put(place: Place, kind: str, text: str) -> None:
    holder: Any = place.holder
    holder[place.key] = f"data:{kind};base64,{text}" if place.form == "url" else text
    if isinstance(holder, dict) and "media_type" in holder:
        holder["media_type"] = kind
