"""What is known of one instance: its capacity, its snapshot, and what survives a restart of the manager."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamaman.core.instance import Instance
from llamaman.records import Address, Exit, Handle, State

from .some_instance import some_instance


@pytest.mark.parametrize(
    ("slots", "options", "capacity"),
    [
        (4, {}, 4),
        (None, {"parallel": 3}, 3),
        (None, {"parallel": None}, 1),
        (None, {}, 1),
        (4, {"max_concurrent": 2}, 2),
        (2, {"max_concurrent": 9}, 2),
        (2, {"max_concurrent": 0}, 2),
        (2, {"max_concurrent": None}, 2),
    ],
)
def test_it_never_takes_more_requests_than_the_engine_has_slots(
    slots: int | None, options: dict[str, Any], capacity: int
) -> None:
    assert some_instance(slots=slots, options=options).capacity == capacity


def test_slots_are_free_while_it_is_ready_only() -> None:
    assert some_instance(slots=3, active=1).free == 2
    for state in State:
        if state is not State.READY:
            assert some_instance(slots=3, state=state).free == 0


@pytest.mark.parametrize(
    ("managed", "minutes", "wakes"),
    [(True, None, True), (True, 0, True), (False, 5, True), (False, 0, False), (False, None, False)],
)
def test_a_request_wakes_what_the_proxy_started_or_what_may_sleep(
    managed: bool, minutes: Any, wakes: bool
) -> None:
    instance = some_instance(managed=managed, options={"idle_timeout_min": minutes})
    assert instance.wakes_on_request is wakes
    assert instance.idle_timeout_option_s == (minutes or 0) * 60


@pytest.mark.parametrize(
    ("state", "desired", "status"),
    [
        (State.QUEUED, "running", "starting"),
        (State.PREPARING, "running", "starting"),
        (State.STARTING, "running", "starting"),
        (State.BACKOFF, "running", "starting"),
        (State.READY, "running", "healthy"),
        (State.DRAINING, "stopped", "healthy"),
        (State.STOPPING, "stopped", "stopped"),
        (State.STOPPING, "sleeping", "sleeping"),
        (State.SLEEPING, "sleeping", "sleeping"),
        (State.STOPPED, "stopped", "stopped"),
        (State.FAILED, "running", "failed"),
    ],
)
def test_rest_sees_the_words_of_the_specification(state: State, desired: Any, status: str) -> None:
    assert some_instance(state=state, desired=desired).view().status == status


@pytest.mark.parametrize("state", list(State))
def test_while_its_runtime_is_lost_what_has_or_gets_an_engine_is_unknown(state: State) -> None:
    instance = some_instance(state=state, lost="the Docker daemon is away", reason="as it was")
    is_still = state in (State.SLEEPING, State.STOPPED, State.FAILED)
    assert (instance.view().status == "unknown") is not is_still
    assert instance.view().reason == ("as it was" if is_still else "the Docker daemon is away")
    assert instance.view().state is state
    instance.handle = Handle("i0", 7, 123, 456, Address("127.0.0.1", 18000))
    assert instance.view().status == "unknown"


def test_a_record_of_an_earlier_version_can_be_read() -> None:
    document = full().document()
    for new in ("engine_digest", "memory_estimate"):
        del document[new]
    again = Instance.from_document(document, Path("/log"))
    assert (again.engine_digest, again.memory_estimate) == (None, None)


def full() -> Instance:
    return some_instance(
        preset="fast",
        managed=True,
        overrides={"ctx_size": 4096},
        options={"ctx_size": 4096, "parallel": 2},
        desired="running",
        reason="ready",
        generation=7,
        engine="llama-server",
        engine_digest="sha256:abc",
        memory_estimate=12345,
        config_hash="abc",
        handle=Handle("i0", 7, 123, 456, Address("127.0.0.1", 18000)),
        internal_port=18000,
        api_key=b"the-secret",
        slots=2,
        active=1,
        queued=3,
        requests=9,
        crashes=2,
        started=1.5,
        last_exit=Exit(1, None, 5.0),
        last_tokens_per_second=3.0,
    )


def test_what_is_stored_is_json_and_comes_back() -> None:
    instance = full()
    document = json.loads(json.dumps(instance.document()))
    again = Instance.from_document(document, Path("/new/log"))
    assert again.document() == instance.document()
    assert again.handle == instance.handle
    assert again.log_path == Path("/new/log")


def test_what_is_volatile_starts_empty() -> None:
    again = Instance.from_document(full().document(), Path("/log"))
    assert (again.active, again.queued, again.requests, again.slots) == (0, 0, 0, None)
    assert (again.client, again.last_exit, again.last_tokens_per_second) == (None, None, None)


def test_an_instance_without_a_process_comes_back_too() -> None:
    document = json.loads(json.dumps(some_instance(state=State.SLEEPING).document()))
    assert Instance.from_document(document, Path("/log")).handle is None


def test_no_secret_is_stored_or_shown() -> None:
    instance = full()
    for text in (json.dumps(instance.document()), repr(instance), repr(instance.view())):
        assert "the-secret" not in text


def test_a_snapshot_does_not_change() -> None:
    instance = full()
    view = instance.view()
    instance.state, instance.active = State.STOPPED, 0
    assert (view.state, view.active, view.pid) == (State.READY, 1, 123)
    assert view.address == Address("127.0.0.1", 18000)
