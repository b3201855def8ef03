"""Media named by URL on the way through the door: refused before anything is asked, or fetched and put in place."""

from __future__ import annotations

import asyncio
import json
import threading
from base64 import b64encode
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from llamaman import limits
from llamaman.core.safe_fetch import Fetched, FetchFailed, Rules
from llamaman.core.safe_url import UrlRefused
from llamaman.gateway.dialect import Call, Intent, Lease, Reply, Result, Serving
from llamaman.gateway.dialect import Request as DialectRequest
from llamaman.gateway.media import Fetch, Media
from llamaman.records import ModelView

from .small_pipeline import House, Scripted, ask, house
from .test_media_places import SHAPES, URL, user

pytestmark = pytest.mark.parametrize("run", ["uvloop"], indirect=True)  # nothing here depends on the loop

Run = Callable[[Coroutine[Any, Any, Any]], Any]
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\0\0\0\0 and so on"
TEXT = b64encode(PNG).decode()


class Through(Scripted):
    """Passes the body on as it came."""

    def __init__(self) -> None:
        super().__init__(lambda: iter(()))  # type: ignore[arg-type,return-value] # serve is our own

    def open(self, request: DialectRequest) -> Intent | Reply:
        self.seen = request
        return Intent("tiny", needs="chat", request=request)

    def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
        assert intent.request is not None
        result = yield Call("POST", "/in", intent.request.raw)
        assert isinstance(result, Result)
        yield Reply(result.status, (), result.body)


async def fine(path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")


def png(url: str, rules: Rules) -> Fetched:
    return Fetched(url, "image/png", PNG)


def fetching(fetch: Fetch = png, hosts: tuple[str, ...] = ()) -> Media:
    return Media(lambda: True, lambda: hosts, fetch)


async def send(home: House, body: object) -> tuple[int, dict[str, Any]]:
    reader, writer = await ask(home.port, json.dumps(body).encode())
    head, _, rest = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1]), json.loads(rest)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_the_setting_it_is_refused_with_its_place_and_what_to_do(run: Run, shape: str) -> None:
    body, path, _ = SHAPES[shape]

    async def main() -> None:
        async with house(Through(), fine) as home:
            status, answer = await send(home, body)
            assert status == 400
            assert answer["error"].startswith(path)
            assert "base64" in answer["error"]
            assert "media.fetch_urls" in answer["error"]
            assert home.engine.seen == []
            assert home.at_rest()

    run(main())


def test_what_only_mentions_a_url_passes_byte_for_byte(run: Run) -> None:
    async def main() -> None:
        dialect = Through()
        async with house(dialect, fine, media=fetching()) as home:
            body = {"messages": [{"role": "user", "content": f"see {URL}"}]}
            assert (await send(home, body))[0] == 200
            assert dialect.seen.raw == json.dumps(body).encode()

    run(main())


@pytest.mark.parametrize("shape", SHAPES)
def test_with_the_setting_the_engine_gets_the_medium_itself(run: Run, shape: str) -> None:
    body, _, form = SHAPES[shape]

    async def main() -> None:
        dialect, media = Through(), fetching()
        async with house(dialect, fine, media=media) as home:
            assert (await send(home, body))[0] == 200
            (sent,) = home.engine.bodies
            assert URL not in json.dumps(sent)
            assert dialect.seen.json == sent, "the dialect reads what the engine gets"
            assert TEXT in json.dumps(sent)
            if form == "source":
                there = {"type": "base64", "media_type": "image/png", "data": TEXT}
                assert json.dumps(there) in json.dumps(sent)
            assert (f"data:image/png;base64,{TEXT}" in json.dumps(sent)) is (form == "url")
        media.close()

    run(main())


def test_one_url_is_fetched_once_and_the_rest_of_the_body_stays(run: Run) -> None:
    asked: list[tuple[str, Rules]] = []

    def fetch(url: str, rules: Rules) -> Fetched:
        asked.append((url, rules))
        return Fetched(url, "image/png", PNG)

    async def main() -> None:
        media = fetching(fetch, ("Images.example.org",))
        async with house(Through(), fine, media=media) as home:
            part = {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}
            assert (await send(home, {**user(part, part), "seed": 1}))[0] == 200
            (sent,) = home.engine.bodies
        there = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{TEXT}", "detail": "low"}}
        assert sent == {**user(there, there), "seed": 1}
        ((url, rules),) = asked
        assert url == URL
        assert (rules.most_bytes, rules.deadline_s) == (limits.MEDIA_BYTES, limits.MEDIA_FETCH_S)
        assert rules.hosts == {"images.example.org"}
        assert rules.trusted == frozenset(), "no request makes anybody trusted"
        media.close()

    run(main())


@pytest.mark.parametrize("error", [UrlRefused("not public"), FetchFailed("answered 404")])
def test_what_cannot_be_fetched_is_told_with_its_place(run: Run, error: Exception) -> None:
    def fetch(url: str, rules: Rules) -> Fetched:
        raise error

    async def main() -> None:
        media = fetching(fetch)
        async with house(Through(), fine, media=media) as home:
            status, answer = await send(home, user({"image_url": URL}))
            assert status == 400
            assert answer["error"].startswith("messages[0].content[0].image_url: ")
            assert str(error) in answer["error"]
            assert home.engine.seen == []
        media.close()

    run(main())


def test_pages_and_other_texts_are_no_media(run: Run) -> None:
    def fetch(url: str, rules: Rules) -> Fetched:
        return Fetched(url, "text/html; charset=utf-8", b"<html>secret")

    async def main() -> None:
        media = fetching(fetch)
        async with house(Through(), fine, media=media) as home:
            status, answer = await send(home, user({"image_url": URL}))
            assert status == 400
            assert "text/html" in answer["error"]
            assert "secret" not in answer["error"]
        media.close()

    run(main())


def test_sixteen_urls_are_fetched_and_no_more(run: Run) -> None:
    most, now, lock = [0], [0], threading.Lock()
    together = threading.Event()

    def fetch(url: str, rules: Rules) -> Fetched:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            if now[0] == 4:
                together.set()
        together.wait(5)
        with lock:
            now[0] -= 1
        return Fetched(url, "image/png", PNG)

    async def main() -> None:
        media = fetching(fetch)
        async with house(Through(), fine, media=media) as home:
            parts = [{"image_url": f"{URL}?{number}"} for number in range(17)]
            status, answer = await send(home, user(*parts))
            assert (status, most[0]) == (400, 0)
            assert "at most 16" in answer["error"]
            assert (await send(home, user(*parts[:16])))[0] == 200
            assert most[0] == 4, "several at a time, and not all"
        media.close()

    run(main())


def test_the_body_stays_within_its_limit_and_is_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, rules: Rules) -> Fetched:
        return Fetched(url, "image/png", PNG + bytes(1000))

    async def main() -> None:
        media = fetching(fetch)
        dialect = Through()
        async with house(dialect, fine, media=media) as home:
            budget = home.listeners.connections.budget
            monkeypatch.setattr(budget, "limit_bytes", 2000)
            assert (await send(home, user({"image_url": URL})))[0] == 200
            status, _ = await send(home, user({"image_url": URL}, {"image_url": URL + "2"}))
            assert (status, home.engine.seen) == (503, ["/in"])
            assert budget.used_bytes == 0
        media.close()
        tight = replace(dialect.routes[0], limit=1200)
        body = user({"image_url": URL})
        with pytest.raises(Exception, match="too large"):
            await fetching(fetch).settle(json.dumps(body).encode(), body, tight, Stub())  # type: ignore[arg-type] # the part of it that is used

    run(main())


class Stub:
    """What is used of a request."""

    def __init__(self, content_type: bytes = b"application/json") -> None:
        self.head = self
        self.named = {b"content-type": content_type}

    def reserve(self, count: int) -> None:
        """There is room."""


def test_a_body_that_is_passed_on_unread_is_read_for_this_unless_it_is_a_form(run: Run) -> None:
    async def main() -> None:
        route = replace(Through().routes[0], body="raw")
        raw = json.dumps(user({"image_url": URL})).encode()
        for kind in (b"application/json", b"text/plain", b"", b"application/x-www-form-urlencoded"):
            with pytest.raises(Exception, match="names its file by URL"):
                await Media().settle(raw, {}, route, Stub(kind))  # type: ignore[arg-type] # the part of it that is used
        with pytest.raises(Exception, match="not valid JSON"):
            await Media().settle(b"\xef\xbb\xbf" + raw, {}, route, Stub())  # type: ignore[arg-type] # the same
        form = Stub(b"multipart/form-data; boundary=x")
        assert await Media().settle(b"--x http://a", {}, route, form) == b"--x http://a"  # type: ignore[arg-type] # the same
        plain = b"\x00 no JSON and no URL"
        assert await Media().settle(plain, {}, route, Stub()) == plain  # type: ignore[arg-type] # the same
        filled = await fetching().settle(raw, {}, route, Stub())  # type: ignore[arg-type] # the same
        assert TEXT.encode() in filled

    run(main())
