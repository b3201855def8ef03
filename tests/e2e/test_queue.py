"""How many requests run, how many wait, and what is laid over them on the way."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llamaman.testing import write_tiny_model
from llamaman.testing.manager import Manager
from llamaman.testing.wire import Request, call


def queue(manager: Manager, instance_id: str) -> tuple[int, int]:
    seen = manager.instance(instance_id)["queue"]
    return seen["active"], seen["queued"]


def test_never_more_than_max_concurrent_run_and_the_rest_wait(
    manager: Manager, slow: Callable[[Manager], str], at_once: ThreadPoolExecutor
) -> None:
    instance = manager.launch(slow(manager), parallel=4, max_concurrent=2, ctx_size=8192)
    requests = [at_once.submit(manager.chat, "slow", max_tokens=300) for _ in range(6)]
    manager.until(lambda: queue(manager, instance["id"]) == (2, 4), "two running and four waiting")
    most = 0
    while not all(request.done() for request in requests):
        most = max(most, manager.busy_slots(instance["id"]))
        time.sleep(0.02)
    assert most <= 2, "the engine itself saw no more"
    assert [request.result().status for request in requests] == [200] * 6
    assert queue(manager, instance["id"]) == (0, 0)


def test_without_a_limit_of_its_own_an_instance_takes_as_many_as_it_has_slots(
    manager: Manager, slow: Callable[[Manager], str], at_once: ThreadPoolExecutor
) -> None:
    instance = manager.launch(slow(manager), parallel=2, ctx_size=8192)
    requests = [at_once.submit(manager.chat, "slow", max_tokens=500) for _ in range(3)]
    manager.until(lambda: queue(manager, instance["id"]) == (2, 1), "two running and one waiting")
    assert [request.result(60).status for request in requests] == [200] * 3


def test_a_full_queue_is_429_in_every_form_and_costs_nobody_else(
    manager: Manager, slow: Callable[[Manager], str]
) -> None:
    instance = manager.launch(slow(manager), max_queue_depth=2, ctx_size=8192)
    with manager.ask("slow", stream=True, max_tokens=1500) as running:
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
    manager.launch(slow(manager), max_concurrent=1, max_queue_depth=0, ctx_size=8192)
    with manager.ask("slow", stream=True, max_tokens=1500) as running:
        next(running.events())
        for path in ("/api/chat", "/v1/messages", "/v1/chat/completions", "/chat/completions"):
            body = {"model": "slow", "max_tokens": 2, **TALK}
            refused = call(manager.proxy_port, "POST", path, key=manager.inference_key, body=body)
            assert (refused.status, refused.error) == (429, "request queue full"), path
            assert int(refused.headers["retry-after"]) >= 1
        next(running.events())


def test_a_limit_that_changes_meanwhile_lets_more_run_and_sends_no_waiter_away(
    manager: Manager, slow: Callable[[Manager], str], at_once: ThreadPoolExecutor
) -> None:
    name = slow(manager)
    limits = {"parallel": 3, "ctx_size": 8192}
    instance = manager.launch(name, max_concurrent=1, **limits)
    requests = [at_once.submit(manager.chat, name, max_tokens=500) for _ in range(4)]
    manager.until(lambda: queue(manager, instance["id"]) == (1, 3), "one running")
    manager.preset(name, max_concurrent=3, max_queue_depth=1, **limits)
    manager.until(lambda: queue(manager, instance["id"])[0] == 3, "three running")
    manager.preset(name, max_concurrent=2, max_queue_depth=0, **limits)
    assert [request.result(60).status for request in requests] == [200] * 4


def has_begun(request: Request) -> bool:
    """Whether something was generated for it; comments do not count."""
    try:
        return b"data: {" in request.sock.recv(1 << 16, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False


def test_the_queue_is_first_come_first_served(manager: Manager, slow: Callable[[Manager], str]) -> None:
    instance = manager.launch(slow(manager), ctx_size=8192)
    with contextlib.ExitStack() as stack:
        requests: list[Request] = []
        for number in range(6):
            requests.append(stack.enter_context(manager.ask("slow", stream=True, max_tokens=8000)))
            manager.until(lambda n=number: queue(manager, instance["id"]) == (1, n), "its place")  # type: ignore[misc] # a default binds the number
        for number, request in enumerate(requests):
            next(request.events())
            assert not any(has_begun(later) for later in requests[number + 1 :]), number
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
    manager: Manager, slow: Callable[[Manager], str], at_once: ThreadPoolExecutor
) -> None:
    slow(manager)
    both = [manager.launch("slow"), manager.launch("slow")]
    requests = [at_once.submit(manager.chat, "slow", max_tokens=600) for _ in range(4)]
    manager.until(
        lambda: [each["queue"]["active"] for each in manager.instances()] == [1, 1], "one running on each"
    )
    assert [request.result(60).status for request in requests] == [200] * 4
    served = [manager.instance(instance["id"])["stats"]["total_requests"] for instance in both]
    assert sum(served) == 4
    assert min(served) >= 1


def test_unicode_and_large_prompts_pass_unharmed(manager: Manager) -> None:
    manager.launch("tiny", ctx_size=16384)
    text = 'Lämä 🦙 \u0000\\ " ' * 200
    answer = manager.chat("tiny", prompt=text, max_tokens=2)
    assert answer.status == 200, answer.text
    assert json.loads(answer.body)["usage"]["prompt_tokens"] > len(text)
