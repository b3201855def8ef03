"""Proxy sampling overrides: what they force, and when."""

from __future__ import annotations

from typing import Any

import pytest

from llamaman.core import launch
from llamaman.gateway.overrides import sampling_overrides

ON = {
    "proxy_sampling_override_enabled": True,
    "proxy_sampling_temperature": 0.3,
    "proxy_sampling_top_k": 7,
    "proxy_sampling_top_p": 0.5,
    "proxy_sampling_presence_penalty": 0.0,
    "proxy_sampling_repeat_penalty": 0.0,
}
FORCED = {"temperature": 0.3, "top_k": 7, "top_p": 0.5, "presence_penalty": 0.0}


@pytest.mark.parametrize("needs", ["chat", "completion"])
def test_text_generation_is_overridden(needs: str) -> None:
    assert sampling_overrides(ON, needs) == FORCED


@pytest.mark.parametrize("needs", ["embedding", "any"])
def test_nothing_else_is(needs: str) -> None:
    assert sampling_overrides(ON, needs) == {}


def test_off_means_that_the_client_decides() -> None:
    assert sampling_overrides({**ON, "proxy_sampling_override_enabled": False}, "chat") == {}
    assert sampling_overrides({}, "chat") == {}


@pytest.mark.parametrize(("penalty", "forced"), [(0, False), (0.0, False), (None, False), (1.1, True)])
def test_a_repeat_penalty_of_zero_is_not_forced(penalty: Any, forced: bool) -> None:
    body = sampling_overrides({**ON, "proxy_sampling_repeat_penalty": penalty}, "chat")
    assert body == ({**FORCED, "repeat_penalty": penalty} if forced else FORCED)


def test_the_launch_tables_own_defaults_can_be_forced() -> None:
    options = {**launch.defaults(), "proxy_sampling_override_enabled": True}
    forced = sampling_overrides(options, "chat")
    assert set(FORCED) <= set(forced)
    assert None not in forced.values()
