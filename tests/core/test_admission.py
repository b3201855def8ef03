"""Who may start and who has to leave for it: the eviction table of the specification, line by line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamaman.core.admission import (
    LONGEST_STAY_S,
    SHORTEST_STAY_S,
    Admit,
    Confirm,
    Launcher,
    Policy,
    Refuse,
    Wait,
    decide,
)
from llamaman.records import Address, Handle, InstanceView, State

from .some_instance import some_instance

LIMIT = 2
ONE_LIMIT = Policy(max_models=1)
HANDLE = Handle("a", 1, 1, 1, Address("127.0.0.1", 1))


def view(instance_id: str, **given: Any) -> InstanceView:
    return some_instance(instance_id, **given).view()


def managed(instance_id: str, used: float, **given: Any) -> InstanceView:
    return view(instance_id, managed=True, last_request=used, **given)


def by_hand(instance_id: str, used: float, **given: Any) -> InstanceView:
    return view(instance_id, last_request=used, **given)


# --- the table of the specification ---------------------------------------------------------------------

HAND, MADE = "by hand", "by a request"
FULL = "model limit reached (LLAMAMAN_MAX_MODELS=2); "
OLLAMA_REFUSED = FULL + "admin-launched models cannot be evicted via the API"
OPENAI_REFUSED = FULL + "the OpenAI API does not evict running models"
ENFORCE, OVERRIDE, OPEN = "enforce_for_admin", "ollama_may_evict_admin", "openai_may_evict_managed"


@pytest.mark.parametrize(
    ("launcher", "toggle", "running", "expected"),
    [
        # Admin UI: evicts models of requests first, least recently used first, then its own; by default it asks.
        ("admin", None, (HAND, MADE), "asked"),
        ("admin", ENFORCE, (HAND, MADE), 1),
        ("admin", ENFORCE, (MADE, MADE), 0),
        ("admin", ENFORCE, (HAND, HAND), 0),
        ("admin", OVERRIDE, (MADE, MADE), "asked"),
        # Ollama API: evicts models of requests, least recently used first, and others' only if a toggle allows it.
        ("ollama", None, (MADE, MADE), 0),
        ("ollama", None, (HAND, MADE), 1),
        ("ollama", None, (HAND, HAND), OLLAMA_REFUSED),
        ("ollama", ENFORCE, (HAND, HAND), OLLAMA_REFUSED),
        ("ollama", OPEN, (HAND, HAND), OLLAMA_REFUSED),
        ("ollama", OVERRIDE, (HAND, MADE), 1),
        ("ollama", OVERRIDE, (HAND, HAND), 0),
        # OpenAI API: evicts nobody, whatever the specification's toggles say.
        ("openai", None, (MADE, MADE), OPENAI_REFUSED),
        ("openai", None, (HAND, MADE), OPENAI_REFUSED),
        ("openai", ENFORCE, (MADE, MADE), OPENAI_REFUSED),
        ("openai", OVERRIDE, (MADE, MADE), OPENAI_REFUSED),
        # Our own toggle closes the gap for clients that speak nothing else.
        ("openai", OPEN, (MADE, MADE), 0),
        ("openai", OPEN, (HAND, MADE), 1),
        ("openai", OPEN, (HAND, HAND), OLLAMA_REFUSED),
    ],
)
def test_who_evicts_whom(
    launcher: Launcher, toggle: str | None, running: tuple[str, ...], expected: int | str
) -> None:
    """Two models may run, and two do; the first was used before the second. ``expected``: who leaves, or the text."""
    policy = Policy(max_models=2, **({toggle: True} if toggle else {}))
    views = [view(str(n), managed=who == MADE, last_request=n + 1) for n, who in enumerate(running)]
    decision = decide(launcher, views, policy, now=1e9)
    if isinstance(expected, int):
        assert decision == Admit((str(expected),))
    elif expected == "asked":
        assert isinstance(decision, Confirm)
    else:
        assert decision == Refuse(expected)
    assert decide(launcher, views, Policy(3, **({toggle: True} if toggle else {}))) == Admit(), (
        "below the limit"
    )
    assert decide(launcher, views, Policy(0)) == Admit(), "0 disables eviction"


def test_a_refusal_that_is_not_of_the_table_says_what_stands_in_the_way() -> None:
    pinned = managed("a", 1, options={"pinned": True})
    hand = by_hand("b", 2, options={"pinned": True})
    for launcher, policy in (
        ("ollama", Policy(1)),
        ("openai", Policy(1, openai_may_evict_managed=True)),
        ("admin", Policy(1, enforce_for_admin=True)),
    ):
        assert decide(launcher, [pinned], policy) == Refuse(  # type: ignore[arg-type] # the literals above are launchers
            "model limit reached (LLAMAMAN_MAX_MODELS=1); pinned models are never evicted"
        )
    assert decide("ollama", [hand], Policy(1, ollama_may_evict_admin=True)) == Refuse(
        "model limit reached (LLAMAMAN_MAX_MODELS=1); pinned models are never evicted"
    )
    assert decide("ollama", [managed("a", 1)], Policy(1), spared={"a"}) == Refuse(
        "model limit reached (LLAMAMAN_MAX_MODELS=1); what is running could not be made to leave"
    )


def test_the_least_recently_used_is_the_one_whose_last_request_ended_first() -> None:
    began_first = managed("long", 10)
    began_last = managed("short", 20)
    views = [replace(began_first, last_release=50.0), replace(began_last, last_release=21.0)]
    assert decide("ollama", views, Policy(max_models=2)) == Admit(("short",))


# --- the limit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", ["admin", "ollama", "openai"])
def test_zero_means_no_limit(launcher: Launcher) -> None:
    crowd = [managed(f"i{n}", n) for n in range(50)]
    assert decide(launcher, crowd, Policy(max_models=0)) == Admit()


@pytest.mark.parametrize("launcher", ["admin", "ollama", "openai"])
def test_below_the_limit_nobody_has_to_leave(launcher: Launcher) -> None:
    assert decide(launcher, [managed("a", 1)], Policy(max_models=LIMIT)) == Admit()


@pytest.mark.parametrize("state", list(State))
def test_what_is_there_or_coming_or_going_counts_and_what_is_gone_does_not(state: State) -> None:
    counts = state not in (State.SLEEPING, State.STOPPED, State.FAILED)
    decision = decide("openai", [by_hand("a", 1, state=state)], ONE_LIMIT)
    assert isinstance(decision, Refuse | Wait) == counts


def test_instances_of_administrators_and_of_the_proxy_count_alike() -> None:
    running = [by_hand("a", 1), by_hand("b", 2)]
    assert isinstance(decide("ollama", running, Policy(max_models=1)), Refuse)


def test_an_instance_that_is_to_start_does_not_count_against_itself() -> None:
    backoff = by_hand("a", 1, state=State.BACKOFF)
    assert decide("openai", [backoff], ONE_LIMIT, starting="a") == Admit()


def test_embedding_models_neither_count_nor_are_evicted_nor_evict() -> None:
    embedder = managed("e", 0, options={"embedding_model": True})
    assert decide("openai", [embedder], ONE_LIMIT) == Admit()
    assert decide("ollama", [embedder, managed("a", 9)], ONE_LIMIT) == Admit(("a",))
    assert decide("openai", [managed("a", 1)], ONE_LIMIT, embedding=True) == Admit()


# --- Ollama ---------------------------------------------------------------------------------------------


def test_ollama_evicts_the_least_recently_used_managed_model() -> None:
    running = [managed("late", 30), managed("early", 10), by_hand("hand", 1)]
    assert decide("ollama", running, Policy(max_models=3)) == Admit(("early",))


def test_ollama_does_not_evict_what_administrators_launched() -> None:
    assert decide("ollama", [by_hand("hand", 1)], Policy(max_models=1)) == Refuse(
        "model limit reached (LLAMAMAN_MAX_MODELS=1); admin-launched models cannot be evicted via the API"
    )


def test_ollama_may_be_allowed_to_evict_those_but_takes_managed_ones_first() -> None:
    policy = Policy(max_models=2, ollama_may_evict_admin=True)
    assert decide("ollama", [by_hand("hand", 1), managed("m", 99)], policy) == Admit(("m",))
    assert decide("ollama", [by_hand("b", 5), by_hand("a", 3)], policy) == Admit(("a",))


def test_as_many_leave_as_are_too_many_or_none() -> None:
    running = [managed("a", 3), managed("b", 1), managed("c", 2)]
    assert decide("ollama", running, Policy(max_models=2)) == Admit(("b", "c"))
    mixed = [managed("a", 3), by_hand("b", 1), by_hand("c", 2)]
    assert isinstance(decide("ollama", mixed, Policy(max_models=2)), Refuse)


# --- OpenAI ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [{}, {"ollama_may_evict_admin": True}, {"enforce_for_admin": True}])
def test_openai_never_evicts(others: dict[str, bool]) -> None:
    policy = Policy(max_models=2, **others)
    assert decide("openai", [managed("a", 1), by_hand("b", 2)], policy) == Refuse(
        "model limit reached (LLAMAMAN_MAX_MODELS=2); the OpenAI API does not evict running models"
    )


def test_openai_may_be_allowed_to_evict_managed_models_and_only_those() -> None:
    policy = Policy(max_models=1, openai_may_evict_managed=True)
    assert decide("openai", [managed("a", 1)], policy) == Admit(("a",))
    assert isinstance(decide("openai", [by_hand("a", 1)], policy), Refuse)


# --- administrators -------------------------------------------------------------------------------------


def test_an_administrator_is_asked_before_the_limit_is_exceeded() -> None:
    decision = decide("admin", [by_hand("a", 1), managed("b", 2)], Policy(max_models=2))
    assert isinstance(decision, Confirm)
    assert "LLAMAMAN_MAX_MODELS=2" in decision.message
    assert "2 running" in decision.message
    assert "confirm_overcommit" in decision.message


def test_a_confirmed_launch_evicts_nobody() -> None:
    assert decide("admin", [managed("a", 1)], ONE_LIMIT, confirmed=True) == Admit()


def test_when_the_limit_is_enforced_managed_ones_leave_first_then_those_of_administrators() -> None:
    policy = Policy(max_models=2, enforce_for_admin=True)
    assert decide("admin", [by_hand("hand", 1), managed("m", 99)], policy) == Admit(("m",))
    assert decide("admin", [by_hand("b", 5), by_hand("a", 3)], policy) == Admit(("a",))
    assert decide("admin", [by_hand("b", 5), managed("m", 9), by_hand("a", 3)], policy) == Admit(("m", "a"))
    assert decide("admin", [managed("m", 9), by_hand("a", 3)], policy, confirmed=True) == Admit(("m",))


# --- who is spared --------------------------------------------------------------------------------------


def test_pinned_models_are_never_evicted() -> None:
    running = [managed("pinned", 1, options={"pinned": True}), managed("other", 2)]
    assert decide("ollama", running, Policy(max_models=2)) == Admit(("other",))
    assert isinstance(decide("ollama", running[:1], ONE_LIMIT), Refuse)


def test_one_that_could_not_be_made_to_leave_is_spared() -> None:
    running = [managed("busy", 1), managed("other", 2)]
    assert decide("ollama", running, Policy(max_models=2), spared={"busy"}) == Admit(("other",))
    assert isinstance(decide("ollama", running, Policy(max_models=2), spared={"busy", "other"}), Refuse)


@pytest.mark.parametrize("state", [State.DRAINING, State.STOPPING])
@pytest.mark.parametrize("launcher", ["ollama", "openai"])
def test_room_that_comes_free_anyway_is_waited_for(launcher: Launcher, state: State) -> None:
    assert isinstance(decide(launcher, [by_hand("a", 1, state=state)], ONE_LIMIT), Wait)
    running = [managed("going", 1, state=state), managed("idle", 2)]
    assert isinstance(decide("ollama", running, Policy(max_models=2)), Wait), (
        "nobody else has to leave for it"
    )


@pytest.mark.parametrize("state", [State.QUEUED, State.PREPARING, State.STARTING])
def test_what_is_loading_for_somebody_is_waited_for(state: State) -> None:
    loading = managed("a", 1, state=state, queued=1)
    assert isinstance(decide("ollama", [loading], ONE_LIMIT), Wait)
    assert isinstance(decide("openai", [loading], ONE_LIMIT), Refuse), "it may not make it leave later either"


@pytest.mark.parametrize("state", [State.STARTING, State.BACKOFF])
def test_what_is_loading_for_nobody_leaves_at_once(state: State) -> None:
    assert decide("ollama", [managed("a", 1, state=state)], ONE_LIMIT) == Admit(("a",))


# --- how long one may stay that is in use ---------------------------------------------------------------


def in_use(instance_id: str, ready_at: float, **given: Any) -> InstanceView:
    return managed(instance_id, ready_at + 0.1, ready_at=ready_at, **{"active": 1, **given})


@pytest.mark.parametrize(
    ("load_seconds", "stay"),
    [(None, SHORTEST_STAY_S), (0.1, SHORTEST_STAY_S), (7.0, 7.0), (900.0, LONGEST_STAY_S)],
)
def test_it_stays_as_long_as_its_load_took_within_bounds(load_seconds: float | None, stay: float) -> None:
    busy = in_use("a", 1000.0, load_seconds=load_seconds)
    decision = decide("ollama", [busy], ONE_LIMIT, now=1000.0 + stay / 2)
    assert isinstance(decision, Wait)
    assert decision.seconds == pytest.approx(stay / 2)
    assert decide("ollama", [busy], ONE_LIMIT, now=1000.0 + stay) == Admit(("a",))


def test_one_that_nobody_uses_leaves_before_any_that_is_in_use_and_at_once() -> None:
    idle = managed("idle", 1999, ready_at=1999.0)
    running = [in_use("busy", 1000.0), idle]
    assert decide("ollama", running, Policy(max_models=2), now=2000.0) == Admit(("idle",))
    assert decide("ollama", [idle], ONE_LIMIT, now=1999.5) == Admit(("idle",))


def test_one_that_has_not_served_anybody_yet_is_given_a_moment() -> None:
    fresh = view("fresh", managed=True, ready_at=1000.0)
    assert isinstance(decide("ollama", [fresh], ONE_LIMIT, now=1000.1), Wait)
    assert decide("ollama", [fresh], ONE_LIMIT, now=1002.0) == Admit(("fresh",))


def test_of_those_in_use_the_one_that_has_stayed_longest_leaves() -> None:
    running = [in_use("young", 1990.0), in_use("old", 1000.0, active=0, queued=3)]
    assert decide("ollama", running, Policy(max_models=2), now=2000.0) == Admit(("old",))


def test_an_administrator_waits_for_nobody_to_have_stayed_long_enough() -> None:
    policy = Policy(max_models=1, enforce_for_admin=True)
    assert decide("admin", [in_use("a", 1000.0)], policy, now=None) == Admit(("a",))


def test_a_refusal_says_what_it_rests_on() -> None:
    decision = decide("ollama", [by_hand("a", 1, active=1)], ONE_LIMIT)
    assert isinstance(decision, Refuse)
    assert decision.inputs == {"max_models": 1, "running": 1, "launched_by_hand": 1, "pinned": 0, "busy": 1}
