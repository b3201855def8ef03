"""The event bus: typed, redacted, replayable, and isolated from its subscribers."""

from __future__ import annotations

import json
import threading

import pytest

from llamaman.core.events import Event, Events

KEY = "llm-" + "A1b2C3d4" * 6


def publish(events: Events, number: int = 0, topic: str = "instances") -> Event:
    return events.publish(topic, "state", {"n": number}, actor="local:root", reason="asked to")


def test_an_event_carries_what_why_and_by_whom() -> None:
    event = publish(Events(clock=lambda: 5.0))
    assert (event.topic, event.kind, event.at, event.actor, event.reason) == (
        "instances", "state", 5.0, "local:root", "asked to",
    )  # fmt: skip
    assert json.loads(json.dumps(event.as_dict()))["data"] == {"n": 0}


def test_every_text_passes_the_redactor() -> None:
    event = Events().publish("x", "y", {"log": [f"Bearer {KEY}"]}, actor=f"key:{KEY}", reason=f"?k={KEY}")
    assert KEY not in json.dumps(event.as_dict())


def test_published_data_cannot_be_changed_afterwards() -> None:
    events = Events()
    given = {"n": [1]}
    event = events.publish("x", "y", given, actor="", reason="")
    given["n"].append(2)
    assert event.data["n"] == [1]
    with pytest.raises(TypeError):
        event.data["n"] = 3  # type: ignore[index] # that it is refused is the point


def test_ids_grow_over_topics_and_over_a_restart() -> None:
    now = 1000.0
    before = Events(clock=lambda: now)
    ids = [publish(before, topic=topic).id for topic in ("a", "b", "a")]
    assert ids == sorted(set(ids))
    after = Events(clock=lambda: now + 1)
    assert publish(after).id > ids[-1]


def test_since_replays_what_came_after() -> None:
    events = Events()
    made = [publish(events, number) for number in range(5)]
    publish(events, topic="other")
    assert events.since("instances", 0) == tuple(made)
    assert events.since("instances", made[2].id) == tuple(made[3:])
    assert events.since("instances", made[4].id) == ()
    assert events.since("unknown", 0) == ()


def test_the_ring_is_bounded_and_says_when_it_lost_something() -> None:
    events = Events(ring=3)
    made = [publish(events, number) for number in range(3)]
    made += [publish(events, number) for number in range(3, 6)]
    assert [event.data["n"] for event in events.since("instances", 0)] == [3, 4, 5]
    assert not events.replay(lambda topic: True, made[0].id)[1]
    assert events.replay(lambda topic: True, made[2].id)[1]


def test_subscribers_get_their_topic_until_they_leave() -> None:
    events = Events()
    mine: list[Event] = []
    everything: list[Event] = []
    leave = events.subscribe("a", mine.append)
    events.subscribe(None, everything.append)
    publish(events, topic="a")
    publish(events, topic="b")
    leave()
    leave()
    publish(events, topic="a")
    assert [event.topic for event in mine] == ["a"]
    assert [event.topic for event in everything] == ["a", "b", "a"]


def test_the_same_callback_subscribed_twice_leaves_once_at_a_time() -> None:
    events = Events()
    got: list[Event] = []
    leave = events.subscribe("a", got.append)
    events.subscribe("a", got.append)
    leave()
    publish(events, topic="a")
    assert len(got) == 1


def test_a_failing_subscriber_disturbs_nobody_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    got: list[Event] = []

    def fail(_event: Event) -> None:
        raise RuntimeError("mine")

    events.subscribe(None, fail)
    events.subscribe(None, got.append)
    publish(events)
    assert len(got) == 1
    assert events.failed_callbacks == 1
    assert "mine" in caplog.text


def test_a_subscriber_may_publish() -> None:
    events = Events()
    events.subscribe("a", lambda _event: publish(events, topic="b") and None)
    publish(events, topic="a")
    assert len(events.since("b", 0)) == 1


def test_many_publishers_lose_nothing() -> None:
    events = Events(ring=10_000)
    seen: list[Event] = []
    events.subscribe(None, seen.append)
    threads = [
        threading.Thread(target=lambda: [publish(events, number) for number in range(200)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = events.since("instances", 0)
    assert len(kept) == len(seen) == 1600
    assert [event.id for event in kept] == sorted({event.id for event in seen})


def test_a_forgotten_topic_is_empty() -> None:
    events = Events()
    publish(events)
    events.forget("instances")
    assert events.since("instances", 0) == ()


def any_topic(_: str) -> bool:
    return True


def test_a_replay_has_all_wanted_topics_in_order_and_says_that_it_is_whole() -> None:
    events = Events()
    made = [publish(events, topic=topic) for topic in ("a", "b", "secret", "a")]
    assert events.replay(any_topic, made[0].id - 1) == (made, True)
    assert events.replay(lambda topic: topic != "secret", made[0].id) == ([made[1], made[3]], True)
    assert events.replay(any_topic, events.last_id) == ([], True)


def test_a_replay_is_not_whole_when_the_ring_has_lost_some_or_another_run_gave_the_id() -> None:
    events = Events(ring=3)
    made = [publish(events, number) for number in range(5)]
    assert events.replay(any_topic, made[0].id) == (made[2:], False)
    assert events.replay(any_topic, made[1].id) == (made[2:], True)
    assert events.replay(lambda topic: topic == "other", made[0].id) == ([], True)
    assert not events.replay(any_topic, made[0].id - 1000)[1]
    assert not events.replay(any_topic, events.last_id + 1000)[1]
