"""The end of a manager: one failing step never keeps the next from happening."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamaman.house import House, _last_lines
from llamaman.records import Address, Handle
from llamaman.runtimes.causes import START_MARK

from .some_instance import some_instance


class Broken:
    def __getattr__(self, name: str) -> Any:
        def fail(*args: object, **kwargs: object) -> None:
            raise RuntimeError(f"{name} broke")

        return fail


def test_engines_are_stopped_even_when_every_earlier_step_fails(caplog: pytest.LogCaptureFixture) -> None:
    stopped: list[bool] = []

    async def shutdown(*, stop_engines: bool) -> None:
        stopped.append(stop_engines)

    async def broken_shutdown(_grace: float) -> None:
        raise RuntimeError("the listeners broke")

    house = object.__new__(House)
    kernel = SimpleNamespace(
        jobs=Broken(),
        instances=SimpleNamespace(shutdown=shutdown),
        hooks=Broken(),
        facades=None,
        accounts=SimpleNamespace(sessions=Broken()),
        audit=Broken(),
        runtimes={"process": SimpleNamespace(name="process", close=Broken().close)},
    )
    for name, value in {
        "_kernel": kernel,
        "_calm": None,
        "_preload": None,
        "_media": Broken(),
        "_metrics": SimpleNamespace(lag=Broken()),
        "_listeners": SimpleNamespace(shutdown=broken_shutdown),
        "_pipeline": SimpleNamespace(exchanges=SimpleNamespace(end_all=lambda reason: None)),
        "_records": Broken(),
        "_transitions": Broken(),
        "_dashboard": None,
        "_serving": True,
    }.items():
        setattr(house, name, value)
    with caplog.at_level(logging.ERROR):
        asyncio.run(cast(House, house).close())
    assert stopped == [True]
    assert "ending answers failed" in caplog.text
    assert "ending runtime process failed" in caplog.text


class Ring:
    """A runtime that has the end of the output itself."""

    def last_lines(self, handle: Handle, count: int) -> list[str]:
        return ["from the runtime"]


HANDLE = Handle("i0", 1, 1, 1, Address("127.0.0.1", 1))


@pytest.mark.parametrize(
    ("text", "age_s", "lines"),
    [
        (f"{START_MARK}\nthe cause\n", 0, ["the cause\n"]),
        (f"old\n{START_MARK}\n", 0, ["from the runtime"]),  # the disk was full after its first line
        (f"{START_MARK}\nan older run\n", 600, ["from the runtime"]),  # and here before it
        (None, 0, ["from the runtime"]),
    ],
)
def test_the_end_of_the_output_comes_from_the_runtime_where_the_file_has_nothing_of_this_run(
    tmp_path: Path, text: str | None, age_s: float, lines: list[str]
) -> None:
    log = tmp_path / "log"
    if text is not None:
        log.write_text(text)
        os.utime(log, (time.time() - age_s, time.time() - age_s))
    instance = some_instance(log_path=log, handle=HANDLE, started=time.time())
    assert _last_lines(instance, cast(Any, Ring())) == lines
    instance.handle = None
    assert _last_lines(instance, cast(Any, Ring())) == (lines if lines == ["the cause\n"] else [])
    assert _last_lines(instance, None) == (lines if lines == ["the cause\n"] else [])
