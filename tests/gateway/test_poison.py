"""A request under which an engine crashed is not tried again for a while, nor is a key that sends several."""

from __future__ import annotations

import pytest

from llamaman.errors import CrashingRequest, TooManyRequests
from llamaman.gateway import poison
from llamaman.gateway.poison import Poison, digest

BODY = digest("/v1/chat/completions", b'{"a":1}')


def test_a_body_is_refused_for_five_minutes_and_no_longer() -> None:
    state = Poison()
    assert not state.knows_bodies(0.0)
    state.check_body(BODY, 0.0)
    state.add_body(BODY, 1000.0)
    assert state.knows_bodies(1299.9)
    with pytest.raises(CrashingRequest, match="not tried again for 300 s") as caught:
        state.check_body(BODY, 1000.0)
    assert caught.value.status == 422
    with pytest.raises(CrashingRequest, match="for 1 s"):
        state.check_body(BODY, 1299.5)
    state.check_body(BODY, 1300.0)
    assert not state.knows_bodies(1300.0)


def test_a_body_is_known_by_its_path_and_every_byte() -> None:
    state = Poison()
    state.add_body(BODY, 0.0)
    for other in (("/v1/completions", b'{"a":1}'), ("/v1/chat/completions", b'{"a": 1}'), ("", b"")):
        state.check_body(digest(*other), 1.0)
    assert digest("/a", b"b") != digest("/ab", b"")


def test_a_body_that_crashes_again_is_refused_from_then_on() -> None:
    state = Poison()
    state.add_body(BODY, 0.0)
    state.add_body(b"other", 200.0)
    state.add_body(BODY, 299.0)
    for now in (300.0, 598.0):
        assert state.knows_bodies(now)
        with pytest.raises(CrashingRequest):
            state.check_body(BODY, now)


def test_three_crashes_in_ten_minutes_close_the_door_to_a_key_until_the_first_is_over() -> None:
    state = Poison()
    for now in (0.0, 100.0):
        state.add_crash("k1", now)
        state.check_key("k1", now)
    state.add_crash("k1", 200.0)
    with pytest.raises(TooManyRequests) as caught:
        state.check_key("k1", 200.0)
    assert (caught.value.status, caught.value.retry_after) == (429, 400)
    with pytest.raises(TooManyRequests) as caught:
        state.check_key("k1", 599.9)
    assert caught.value.retry_after == 1
    state.check_key("k1", 600.0)
    state.add_crash("k1", 650.0)
    with pytest.raises(TooManyRequests):
        state.check_key("k1", 699.0)
    state.check_key("k1", 700.0)
    state.check_key("k1", 5000.0)
    assert not state._crashes, "nothing is kept of what is over"


def test_other_keys_and_callers_without_a_key_are_not_concerned() -> None:
    state = Poison()
    for _ in range(9):
        state.add_crash("k1", 0.0)
    state.check_key("k2", 0.0)
    state.check_key(None, 0.0)
    with pytest.raises(TooManyRequests):
        state.check_key("k1", 0.0)


def test_what_is_kept_is_bounded_and_the_newest_stays() -> None:
    state = Poison()
    for number in range(3 * poison._MOST):
        state.add_body(b"%d" % number, float(number) / 100)
        state.add_crash(f"k{number}", float(number) / 100)
    assert len(state._bodies) == len(state._crashes) == poison._MOST
    with pytest.raises(CrashingRequest):
        state.check_body(b"%d" % (3 * poison._MOST - 1), 31.0)
