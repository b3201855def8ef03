"""The models that are loaded at the start."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import pytest

from llamaman.core.library_contract import Library
from llamaman.errors import ModelNotFound, ModelUnavailable
from llamaman.gateway.preload import preload
from llamaman.records import ModelView, State

from .fleet import MODEL, Fleet


class OneModel:
    def find(self, name: str) -> ModelView:
        if name != MODEL.name:
            raise ModelNotFound(name)
        return MODEL


def load(fleet: Fleet, *names: str) -> None:
    asyncio.run(asyncio.wait_for(preload(names, cast(Library, OneModel()), fleet.pools), 5))


def test_each_is_ready_before_the_next_is_begun_and_none_is_in_use_afterwards() -> None:
    fleet = Fleet()
    load(fleet, MODEL.name)
    assert [(i.state, i.active, i.requests) for i in fleet.instances] == [(State.READY, 0, 0)]


def test_one_that_cannot_be_loaded_is_named_and_keeps_no_other_away(caplog: Any) -> None:
    fleet = Fleet()
    with caplog.at_level(logging.WARNING):
        load(fleet, "nobody", MODEL.name)
    assert "setting preload: 'nobody' was not loaded: model 'nobody' not found" in caplog.text
    assert fleet.instances[0].state is State.READY


def test_a_refused_start_is_told(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    fleet.start_error = ModelUnavailable("model limit reached (LLAMAMAN_MAX_MODELS=1)")
    with caplog.at_level(logging.WARNING):
        load(fleet, MODEL.name)
    assert "model limit reached" in caplog.text
