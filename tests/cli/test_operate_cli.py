"""What ``why``, ``requests``, ``events``, ``audit`` and ``settings describe`` make of the manager's answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from management_door import Manager
from prepared_answers import StandIn, stand_in

from llamaman.cli.audit import point_in_time

Run = Callable[..., Any]
HOSTILE = "\x1b[2J\u202e"


@pytest.fixture
def answering(environment: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in() as state:
        environment.setenv("LLAMAMAN_URL", state.url)
        environment.setenv("LLAMAMAN_API_KEY", "llm-" + "k" * 40)
        yield state


def event(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "topic": "instances",
        "kind": "state",
        "at": time.time() - 90,
        "actor": "session:ada",
        "reason": f"reason {number}",
        "data": {"instance_id": "abcd1234", "state": "healthy"},
        **more,
    }


def entry(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "at": 2_000_000_000.0 + number,
        "actor": "session:ada",
        "address": "10.0.0.7",
        "action": "user.change",
        "object": "eve",
        "changes": {"role": {"old": "viewer", "new": "admin"}},
        "outcome": "ok",
        "detail": "",
        **more,
    }


# --- why -----------------------------------------------------------------------------------------------


def test_why_says_the_sentence_first_then_the_facts_then_what_happened(
    answering: StandIn, llamaman: Run
) -> None:
    answering.answers["GET /api/why"] = {
        "target": "tiny",
        "kind": "model",
        "answer": f"tiny sleeps because nobody asked for 10 minutes{HOSTILE}",
        "state": "sleeping",
        "reason": "idle",
        "actor": "system",
        "since": time.time() - 7200,
        "instances": [{"id": "abcd1234ef", "state": "sleeping", "reason": "idle", "active": 0, "queued": 3}],
        "events": [event(number) for number in range(20, 0, -1)],
        "breaker": {"seconds": 8.5, "reason": "it died"},
        "detail": {"log_file": "/logs/x.log", "log_lines": [f"last words{HOSTILE}"]},
    }
    outcome = llamaman("why", "tiny")
    assert answering.asked[-1][:2] == ("GET /api/why", {"target": "tiny"})
    lines = outcome.out.splitlines()
    assert lines[0].startswith("tiny sleeps because")
    assert "\x1b" not in outcome.out
    assert "\u202e" not in outcome.out
    assert "2h ago" in outcome.out
    assert "breaker seconds" in outcome.out
    assert "last words" in outcome.out
    assert "abcd1234" in outcome.out
    assert "reason 20" in outcome.out
    assert "reason 1\n" not in outcome.out
    assert llamaman("why", "tiny", "--json").json["state"] == "sleeping"


def test_why_without_instances_events_or_breaker_is_no_error(answering: StandIn, llamaman: Run) -> None:
    answering.answers["GET /api/why"] = {
        "target": "tiny", "kind": "model", "answer": "nobody launched tiny", "state": None, "reason": None,
        "actor": None, "since": None, "instances": [], "events": [], "breaker": None, "detail": None,
    }  # fmt: skip
    outcome = llamaman("why", "tiny")
    assert outcome.status == 0
    assert outcome.out.splitlines()[0] == "nobody launched tiny"


# --- requests ------------------------------------------------------------------------------------------


def test_requests_are_listed_with_unknown_figures_as_unknown_and_can_be_cancelled(
    answering: StandIn, llamaman: Run
) -> None:
    answering.answers["GET /api/requests"] = [
        {
            "id": "r1", "surface": "proxy", "dialect": "openai", "path": "/v1/chat/completions", "model": "tiny",
            "instance_id": None, "actor": "key:ci", "key_id": "k", "session": None, "address": "10.0.0.7",
            "stream": True, "phase": "load", "started_at": time.time(), "seconds": 1.25, "prompt_tokens": None,
            "completion_tokens": 0,
        }
    ]  # fmt: skip
    row = llamaman("requests", "list").out.splitlines()[1].split()
    assert row == ["r1", "tiny", "-", "key:ci", "10.0.0.7", "openai", "load", "1.2", "-", "0"]
    assert llamaman("requests", "list", "--json").json[0]["phase"] == "load"
    answering.answers["DELETE /api/requests/r1"] = {"ok": True}
    assert llamaman("requests", "cancel", "r1").status == 0
    assert llamaman("requests", "cancel", "r2").status == 1


# --- events --------------------------------------------------------------------------------------------


def test_events_of_a_topic_are_listed(answering: StandIn, llamaman: Run) -> None:
    answering.answers["GET /api/events"] = [event(1), event(2, data={"model": f"tiny{HOSTILE}"})]
    outcome = llamaman("events", "--topic", "models")
    assert answering.asked[-1][1] == {"topic": "models"}
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["AT", "TOPIC", "EVENT", "ACTOR", "SUBJECT", "REASON"]
    assert lines[1].split()[2:] == ["instances", "state", "session:ada", "abcd1234", "reason", "1"]
    assert "reason 2" in lines[2]
    assert "\x1b" not in outcome.out


def test_events_are_followed_until_the_manager_ends_the_stream(answering: StandIn, llamaman: Run) -> None:
    import json

    frames = "".join(f"id: {number}\ndata: {json.dumps(event(number))}\n\n" for number in (1, 2))
    answering.answers["GET /api/events/stream"] = f": keep\n\nretry: 2000\n\n{frames}".encode()
    outcome = llamaman("events", "-f")
    assert outcome.status == 0
    assert answering.asked[-1][1] == {}
    assert ["reason 1" in line or "reason 2" in line for line in outcome.out.splitlines()] == [True, True]
    llamaman("events", "-f", "--topic", "keys")
    assert answering.asked[-1][1] == {"topic": "keys"}


# --- audit ---------------------------------------------------------------------------------------------


def test_the_audit_log_reads_newest_last_and_says_what_changed(answering: StandIn, llamaman: Run) -> None:
    answering.answers["GET /api/audit"] = {
        "entries": [entry(2, detail=f"because{HOSTILE}"), entry(1, changes={}, outcome="refused")],
        "next": None,
    }
    outcome = llamaman("audit", "--actor", "session:ada", "--action", "user.change", "--outcome", "ok")
    assert answering.asked[-1][1] == {
        "limit": "50", "actor": "session:ada", "action": "user.change", "outcome": "ok",
    }  # fmt: skip
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["AT", "ACTOR", "ADDRESS", "ACTION", "OBJECT", "OUTCOME", "DETAIL"]
    assert "refused" in lines[1]
    assert "role: viewer -> admin because" in lines[2]
    assert "\x1b" not in outcome.out
    assert [item["id"] for item in llamaman("audit", "--json").json] == [1, 2]


def test_more_of_the_audit_log_than_one_answer_holds_is_read_page_by_page(
    answering: StandIn, llamaman: Run
) -> None:
    def page(query: Mapping[str, str]) -> dict[str, Any]:
        newest = int(query.get("before", "1201")) - 1
        oldest = max(newest - int(query["limit"]), 0)
        return {
            "entries": [entry(number) for number in range(newest, oldest, -1)],
            "next": oldest + 1 if oldest else None,
        }

    answering.answers["GET /api/audit"] = page
    found = llamaman("audit", "--limit", "1100", "--json").json
    assert [item["id"] for item in found] == list(range(101, 1201))
    assert len(answering.asked) == 3
    assert len(llamaman("audit", "--limit", "5000", "--json").json) == 1200


def test_since_ends_the_reading_at_its_moment(answering: StandIn, llamaman: Run) -> None:
    answering.answers["GET /api/audit"] = {"entries": [entry(9), entry(5), entry(1)], "next": 1}
    found = llamaman("audit", "--since", "2033-05-18T03:33:25Z", "--json").json  # that is entry 5
    assert [item["id"] for item in found] == [5, 9]
    assert llamaman("audit", "--since", "yesterday").status == 2


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("12h", 43200), ("7d", 604800), ("5s", 5)])
def test_since_takes_an_age(text: str, seconds: int) -> None:
    assert point_in_time(text) == pytest.approx(time.time() - seconds, abs=60)


# --- settings ------------------------------------------------------------------------------------------


def test_settings_are_described_with_type_range_default_source_and_meaning(
    manager: Manager, llamaman: Run
) -> None:
    rows = llamaman("settings", "describe", "--json").json
    assert {"require_auth", "recording_mode", "cleanup.downloads_max_age_hours"} <= {
        row["name"] for row in rows
    }
    assert llamaman("settings", "set", "recording_retention_days", "7").status == 0
    lines = llamaman("settings", "describe", "recording_retention_days").out.splitlines()
    assert len(lines) == 2
    assert lines[1].split()[:6] == ["recording_retention_days", "int", "0..36500", "30", "7", "stored"]
    assert "Days records are kept" in lines[1]
    group = llamaman("settings", "describe", "cleanup").out.splitlines()
    assert len(group) == 10
    assert all("cleanup." in line for line in group[1:])
    assert "off|per_request" in llamaman("settings", "describe", "recording_mode").out
    outcome = llamaman("settings", "describe", "nonsense")
    assert outcome.status == 1
    assert "settings list" in outcome.err


def test_a_refused_setting_is_named(manager: Manager, llamaman: Run) -> None:
    outcome = llamaman("settings", "set", "cleanup.downloads_max_age_hours", "0")
    assert outcome.status == 1
    assert "cleanup.downloads_max_age_hours" in outcome.err
