"""Media that a request names by URL: refused, or with a setting fetched here and put into the body.

Read by the pipeline, before a dialect sees the body. llama-server would fetch such URLs itself, from wherever it
can reach, so none may get to it. What is in a body then is judged by :mod:`llamaman.gateway.pictures`.
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llamaman import limits
from llamaman.core.safe_fetch import Fetched, FetchFailed, Rules, safe_fetch
from llamaman.core.safe_url import UrlRefused
from llamaman.errors import InvalidField, InvalidRequest, LlamaManError, ModelUnavailable, PayloadTooLarge
from llamaman.gateway.body import dump, parse_object
from llamaman.gateway.dialect import InferenceRoute
from llamaman.gateway.limits import BufferFull
from llamaman.gateway.media_places import Place, find, may_name
from llamaman.gateway.pictures import Pictures
from llamaman.gateway.request import Request

_AT_ONCE = 4
_THREADS = 8
_STALL_S = 5.0
#: A body larger than this is looked through beside the event loop.
_LARGE = 64 << 10

#: First bytes -> what they begin; of RIFF, the bytes 8 to 12 say what.
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"%PDF-", "application/pdf"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_KIND = re.compile(r"(?:image|audio|video)/[a-z0-9.+-]{1,64}")

Fetch = Callable[[str, Rules], Fetched]


def _never() -> bool:
    return False


def _no_hosts() -> Iterable[str]:
    return ()


class Media:
    """Sees to it that no body names a medium by URL. Owns the threads that fetch, and :attr:`pictures`.

    :param may_fetch: whether URLs are fetched instead of refused. :param hosts: when there are any, the only ones
        that are asked; behind an HTTP proxy, where addresses cannot be checked, there have to be some.
    """

    def __init__(
        self,
        may_fetch: Callable[[], bool] = _never,
        hosts: Callable[[], Iterable[str]] = _no_hosts,
        fetch: Fetch = safe_fetch,
    ) -> None:
        self._may_fetch = may_fetch
        self._hosts = hosts
        self._fetch = fetch
        self._threads: ThreadPoolExecutor | None = None
        self.pictures = Pictures()

    async def settle(
        self, raw: bytes, body: dict[str, Any], route: InferenceRoute, request: Request
    ) -> bytes:
        """The body's text without such URLs; ``body``, which was parsed from ``raw``, is changed alike.

        A body that nobody has parsed is parsed here unless it is a form: the engine may take it for JSON.

        :raises InvalidField: names the place and what to do instead, or why it could not be fetched.
        """
        if not may_name(raw):
            return raw
        if route.body == "raw":
            if request.head.named.get(b"content-type", b"").lower().startswith(b"multipart/"):
                return raw
            body = parse_object(raw)
        places = await asyncio.to_thread(find, body) if len(raw) > _LARGE else find(body)
        if not places:
            return raw
        if not self._may_fetch():
            raise _refusal(places[0])
        await self._inline(places, request, route.limit - len(raw))
        return dump(body)

    def close(self) -> None:
        """Fetch and convert no more."""
        self.pictures.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    # --- inside --------------------------------------------------------------------------------------

    async def _inline(self, places: list[Place], request: Request, room: int) -> None:
        wanted: dict[str, list[Place]] = {}
        for place in places:
            wanted.setdefault(place.text, []).append(place)
        if len(places) > limits.MEDIA_URLS:
            raise InvalidRequest(
                f"{len(places)} media are named by URL; at most {limits.MEDIA_URLS} are fetched for one request",
                field=places[limits.MEDIA_URLS].path,
            )
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="media")
        hosts = frozenset(host.lower().removesuffix(".") for host in self._hosts())
        rules = Rules(limits.MEDIA_BYTES, limits.MEDIA_FETCH_S, _STALL_S, hosts=hosts)
        turn = asyncio.Semaphore(_AT_ONCE)

        async def bring(url: str, there: list[Place]) -> None:
            nonlocal room
            async with turn:
                kind, text = await self._one(url, there[0], rules)
            room -= len(text) * len(there)
            if room < 0:
                raise PayloadTooLarge("the request would be too large with the media that it names by URL")
            try:
                request.reserve(len(text) * len(there))
            except BufferFull:
                raise ModelUnavailable("too many large requests at once; try again", retry_after=1) from None
            for place in there:
                place.holder[place.key] = _inlined(place, kind, text)

        tasks = [asyncio.ensure_future(bring(url, there)) for url, there in wanted.items()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, url: str, place: Place, rules: Rules) -> tuple[str, str]:
        """Media type and base64 of what a URL names."""
        loop = asyncio.get_running_loop()
        try:
            # Twice: looking up a name has no deadline of its own.
            async with asyncio.timeout(2 * limits.MEDIA_FETCH_S):
                return await loop.run_in_executor(self._threads, self._read, url, rules)
        except TimeoutError:
            reason = "it took too long"
        except (UrlRefused, FetchFailed) as error:
            reason = error.message
        raise InvalidField(place.path, f"{place.path}: the URL could not be fetched: {reason}")

    def _read(self, url: str, rules: Rules) -> tuple[str, str]:
        fetched = self._fetch(url, rules)
        kind = media_type(fetched)
        if kind is None:
            told = fetched.content_type[:100] or "something unnamed"
            raise FetchFailed(f"its host sends {told}, and that is no image, audio or video")
        return kind, b64encode(fetched.data).decode()


def media_type(fetched: Fetched) -> str | None:
    """What was fetched: by its first bytes, else as its host says; None for what is no medium."""
    data = fetched.data
    if data[:4] == b"RIFF" and data[8:12] in _RIFF:
        return _RIFF[data[8:12]]
    if data[4:8] == b"ftyp":
        return "video/mp4"
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    declared = fetched.content_type.partition(";")[0].strip().lower()
    return declared if _KIND.fullmatch(declared) else None


def _inlined(place: Place, kind: str, text: str) -> Any:
    match place.form:
        case "base64":
            return text
        case "source":
            return {"type": "base64", "media_type": kind, "data": text}
        case "url":
            return f"data:{kind};base64,{text}"


def _refusal(place: Place) -> LlamaManError:
    return InvalidField(
        place.path,
        f"{place.path} names its file by URL, and such URLs are not fetched; send the file itself in base64 "
        "(data:image/png;base64,...), or have an administrator switch on the setting media.fetch_urls",
    )
