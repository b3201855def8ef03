"""How many requests run, how many wait, and what is laid over them on the way."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from llamaman.testing import write_tiny_model
from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import Request, call


def queue(manager: Manager, instance_id: str) -> tuple[int, int]:
    seen = manager.instance(instance_id)["queue"]
    return seen["active"], seen["queued"]


def begun(requests: Iterable[Request]) -> list[Request]:
    """Those for which something was generated."""
    return [request for request in requests if request.has_begun()]


@pytest.fixture
def endless(manager: Manager) -> Iterator[Callable[[int], list[Request]]]:
    """Sends streams to ``slow`` that end when they are left, at the latest with the test."""
    with contextlib.ExitStack() as stack:

        def send(count: int) -> list[Request]:
            asked = (manager.ask("slow", stream=True, max_tokens=FOR_EVER) for _ in range(count))
            return [stack.enter_context(request) for request in asked]

        yield send


def test_never_more_than_max_concurrent_run_and_the_rest_wait(
    manager: Manager, slow: Callable[[Manager], str], endless: Callable[[int], list[Request]]
) -> None:
    instance = manager.launch(slow(manager), parallel=4, max_concurrent=2, **ENDLESS)
    requests = endless(6)
    for waiting in (4, 3, 2, 1, 0):
        manager.until(lambda n=waiting: queue(manager, instance["id"]) == (2, n), f"two and {waiting}")  # type: ignore[misc] # a default binds the number
        manager.until(lambda: manager.busy_slots(instance["id"]) == 2, "the engine to have two")
        for _ in range(5):
            assert manager.busy_slots(instance["id"]) == 2, "the engine itself sees no more"
        assert queue(manager, instance["id"]) == (2, waiting)
        first = manager.until(lambda: begun(requests), "one to have begun")[0]
        first.disconnect()
        requests.remove(first)
    requests.pop().disconnect()
    manager.until(lambda: queue(manager, instance["id"]) == (0, 0), "nobody to be left")


def test_without_a_limit_of_its_own_an_instance_takes_as_many_as_it_has_slots(
    manager: Manager, slow: Callable[[Manager], str], endless: Callable[[int], list[Request]]
) -> None:
    instance = manager.launch(slow(manager), parallel=2, **ENDLESS)
    requests = endless(3)
    manager.until(lambda: queue(manager, instance["id"]) == (2, 1), "two running and one waiting")
    running = manager.until(lambda: begun(requests)[1:] and begun(requests), "both to have begun")
    assert len(running) == 2
    running[0].disconnect()
    manager.until(lambda: all(each.has_begun() for each in requests if each is not running[0]), "the third")


def test_a_full_queue_is_429_in_every_form_and_costs_nobody_else(
    manager: Manager, slow: Callable[[Manager], str]
) -> None:
    instance = manager.launch(slow(manager), max_queue_depth=2, **ENDLESS)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as running:
        next(running.events())
        waiting = [manager.ask("slow", max_tokens=2) for _ in range(2)]
        manager.until(lambda: queue(manager, instance["id"]) == (1, 2), "a full queue")
        for port in (manager.proxy_port, instance["port"]):
            for stream in (False, True):
                refused = manager.chat("slow", port=port, stream=stream)
                assert refused.status == 429, refused.text
                assert refused.error == "request queue full"
                assert refused.json()["error"]["type"] == "rate_limit_error"
                assert int(refused.headers["retry-after"]) >= 1
    assert [request.answer().status for request in waiting] == [200, 200]


def test_where_nobody_may_wait_a_second_request_is_429_at_once(
    manager: Manager, slow: Callable[[Manager], str]
) -> None:
    manager.launch(slow(manager), max_concurrent=1, max_queue_depth=0, **ENDLESS)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as running:
        next(running.events())
        for path in ("/api/chat", "/v1/messages", "/v1/chat/completions", "/chat/completions"):
            body = {"model": "slow", "max_tokens": 2, **TALK}
            refused = call(manager.proxy_port, "POST", path, key=manager.inference_key, body=body)
            assert (refused.status, refused.error) == (429, "request queue full"), path
            assert int(refused.headers["retry-after"]) >= 1
        next(running.events())


def test_a_limit_that_changes_meanwhile_lets_more_run_and_sends_no_waiter_away(
    manager: Manager, slow: Callable[[Manager], str], endless: Callable[[int], list[Request]]
) -> None:
    name = slow(manager)
    limits = {"parallel": 3, **ENDLESS}
    instance = manager.launch(name, max_concurrent=1, **limits)
    requests = endless(4)
    manager.until(lambda: queue(manager, instance["id"]) == (1, 3), "one running")
    manager.preset(name, max_concurrent=3, max_queue_depth=1, **limits)
    manager.until(lambda: queue(manager, instance["id"]) == (3, 1), "three running")
    manager.preset(name, max_concurrent=2, max_queue_depth=0, **limits)
    manager.until(lambda: manager.instance(instance["id"])["config"]["max_concurrent"] == 2, "the preset")
    assert queue(manager, instance["id"]) == (3, 1), "the last one goes on waiting"
    running = manager.until(lambda: begun(requests)[2:] and begun(requests), "three to have begun")
    (last,) = (each for each in requests if each not in running)
    running[0].disconnect()
    manager.until(lambda: queue(manager, instance["id"]) == (2, 1), "two running")
    running[1].disconnect()
    manager.until(last.has_begun, "the one that waited")
    assert [each.begun.status for each in (running[2], last)] == [200] * 2


def test_the_queue_is_first_come_first_served(manager: Manager, slow: Callable[[Manager], str]) -> None:
    instance = manager.launch(slow(manager), **ENDLESS)
    with contextlib.ExitStack() as stack:
        requests: list[Request] = []
        for number in range(6):
            requests.append(stack.enter_context(manager.ask("slow", stream=True, max_tokens=FOR_EVER)))
            manager.until(lambda n=number: queue(manager, instance["id"]) == (1, n), "its place")  # type: ignore[misc] # a default binds the number
        for number, request in enumerate(requests):
            manager.until(lambda n=number: begun(requests[n:]), "the next one's turn")  # type: ignore[misc] # a default binds the number
            assert begun([request]), number
            assert not begun(requests[number + 1 :]), number
            request.disconnect()


def test_sampling_overrides_reach_the_engine(manager: Manager) -> None:
    forced = {
        "proxy_sampling_override_enabled": True,
        "proxy_sampling_temperature": 0.25,
        "proxy_sampling_top_k": 7,
        "proxy_sampling_top_p": 0.5,
        "proxy_sampling_presence_penalty": 0.75,
        "proxy_sampling_repeat_penalty": 1.5,
    }
    instance = manager.launch("tiny", **forced)
    client = {"temperature": 1.75, "top_k": 99, "top_p": 0.9, "seed": 5}
    for port in (manager.proxy_port, instance["port"]):
        assert manager.chat("tiny", port=port, **client).status == 200
        (slot,) = manager.slots(instance["id"])
        used = slot["params"]
        assert round(used["temperature"], 3) == 0.25
        assert used["top_k"] == 7
        assert round(used["top_p"], 3) == 0.5
        assert round(used["presence_penalty"], 3) == 0.75
        assert round(used["repeat_penalty"], 3) == 1.5
        assert used["seed"] == 5, "what is not forced stays the client's"


TALK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
SHORT: dict[str, Any] = {"max_tokens": 2, "n_predict": 2, "max_output_tokens": 2}
CLIENTS: dict[str, Any] = {
    "temperature": 1.75,
    "top_k": 99,
    "top_p": 0.9,
    "presence_penalty": -1,
    "repeat_penalty": 1.25,
}
#: Every way to have text generated that is not one of llama-server's own endpoints, and its infill.
GENERATING: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/api/chat", TALK),
    ("/api/generate", {"prompt": "hi"}),
    ("/api/generate", {"prompt": "hi", "raw": True}),
    ("/api/generate", {"prompt": "hi", "context": [100, 101]}),
    ("/api/generate", {"prompt": "hi", "suffix": "ho"}),
    ("/v1/messages", TALK),
    ("/v1/chat/completions", TALK),
    ("/v1/completions", {"prompt": "hi"}),
    ("/v1/responses", {"input": "hi"}),
    ("/infill", {"input_prefix": "hi", "input_suffix": "ho", "prompt": ""}),
    ("/upstream/fills/v1/messages", TALK),
    ("/upstream/fills/infill", {"input_prefix": "hi", "input_suffix": "ho", "prompt": ""}),
)


def test_a_preset_saved_meanwhile_overrides_sampling_in_every_api(manager: Manager) -> None:
    numbers = {f"tokenizer.ggml.fim_{part}_token_id": 100 + n for n, part in enumerate(("pre", "suf", "mid"))}
    write_tiny_model(manager.models / "fills.gguf", metadata=numbers)
    manager.manage("POST", "/api/models/rescan")
    instance = manager.launch("fills", proxy_sampling_override_enabled=False)
    forced = {"temperature": 0.25, "top_k": 7, "top_p": 0.5, "presence_penalty": 0.75}
    saved = {f"proxy_sampling_{name}": value for name, value in forced.items()}
    manager.preset("fills", proxy_sampling_override_enabled=True, proxy_sampling_repeat_penalty=0, **saved)
    name = "proxy_sampling_override_enabled"
    manager.until(lambda: manager.instance(instance["id"])["config"][name], "the preset to arrive")
    for path, body in GENERATING:
        for port in (manager.proxy_port, instance["port"]):
            if port == instance["port"] and path.startswith("/upstream"):
                continue
            for stream in (False, True):
                asked = {"model": "fills", "stream": stream, **body, **SHORT, **CLIENTS}
                if path.startswith("/api/"):
                    asked["options"] = {"num_predict": 2, **CLIENTS}
                answer = call(port, "POST", path, key=manager.inference_key, body=asked)
                assert answer.status == 200, f"{path}: {answer.text}"
                (slot,) = manager.slots(instance["id"])
                used = {name: round(slot["params"][name], 3) for name in forced}
                assert used == forced, f"{path} {body} on {port}"
                if "messages" not in path:  # Anthropic's has no such field
                    assert round(slot["params"]["repeat_penalty"], 3) == 1.25, "0 forces nothing"


def test_without_overrides_the_clients_values_reach_the_engine(manager: Manager) -> None:
    instance = manager.launch("tiny", proxy_sampling_temperature=0.25)
    assert manager.chat("tiny", temperature=1.75, top_k=99).status == 200
    (slot,) = manager.slots(instance["id"])
    assert round(slot["params"]["temperature"], 3) == 1.75
    assert slot["params"]["top_k"] == 99


def test_several_choices_take_as_many_slots_or_are_refused(manager: Manager) -> None:
    manager.launch("tiny", parallel=2)
    answer = manager.chat("tiny", n=2)
    assert answer.status == 200, answer.text
    assert len(answer.json()["choices"]) == 2
    refused = manager.chat("tiny", n=3)
    assert refused.status == 400
    assert "2" in refused.error


def test_two_instances_of_a_model_share_its_requests(
    manager: Manager, slow: Callable[[Manager], str], endless: Callable[[int], list[Request]]
) -> None:
    slow(manager)
    both = [manager.launch("slow", **ENDLESS), manager.launch("slow", **ENDLESS)]
    running = endless(2)
    manager.until(
        lambda: [each["queue"]["active"] for each in manager.instances()] == [1, 1], "one running on each"
    )
    waiting = [manager.ask("slow", max_tokens=2) for _ in range(2)]
    for each in running:
        each.disconnect()
    assert [each.answer().status for each in waiting] == [200] * 2
    served = [manager.instance(instance["id"])["stats"]["total_requests"] for instance in both]
    assert sum(served) == 4
    assert min(served) >= 1


def test_unicode_and_large_prompts_pass_unharmed(manager: Manager) -> None:
    manager.launch("tiny", ctx_size=16384)
    text = 'Lämä 🦙 \u0000\\ " ' * 200
    answer = manager.chat("tiny", prompt=text, max_tokens=2)
    assert answer.status == 200, answer.text
    assert json.loads(answer.body)["usage"]["prompt_tokens"] > len(text)
