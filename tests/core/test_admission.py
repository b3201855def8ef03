"""Who may start and who has to leave for it: the eviction table of the specification, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from llamaman.core.admission import Admit, Confirm, Launcher, Policy, Refuse, decide
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
    assert isinstance(decision, Refuse) == counts


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


@pytest.mark.parametrize("spared", [{"options": {"pinned": True}}, {"queued": 1}])
def test_pinned_and_awaited_models_are_never_evicted(spared: dict[str, Any]) -> None:
    running = [managed("spared", 1, **spared), managed("other", 2)]
    assert decide("ollama", running, Policy(max_models=2)) == Admit(("other",))
    assert isinstance(decide("ollama", running[:1], ONE_LIMIT), Refuse)


@pytest.mark.parametrize(
    "state", [State.QUEUED, State.PREPARING, State.DRAINING, State.STOPPING, State.BACKOFF]
)
def test_what_is_between_two_states_is_no_victim(state: State) -> None:
    assert isinstance(decide("ollama", [managed("a", 1, state=state)], ONE_LIMIT), Refuse)


def test_one_that_was_never_used_counts_from_when_it_became_ready() -> None:
    fresh = view("fresh", managed=True, ready_at=50.0, created=1.0)
    assert decide("ollama", [fresh, managed("used", 40)], Policy(max_models=2)) == Admit(("used",))
    assert decide("ollama", [fresh, managed("used", 60)], Policy(max_models=2)) == Admit(("fresh",))


def test_what_cannot_be_reached_now_counts_and_is_no_victim() -> None:
    lost = managed("a", 1, lost="the Docker daemon cannot be reached", handle=HANDLE)
    assert decide("ollama", [lost, managed("b", 2)], Policy(max_models=LIMIT)) == Admit(("b",))
    assert isinstance(decide("ollama", [lost], ONE_LIMIT), Refuse)
