"""How a browser's own words about itself are shortened for people."""

from __future__ import annotations

import pytest

from llamaman.dashboard.pages.agents import agent_name

MOZILLA = "Mozilla/5.0 "
LIKE = "AppleWebKit/537.36 (KHTML, like Gecko) "


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        (MOZILLA + "(X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0", "Firefox 128 on Linux"),
        (MOZILLA + "(X11; Linux x86_64) " + LIKE + "Chrome/150.0.0.0 Safari/537.36", "Chrome 150 on Linux"),
        (
            MOZILLA
            + "(Windows NT 10.0; Win64; x64) "
            + LIKE
            + "Chrome/150.0.0.0 Safari/537.36 Edg/150.0.0.0",
            "Edge 150 on Windows",
        ),
        (
            MOZILLA + "(iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "Version/17.5 Mobile/15E148 Safari/604.1",
            "Safari 17 on iOS",
        ),
        (
            MOZILLA + "(Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "Version/17.5 Safari/605.1.15",
            "Safari 17 on macOS",
        ),
        ("curl/8.5.0", "curl 8"),
        ("llamaman-test", "llamaman-test"),
        ("", "Unknown"),
        ("x" * 100, "x" * 60 + "…"),
    ],
)
def test_a_browser_is_named_so_that_its_owner_knows_it(agent: str, name: str) -> None:
    assert agent_name(agent) == name
