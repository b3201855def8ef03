"""Requests made to end an engine: refused at the door, and what happens when one gets through."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llamaman.testing.manager import CHAT, ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import Answer, Request, call

#: What takes no JSON for an engine: uploads, and what is answered without one, for ollama.com and for its models.
OTHERS = (
    *("/audio/transcriptions", "/me", "/signout", "/web_fetch", "/web_search"),
    *("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/blobs/{digest}"),
)


def bodies(path: str) -> Iterator[tuple[str, bytes]]:
    """The three bodies that end llama-server, as (the field, the body), for any route with a JSON body."""
    schema = b'{"type":"array","items":' * 20_000 + b"{}" + b"}" * 20_000
    grammar = b'"root ::= ' + b"(" * 50_000 + b'\\"a\\"' + b")" * 50_000 + b'"'
    yield "messages", b'{"model":"tiny","prompt":"a","messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    yield "grammar", b'{"model":"tiny","prompt":"a","grammar":' + grammar + b"}"
    field = b"format" if path.startswith("/api/") else b"json_schema"
    yield field.decode(), b'{"model":"tiny","prompt":"a","%b":%b}' % (field, schema)
    if path.startswith("/api/"):
        yield "options.grammar", b'{"model":"tiny","prompt":"a","options":{"grammar":%b}}' % grammar


def inference(manager: Manager, surface: str) -> list[str]:
    """Every path that takes a JSON body for a model on that surface."""
    found = {
        route["path"].replace("{model}", "tiny")
        for route in manager.manage("GET", "/api/routes")
        if route["method"] == "POST" and route["level"] == "inference" and route["surface"] == surface
    }
    return sorted(path for path in found if not path.endswith(OTHERS))


def send(manager: Manager, port: int, path: str, body: object) -> Answer:
    return call(port, "POST", path, key=manager.inference_key, body=body)


@pytest.mark.parametrize("surface", ["proxy", "instance"])
def test_the_bodies_that_end_an_engine_are_refused_on_every_route_and_nobody_notices(
    plain_manager: Manager, slow: Callable[[Manager], str], surface: str
) -> None:
    manager = plain_manager
    instance = manager.launch(slow(manager), **ENDLESS)
    tiny = manager.launch("tiny")
    port = manager.proxy_port if surface == "proxy" else tiny["port"]
    paths = inference(manager, surface)
    assert {CHAT, "/v1/completions", "/v1/embeddings"} <= set(paths)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as stream:
        events = stream.events()
        next(events)
        for path in paths:
            for field, body in bodies(path):
                answer = send(manager, port, path, body)
                assert answer.status == 400, (
                    f"{path} with a deep {field}: {answer.status} {answer.text[:200]}"
                )
                assert field in answer.text, f"{path}: {answer.text[:200]}"
        next(events)  # it streams on
        for each in (instance, tiny):
            seen = manager.instance(each["id"])
            assert (seen["status"], seen["pid"]) == ("healthy", each["pid"])
            assert seen["stats"]["crash_count"] == 0
    assert manager.chat("tiny", max_tokens=2).status == 200


# --- engines that crash nevertheless ----------------------------------------------------------------------


def crashes(manager: Manager) -> dict[str, int]:
    return {each["id"]: each["stats"]["crash_count"] for each in manager.instances()}


def poison(manager: Manager, key: str, text: str = "a poison", **fields: Any) -> Answer:
    return manager.chat("tiny", key=key, prompt=text, **fields)


def code(answer: Answer) -> str:
    return str(answer.json()["error"]["code"])


def test_a_request_that_ends_an_engine_ends_no_second_one_and_its_body_is_refused(
    tempered: Callable[..., Manager],
) -> None:
    manager = tempered("crash_on_word")
    for _ in range(2):
        manager.launch("tiny", restart_policy="never")
    sender, other = manager.key("inference"), manager.key("inference")
    answer = poison(manager, sender.secret)
    assert (answer.status, code(answer)) == (503, "engine_died"), answer.text
    for key in (sender, other):
        again = poison(manager, key.secret)
        assert (again.status, code(again)) == (422, "crashing_request"), again.text
    manager.until(lambda: sorted(crashes(manager).values()) == [0, 1], "one crash, and no second one")
    for key in (sender, other):
        assert manager.chat("tiny", key=key.secret).status == 200
    entry = manager.until(
        lambda: manager.manage("GET", "/api/audit?action=engine.crashed")["entries"], "the audit log"
    )[0]
    assert (entry["object"], entry["changes"]["key_id"]) == ("tiny", sender.id)
    assert "poison" not in json.dumps(entry)
    assert "poison" not in json.dumps(manager.manage("GET", "/api/events?topic=instances"))


def test_the_model_does_not_answer_for_what_a_key_has_sent(tempered: Callable[..., Manager]) -> None:
    manager = tempered("crash_on_word")
    manager.preset("tiny", restart_policy="never")
    sender, other = manager.key("inference"), manager.key("inference")
    answer = poison(manager, sender.secret)
    assert answer.status == 503, answer.text
    manager.until(lambda: sum(crashes(manager).values()) == 1, "the crash")
    served = manager.chat("tiny", key=other.secret)
    assert served.status == 200, f"the breaker is closed: {served.text}"


def test_without_a_key_the_model_answers_as_for_every_death(tempered: Callable[..., Manager]) -> None:
    manager = tempered("crash_on_word")
    manager.setting(require_auth=False)
    manager.preset("tiny", restart_policy="never")
    assert poison(manager, "").status == 503
    refused = manager.chat("tiny", key="")
    assert (refused.status, "retry-after" in refused.headers) == (503, True), refused.text


def test_a_key_under_which_three_engines_crash_has_to_wait_and_nobody_else(
    tempered: Callable[..., Manager],
) -> None:
    manager = tempered("crash_on_word")
    for _ in range(3):
        manager.launch("tiny")
    sender, other = manager.key("inference"), manager.key("inference")
    for number in range(3):
        answer = poison(manager, sender.secret, f"poison {number}")
        assert (answer.status, code(answer)) == (503, "engine_died"), answer.text
    waits = manager.chat("tiny", key=sender.secret)
    assert (waits.status, code(waits)) == (429, "too_many_requests"), waits.text
    assert 500 < int(waits.headers["retry-after"]) <= 600
    assert manager.http("GET", "/v1/models", key=sender.secret).status == 200, (
        "only requests for models count"
    )
    served = manager.chat("tiny", key=other.secret)
    assert served.status == 200, served.text


def test_of_several_requests_in_a_crashed_engine_none_is_punished_and_none_sent_again(
    tempered: Callable[..., Manager],
) -> None:
    manager = tempered("crash_on_word", slots=2, chunk_ms=10, after_ms=100)
    instance = manager.launch("tiny", parallel=2)
    other = manager.launch("tiny", parallel=2)
    sender = manager.key("inference")
    with manager.ask("tiny", stream=True, max_tokens=FOR_EVER, port=instance["port"]) as stream:
        events = stream.events()
        next(events)
        answer = poison(manager, sender.secret, port=instance["port"])
        assert (answer.status, code(answer)) == (503, "engine_died"), answer.text
        *_, last = events
        assert json.loads(last)["error"]["code"] == "engine_died"
    assert crashes(manager)[other["id"]] == 0
    again = poison(manager, sender.secret, port=other["port"])
    assert (again.status, code(again)) == (503, "engine_died"), "it was not known for the cause; now it is"
    assert poison(manager, sender.secret, port=other["port"]).status == 422


def test_whoever_leaves_before_the_engine_crashes_is_known_for_it_all_the_same(
    tempered: Callable[..., Manager],
) -> None:
    manager = tempered("crash_on_word", after_ms=300)
    instance = manager.launch("tiny")
    sender = manager.key("inference")
    request: Request = manager.ask("tiny", key=sender.secret, prompt="a poison")
    manager.until(lambda: manager.instance(instance["id"])["queue"]["active"] == 1, "the request")
    request.disconnect()
    manager.until(lambda: crashes(manager)[instance["id"]] == 1, "the crash")
    assert poison(manager, sender.secret).status == 422
