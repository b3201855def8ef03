"""The sentence that tells why: one per state, with what the next request does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamaman.core.breaker import Open
from llamaman.core.events import Event
from llamaman.core.why import NOT_LOADED, Prospect, Question, explain, length
from llamaman.records import InstanceView, State

from .some_instance import some_instance

NOW = 10_000.0


def view(state: State, reason: str, **changes: Any) -> InstanceView:
    found = some_instance().view()
    return replace(found, id="1234567890", model="qwen", state=state, reason=reason, **changes)


def event(kind: str, reason: str = "", actor: str = "gateway", ago: float = 60, number: int = 1) -> Event:
    data = {"instance_id": "1234567890", "model": "qwen"}
    return Event(number, "instances", kind, NOW - ago, actor, reason, data)


def said(*views: InstanceView, events: tuple[Event, ...] = (), **facts: Any) -> str:
    facts.setdefault("kind", "model")
    return explain(Question(model="qwen", instances=views, events=events, now=NOW, **facts)).answer


@pytest.mark.parametrize(
    ("options", "default", "why"),
    [
        ({"idle_timeout_min": 30}, 0, " (idle_timeout_min 30)"),
        ({}, 30, " (LLAMAMAN_IDLE_TIMEOUT 30)"),
        ({}, 0, ""),
    ],
)
def test_one_that_sleeps_names_the_setting_it_sleeps_by(options: Any, default: float, why: str) -> None:
    sleeping = view(State.SLEEPING, "idle for 30 min", options=options)
    assert said(sleeping, idle_default_min=default) == (
        f"qwen sleeps: idle for 30 min{why}; the next request wakes it"
    )


def test_one_that_was_evicted_says_for_what_and_who_has_to_leave_next() -> None:
    evicted = view(State.SLEEPING, "evicted for model 'phi'")
    assert said(evicted, prospect=Prospect(leaves=("llama",))) == (
        "qwen sleeps: evicted for model 'phi', to stay within LLAMAMAN_MAX_MODELS; "
        "the next request wakes it, and llama has to leave for it"
    )


def test_one_that_waits_for_room_says_for_what() -> None:
    assert said(view(State.SLEEPING, "idle for 30 min"), waits="llama to leave").endswith(
        "; a start of it waits for llama to leave"
    )


def test_what_the_apis_may_do_differs_and_both_are_told() -> None:
    prospect = Prospect("the OpenAI API does not evict", ollama=True, leaves=("llama",))
    assert said(view(State.SLEEPING, "x"), prospect=prospect).endswith(
        "; a request through the OpenAI or Anthropic API now is refused: the OpenAI API does not evict; "
        "one through the Ollama API wakes it, and llama has to leave for it"
    )


def test_one_that_failed_says_until_when_requests_are_refused() -> None:
    failed = view(State.FAILED, "the engine exited with status 1 while loading")
    assert said(failed, pauses={"1234567890": Open(4.2, "x")}) == (
        "qwen is failed: the engine exited with status 1 while loading; requests are refused for another 4 s, "
        "since this configuration keeps failing"
    )
    assert said(failed).endswith("; the next request tries again")


def test_one_that_is_ready_says_who_started_it_and_how_busy_it_is() -> None:
    ready = view(State.READY, "ready", active=2, queued=3, slots=2)
    events = (
        event("preparing", "launched", "session:ann", 500),
        event("ready", "ready", "session:ann", 300, 2),
    )
    assert said(ready, events=events) == (
        "qwen is ready for 5 min, launched (session:ann); 2 of 2 slots in use and 3 requests in the queue"
    )
    assert said(replace(ready, active=0, queued=0)) == "qwen is ready; no request is running"


def test_one_that_loads_says_for_whom() -> None:
    events = (
        event("preparing", "woken by a request", ago=20),
        event("starting", "loading the model", ago=12, number=2),
    )
    assert said(view(State.STARTING, "loading the model", queued=1), events=events) == (
        "qwen is loading for 12 s, woken by a request; 1 request waiting for it"
    )


def test_one_that_was_stopped_says_by_whom_and_that_a_request_starts_it() -> None:
    events = (event("stopped", "stopped by an administrator", "session:ann"),)
    assert said(view(State.STOPPED, "stopped by an administrator"), events=events) == (
        "qwen is stopped: stopped by an administrator (session:ann); the next request starts it again"
    )


@pytest.mark.parametrize("state", list(State))
def test_every_state_has_a_sentence_that_names_the_model(state: State) -> None:
    sentence = said(view(state, "some reason", active=1))
    assert sentence.startswith("qwen ")
    assert "None" not in sentence


def test_a_model_without_instance_says_what_a_request_would_meet() -> None:
    assert said() == "qwen is not loaded: nobody has asked for it yet; the next request loads it"
    assert said(prospect=Prospect(refusal="model limit reached")) == (
        "qwen is not loaded: nobody has asked for it yet; a request now is refused: model limit reached"
    )
    assert said(events=(event("removed", actor="key:ci"),)) == (
        "qwen is not loaded: its last instance was removed (key:ci); the next request loads it"
    )
    assert said(problem="its file is cut off") == "qwen cannot be run: its file is cut off"


def test_a_model_that_is_not_loaded_has_that_state_and_no_instance() -> None:
    answer = explain(Question(kind="model", model="qwen", instances=(), events=(), now=NOW))
    assert (answer.state, answer.instance_id, answer.since) == (NOT_LOADED, None, None)


def test_of_several_instances_the_one_that_serves_speaks() -> None:
    ready = replace(view(State.READY, "ready"), id="another-one")
    answer = explain(
        Question(
            kind="model", model="qwen", instances=(view(State.FAILED, "died"), ready), events=(), now=NOW
        )
    )
    assert answer.instance_id == "another-one"
    assert answer.answer.endswith("; it has 1 more instance")


def test_an_instance_is_named_by_the_beginning_of_its_id() -> None:
    assert said(view(State.FAILED, "died"), kind="instance").startswith("instance 12345678 of qwen is failed")


def test_since_is_when_it_entered_the_state_and_unknown_if_nobody_remembers() -> None:
    def since(*events: Event) -> float | None:
        sleeping = view(State.SLEEPING, "idle for 1 min")
        return explain(
            Question(kind="model", model="qwen", instances=(sleeping,), events=events, now=NOW)
        ).since

    assert since(event("sleeping", ago=90), event("stopping", ago=80, number=2)) == NOW - 90
    assert since() is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (89, "89 s"), (300, "5 min"), (7200, "2 h"), (3 * 86400, "3 days")]
)
def test_lengths_are_said_as_people_do(seconds: float, text: str) -> None:
    assert length(seconds) == text


def test_no_path_gets_into_the_sentence() -> None:
    hidden = view(State.READY, "ready", model_path=Path("/secret/qwen.gguf"), log_path=Path("/secret/log"))
    assert "/secret" not in said(hidden)


def test_one_whose_engine_is_fetched_says_how_far_that_is() -> None:
    preparing = view(State.PREPARING, "pulling image, 43 %")
    begun = event("preparing", "woken by a request")
    assert said(preparing, events=(begun,)) == (
        "qwen is about to load, woken by a request: pulling image, 43 %; nobody waits for it"
    )
    assert said(view(State.PREPARING, "woken by a request"), events=(begun,)) == (
        "qwen is about to load, woken by a request; nobody waits for it"
    )


def test_one_whose_runtime_is_lost_says_that_nobody_can_tell() -> None:
    unknown = view(State.READY, "the Docker daemon cannot be reached", status="unknown")
    assert said(unknown) == (
        "qwen may be running as before or not, which nobody can tell now: the Docker daemon cannot be reached"
    )
