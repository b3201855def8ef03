"""The circuit breaker: a configuration that keeps dying is left alone for longer and longer."""

from __future__ import annotations

from llamaman.core.breaker import FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker, Open


def test_a_configuration_that_never_died_may_start() -> None:
    assert Breaker().check("a", 0.0) is None


def test_a_death_opens_it_for_five_seconds_with_its_reason() -> None:
    breaker = Breaker()
    assert breaker.death("a", "out of memory", 100.0) == FIRST_PAUSE_S == 5.0
    assert breaker.check("a", 101.0) == Open(4.0, "out of memory")
    assert breaker.check("a", 105.0) is None


def test_each_further_death_doubles_the_pause_up_to_five_minutes() -> None:
    breaker = Breaker()
    pauses = [breaker.death("a", "again", 0.0) for _ in range(2000)]  # a shift of 2000 bits is no float
    assert pauses[:7] == [5, 10, 20, 40, 80, 160, 300]
    assert set(pauses[6:]) == {LONGEST_PAUSE_S} == {300.0}


def test_deaths_count_on_when_a_pause_is_over() -> None:
    breaker = Breaker()
    breaker.death("a", "first", 0.0)
    assert breaker.check("a", 10.0) is None
    assert breaker.death("a", "second", 10.0) == 10.0
    assert breaker.check("a", 10.0) == Open(10.0, "second")


def test_another_configuration_is_not_punished() -> None:
    breaker = Breaker()
    breaker.death("a", "bad", 0.0)
    assert breaker.check("b", 0.0) is None


def test_a_success_or_an_administrator_forgets_everything() -> None:
    for forget in (Breaker.success, Breaker.reset):
        breaker = Breaker()
        breaker.death("a", "bad", 0.0)
        forget(breaker, "a")
        assert breaker.check("a", 0.0) is None
        assert breaker.death("a", "bad", 0.0) == FIRST_PAUSE_S
        forget(breaker, "unknown")


def test_a_hold_refuses_for_its_time_and_counts_no_death() -> None:
    breaker = Breaker()
    breaker.hold("a", "its image cannot be pulled", 30.0, 0.0)
    assert breaker.check("a", 10.0) == Open(20.0, "its image cannot be pulled")
    assert breaker.check("a", 30.0) is None
    assert breaker.death("a", "first", 30.0) == FIRST_PAUSE_S


def test_a_hold_does_not_forgive_the_deaths_before_it() -> None:
    breaker = Breaker()
    breaker.death("a", "first", 0.0)
    breaker.hold("a", "its image cannot be pulled", 30.0, 10.0)
    assert breaker.death("a", "second", 50.0) == 2 * FIRST_PAUSE_S
