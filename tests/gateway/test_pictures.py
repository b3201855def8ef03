"""Pictures and sounds on the way through the pipeline: judged for models that see, converted, or left to the engine."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from llamaman.gateway import pictures
from llamaman.gateway.exchange import Exchange
from llamaman.gateway.inline_media import Conversion, examine
from llamaman.gateway.pictures import convert, may_see, sees
from llamaman.records import EngineFacts, ModelDetails

from .fleet import MODEL
from .small_pipeline import House, house
from .test_inline_media import picture, place, png
from .test_media import Through, fine, send

pytestmark = pytest.mark.parametrize("run", ["uvloop"], indirect=True)  # nothing here depends on the loop

Run = Callable[[Coroutine[Any, Any, Any]], Any]
BLIND, SEEING = EngineFacts(frozenset()), EngineFacts(frozenset({"vision"}))


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def said(*pictures: bytes) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url(data)}} for data in pictures]
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, *parts]}]}


def sent(home: House) -> list[bytes]:
    """The pictures that the engine got."""
    (body,) = home.engine.bodies
    urls = [part["image_url"]["url"] for part in body["messages"][0]["content"][1:]]
    assert all(each.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for each in urls)
    return [base64.b64decode(each.partition(",")[2]) for each in urls]


def opened(data: bytes) -> tuple[str | None, tuple[int, int]]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.format, image.size


def test_what_an_engine_reads_gets_there_byte_for_byte(run: Run) -> None:
    async def main() -> None:
        dialect = Through()
        async with house(dialect, fine) as home:
            body = said(picture("PNG"), picture("JPEG"))
            assert (await send(home, body))[0] == 200
            assert dialect.seen.raw == json.dumps(body).encode()

    run(main())


def test_a_webp_is_converted_and_the_dialect_reads_the_request_again(run: Run) -> None:
    async def main() -> None:
        dialect = Through()
        png_, webp, large = picture("PNG"), picture("WEBP", (30, 20), "RGBA"), picture("WEBP", (2500, 2000))
        async with house(dialect, fine) as home:
            assert (await send(home, said(png_, webp, large, webp)))[0] == 200
            first, second, third, fourth = sent(home)
            assert first == png_
            assert opened(second) == ("PNG", (30, 20))
            assert opened(third) == ("JPEG", (2500, 2000))
            assert fourth == second
            assert dialect.seen.json == home.engine.bodies[0], "the dialect reads what the engine gets"

    run(main())


def test_a_converted_request_that_ends_engines_is_known_again(run: Run) -> None:
    async def main() -> None:
        async with house(Through(), fine) as home:

            async def dying(path: str, writer: asyncio.StreamWriter) -> None:
                (exchange,) = home.pipeline.exchanges.all()
                assert isinstance(exchange, Exchange)
                exchange.blamed(home.instance)
                await fine(path, writer)

            home.engine.behave = dying
            body = said(picture("WEBP"))
            assert (await send(home, body))[0] == 200
            status, answer = await send(home, body)
            assert (status, len(home.engine.seen)) == (422, 1)
            assert "crashed" in answer["error"]

    run(main())


def test_a_source_object_says_what_its_picture_has_become(run: Run) -> None:
    async def main() -> None:
        data = base64.b64encode(picture("WEBP")).decode()
        source = {"type": "base64", "media_type": "image/webp", "data": data}
        body = {"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}
        async with house(Through(), fine) as home:
            assert (await send(home, body))[0] == 200
            (got,) = home.engine.bodies
            made = got["messages"][0]["content"][0]["source"]
            assert made["media_type"] == "image/png"
            assert opened(base64.b64decode(made["data"])) == ("PNG", (30, 20))

    run(main())


def test_a_bomb_is_refused_before_an_engine_is_asked_for(run: Run) -> None:
    async def main() -> None:
        async with house(Through(), fine) as home:
            status, answer = await send(home, said(picture("PNG"), png(20_000, 20_000)))
            assert status == 400
            assert answer["error"].startswith("messages[0].content[2].image_url.url: ")
            assert home.engine.seen == []
            assert home.at_rest()

    run(main())


def test_a_picture_for_a_model_without_eyes_is_left_to_its_engine(run: Run) -> None:
    async def main() -> None:
        dialect = Through()
        async with house(dialect, fine) as home:
            home.instance.facts = BLIND
            body = said(png(20_000, 20_000), picture("WEBP"), b"no picture")
            assert (await send(home, body))[0] == 200
            assert dialect.seen.raw == json.dumps(body).encode()

    run(main())


def test_an_engine_that_sees_more_than_its_files_promise_gets_no_bomb(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with house(Through(), fine) as home:
            home.instance.facts = SEEING
            monkeypatch.setattr("llamaman.gateway.pipeline.may_see", lambda model, views: False)
            status, answer = await send(home, said(png(20_000, 20_000)))
            assert (status, home.engine.seen) == (400, [])
            assert "20,000 x 20,000" in answer["error"]
            assert home.at_rest()
            assert (await send(home, said(picture("WEBP"))))[0] == 200
            assert opened(sent(home)[0])[0] == "PNG"

    run(main())


def test_who_sees_is_told_by_the_engine_before_the_files(run: Run) -> None:
    blind = replace(MODEL, details=ModelDetails(capabilities=frozenset({"completion"})))
    eyes = replace(MODEL, details=ModelDetails(capabilities=frozenset({"completion", "vision"})))
    assert may_see(MODEL, []), "of whom nothing is known may see"
    assert [may_see(model, []) for model in (blind, eyes)] == [False, True]
    assert [sees(facts) for facts in (None, EngineFacts(None), BLIND, SEEING)] == [True, True, False, True]


def test_a_webp_that_is_broken_is_refused(run: Run) -> None:
    whole = picture("WEBP", (300, 200))

    async def main() -> None:
        async with house(Through(), fine) as home:
            for broken in (whole[:60], whole[:30] + bytes(40)):
                status, answer = await send(home, said(broken))
                assert (status, home.engine.seen) == (400, [])
                assert "the WebP picture cannot be read" in answer["error"]

    run(main())


def test_one_picture_is_converted_at_a_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now, most, begun, go_on = [0], [0], threading.Event(), threading.Event()

    def watched(conversion: Conversion) -> tuple[str, str]:
        now[0] += 1
        most[0] = max(most[0], now[0])
        begun.set()
        assert go_on.wait(60)
        made = convert(conversion)
        now[0] -= 1
        return made

    monkeypatch.setattr(pictures, "convert", watched)

    async def main() -> None:
        async with house(Through(), fine, slots=4) as home:
            asking = [asyncio.ensure_future(send(home, said(picture("WEBP", (9, 9 + n))))) for n in range(4)]
            assert await asyncio.to_thread(begun.wait, 60)
            assert (await send(home, said(picture("PNG"))))[0] == 200, "others go on"
            go_on.set()
            assert [status for status, _ in await asyncio.gather(*asking)] == [200] * 4
            assert most[0] == 1

    run(main())


def test_converted_pictures_are_counted_among_the_bodies(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with house(Through(), fine) as home:
            budget = home.listeners.connections.budget
            noise = io.BytesIO()
            Image.effect_noise((300, 200), 90).save(noise, "WEBP", quality=1)
            body = said(noise.getvalue())
            monkeypatch.setattr(budget, "limit_bytes", len(json.dumps(body)) + 1000)
            assert (await send(home, body))[0] == 503
            assert budget.used_bytes == 0

    run(main())


def test_a_conversion_is_of_the_size_that_was_measured(run: Run) -> None:
    (conversion,) = examine([place(picture("WEBP", (30, 20)))])
    other = replace(conversion, size=replace(conversion.size, width=29))
    assert convert(conversion)[0] == "image/png"
    with pytest.raises(Exception, match="its size is not the one that it begins with"):
        convert(other)
