"""The port pool gives each port to one owner and says clearly why it cannot."""

from __future__ import annotations

import threading

import pytest

from llamaman.core.ports import PortPool
from llamaman.errors import Conflict, InvalidField, PortTaken


def free(_port: int) -> bool:
    return True


def test_ports_are_given_in_order_and_once() -> None:
    pool = PortPool(8000, 8002)
    assert [pool.claim(None, name, free) for name in "abc"] == [8000, 8001, 8002]
    with pytest.raises(Conflict, match="No ports available"):
        pool.claim(None, "d", free)


def test_a_port_that_cannot_be_bound_is_passed_over() -> None:
    pool = PortPool(8000, 8002)
    assert pool.claim(None, "a", lambda port: port != 8000) == 8001
    assert pool.owner_of(8000) is None


def test_a_wanted_port_is_given_or_refused_by_name() -> None:
    pool = PortPool(8000, 8002)
    assert pool.claim(8001, "a", free) == 8001
    with pytest.raises(PortTaken, match="Port 8001 is already in use"):
        pool.claim(8001, "b", free)
    with pytest.raises(PortTaken, match="Port 8002 is already in use"):
        pool.claim(8002, "b", lambda _port: False)
    assert pool.owner_of(8002) is None


@pytest.mark.parametrize("port", [22, 7999, 8003, 0, -1])
def test_a_port_outside_the_range_is_an_invalid_field(port: int) -> None:
    with pytest.raises(InvalidField, match="8000-8002") as refusal:
        PortPool(8000, 8002).claim(port, "a", free)
    assert refusal.value.field == "port"


def test_the_holder_may_claim_its_port_again_although_it_is_bound() -> None:
    pool = PortPool(8000, 8002)
    pool.claim(8001, "a", free)
    assert pool.claim(8001, "a", lambda _port: False) == 8001


def test_release_gives_back_everything_and_is_no_error_twice() -> None:
    pool = PortPool(8000, 8001)
    pool.claim(None, "a", free)
    pool.claim(None, "a", free)
    pool.release("a")
    pool.release("a")
    assert pool.peek() == 8000


def test_peek_names_the_next_port_without_taking_it() -> None:
    pool = PortPool(8000, 8001)
    assert (pool.peek(), pool.peek()) == (8000, 8000)
    pool.claim(None, "a", free)
    assert pool.peek() == 8001
    pool.claim(None, "b", free)
    assert pool.peek() is None


def test_many_claimants_never_share_a_port() -> None:
    pool = PortPool(8000, 8099)
    got: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: got.extend(pool.claim(None, f"{n}", free) for _ in range(10)))  # type: ignore[misc] # mypy cannot infer a lambda's defaults
        for n in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(8000, 8100))


@pytest.mark.parametrize(("start", "end"), [(0, 1), (9, 8), (1, 65536)])
def test_an_impossible_range_is_a_programming_error(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="range of ports"):
        PortPool(start, end)
