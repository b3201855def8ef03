"""The flags that LlamaMan itself gives every engine."""

from __future__ import annotations

import pytest

from llamaman.runtimes.own_flags import own_flags

KNOWN = frozenset({"--ui", "--no-ui", "--log-colors", "--metrics"})


def test_an_engine_has_no_page_of_its_own_unless_it_was_asked_for() -> None:
    assert "--no-ui" in own_flags(KNOWN, ())
    assert "--no-webui" in own_flags(frozenset({"--no-webui"}), ())
    assert own_flags(frozenset(), ()) == []


@pytest.mark.parametrize("given", ["--ui", "--webui", "--no-ui", "--no-webui"])
def test_what_was_said_of_the_page_stands(given: str) -> None:
    assert not {"--no-ui", "--ui"} & set(own_flags(KNOWN, [given]))
