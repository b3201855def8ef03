"""keep_alive: Go's durations and seconds, refused in Go's words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llamaman.errors import InvalidField
from llamaman_api_ollama import durations


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0),
        (300, 300),
        (1.5, 1.5),
        (-1, math.inf),
        (-0.5, math.inf),
        (1e300, math.inf),
        (10**30, math.inf),
        ("5m", 300),
        ("5m0s", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("1.s", 1),
        ("0", 0),
        ("0s", 0),
        ("+0", 0),
        ("-1s", math.inf),
        ("-1h2m", math.inf),
        ("+2s", 2),
        ("250ms", 0.25),
        ("3us", 3e-6),
        ("3\N{MICRO SIGN}s", 3e-6),
        ("3\N{GREEK SMALL LETTER MU}s", 3e-6),
        ("7ns", 7e-9),
    ],
)
def test_a_number_is_seconds_and_a_text_a_go_duration(value: Any, seconds: float | None) -> None:
    found = durations.keep_alive(value)
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", 'time: invalid duration "x"'),
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        (".s", 'time: invalid duration ".s"'),
        ("5m x", 'time: unknown unit "m x" in duration "5m x"'),
        ("300", 'time: missing unit in duration "300"'),
        ("-1", 'time: missing unit in duration "-1"'),
        ("1h30", 'time: missing unit in duration "1h30"'),
        ("1h" * 1000, f'time: invalid duration "{"1h" * 20}"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        (True, "Unsupported type: 'bool'"),
        ([], "Unsupported type: 'list'"),
        ({}, "Unsupported type: 'object'"),
    ],
)
def test_anything_else_is_refused_in_the_words_of_go(value: Any, text: str) -> None:
    with pytest.raises(InvalidField) as error:
        durations.keep_alive(value)
    assert (error.value.message, error.value.field, error.value.status) == (text, "keep_alive", 400)
