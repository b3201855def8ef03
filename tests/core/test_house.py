"""The end of a manager: one failing step never keeps the next from happening."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamaman.house import House


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
