"""More models than may be loaded: everybody is answered, the limit holds, and models are not swapped for nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamaman.testing import processes
from llamaman.testing.engines import TestEngine
from llamaman.testing.manager import Manager
from llamaman.testing.wire import Request, call

MODELS = tuple(f"model-{letter}" for letter in "abcdefgh")
LIMIT = 2
REQUESTS = 200
CLIENTS = 24
SEED = 7


@pytest.fixture
def crowded(new_manager: Callable[..., Manager], embedded: TestEngine, tiny_model: Path) -> Manager:
    """Eight models, of which two may be loaded."""
    manager = new_manager(
        binary=embedded.binary,
        env={"LLAMAMAN_MAX_MODELS": str(LIMIT)},
        start=False,
        instance_ports=len(MODELS),
    )
    for name in MODELS:
        shutil.copy(tiny_model, manager.models / f"{name}.gguf")
    manager.start()
    # One key asks for all of them, some forty loads in a few seconds: what is tried here is the swapping.
    manager.setting(inference={"cold_starts_per_minute": 0})
    return manager


@contextmanager
def counted(manager: Manager) -> Iterator[list[int]]:
    """How many engines were seen at once while this holds, as often as one can look."""
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.append(len(manager.engines()))
            time.sleep(0.005)

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield seen
        finally:
            over.set()
            looking.result(30)


def fewest_loads(order: Sequence[str], limit: int) -> int:
    """The loads of an oracle that serves the requests in their order and evicts what is needed last (Belady)."""
    loaded: set[str] = set()
    loads = 0
    for index, name in enumerate(order):
        if name in loaded:
            continue
        loads += 1
        if len(loaded) == limit:
            later = list(order[index:])
            loaded.remove(max(loaded, key=lambda each: later.index(each) if each in later else len(later)))
        loaded.add(name)
    return loads


def generate(manager: Manager, model: str) -> tuple[int, str]:
    body = {"model": model, "prompt": "hello", "stream": False, "options": {"num_predict": 2}}
    answer = call(
        manager.proxy_port, "POST", "/api/generate", key=manager.inference_key, body=body, seconds=120
    )
    return answer.status, answer.text


def test_two_hundred_ollama_requests_over_eight_models_of_which_two_may_be_loaded(crowded: Manager) -> None:
    order = random.Random(SEED).choices(MODELS, k=REQUESTS)
    with counted(crowded) as seen, ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda model: generate(crowded, model), order))
    assert [status for status, _ in answers] == [200] * REQUESTS, [a for a in answers if a[0] != 200][:3]
    for model, (_, text) in zip(order, answers, strict=True):
        answer = json.loads(text)
        assert (answer["model"], answer["done"]) == (model, True)
    assert max(seen) <= LIMIT, "engines that stop count, too"
    instances = crowded.instances()
    assert len(instances) == len(MODELS)
    loads = sum(instance["generation"] for instance in instances)
    assert loads <= 2 * fewest_loads(order, LIMIT), loads


def test_one_after_the_other_each_request_swaps_at_most_once(crowded: Manager) -> None:
    order = random.Random(SEED).choices(MODELS[:4], k=12)
    for model in order:
        assert generate(crowded, model)[0] == 200
    loads = sum(instance["generation"] for instance in crowded.instances())
    assert loads <= 2 * fewest_loads(order, LIMIT)


def test_a_stream_is_never_cut_by_the_next_model(crowded: Manager, slow: Callable[[Manager], str]) -> None:
    name = slow(crowded)
    crowded.setting(require_auth=True)
    with ThreadPoolExecutor(8) as clients:
        with crowded.ask(name, stream=True, max_tokens=60) as request:
            events = request.events()
            next(events)
            others = [clients.submit(generate, crowded, model) for model in MODELS[:5]]
            rest = list(events)
        assert rest[-1] == "[DONE]"
        assert [other.result(120)[0] for other in others] == [200] * 5


def test_what_may_not_be_evicted_is_a_503_with_the_figures(crowded: Manager) -> None:
    for name in MODELS[:LIMIT]:
        crowded.launch(name)
    status, text = generate(crowded, MODELS[5])
    assert status == 503
    assert json.loads(text) == {
        "error": "model limit reached (LLAMAMAN_MAX_MODELS=2); "
        "admin-launched models cannot be evicted via the API"
    }
    refused = crowded.chat(MODELS[5])
    assert refused.status == 503
    assert (
        "model limit reached (LLAMAMAN_MAX_MODELS=2); the OpenAI API does not evict running models"
        in refused.text
    )
    assert refused.headers["x-llamaman-reason"].startswith("max_models=2; running=2; launched_by_hand=2")
    why = crowded.manage("GET", f"/api/why?target={MODELS[5]}")
    assert "model limit reached (LLAMAMAN_MAX_MODELS=2)" in why["answer"]


def test_a_key_that_starts_one_model_after_the_other_waits_for_its_turn_or_is_told_when_that_is(
    crowded: Manager, at_once: ThreadPoolExecutor
) -> None:
    crowded.setting(inference={"cold_starts_per_minute": 1})
    assert generate(crowded, MODELS[0])[0] == 200
    waiting = at_once.submit(generate, crowded, MODELS[1])

    def why() -> str:
        return str(crowded.manage("GET", f"/api/why?target={MODELS[1]}")["answer"])

    crowded.until(lambda: "it waits for a turn of its key" in why(), "it to wait for its turn")
    assert generate(crowded, MODELS[0])[0] == 200, "what is loaded is used without limit"
    assert crowded.launch(MODELS[2])["id"], "nor do administrators wait"
    crowded.setting(inference={"cold_starts_per_minute": 2})
    status, text = waiting.result(60)
    assert status == 200, text

    crowded.env["REQUEST_TIMEOUT"] = "5"
    crowded.restart()
    crowded.setting(inference={"cold_starts_per_minute": 1}, allow_ollama_api_override_admin=True)
    assert generate(crowded, MODELS[3])[0] == 200
    told = call(
        crowded.proxy_port,
        "POST",
        "/v1/chat/completions",
        key=crowded.inference_key,
        body={"model": MODELS[4], "messages": [{"role": "user", "content": "hello"}]},
    )
    assert told.status == 429
    assert "this key may start 1 model a minute (setting inference.cold_starts_per_minute)" in told.text
    assert 50 <= int(told.headers["retry-after"]) <= 60
    assert told.headers["x-llamaman-reason"].startswith("cold_starts_per_minute=1; next_turn_s=")


def test_who_waits_for_room_is_told_why_and_answered_in_the_end(
    crowded: Manager, slow: Callable[[Manager], str], at_once: ThreadPoolExecutor
) -> None:
    name, pinned, newcomer = slow(crowded), MODELS[0], MODELS[1]
    crowded.preset(name)
    crowded.setting(allow_ollama_api_override_admin=True)
    kept = crowded.launch(pinned, pinned=True)
    assert generate(crowded, name)[0] == 200
    (running,) = (each for each in crowded.instances() if each["model_name"] == f"{name}.gguf")
    body = {"model": name, "prompt": "hello", "options": {"num_predict": 30}}
    with (
        Request(
            crowded.proxy_port, "POST", "/api/generate", key=crowded.inference_key, body=body, seconds=120
        ) as stream,
        processes.frozen(running["pid"]),  # so that its answer is not done before the newcomer has waited
    ):
        crowded.until(lambda: crowded.instance(running["id"])["queue"]["active"] == 1, "it to run")
        waiting = at_once.submit(generate, crowded, newcomer)

        def why() -> str:
            return str(crowded.manage("GET", f"/api/why?target={newcomer}")["answer"])

        crowded.until(lambda: "waits for room" in why(), "it to wait for room")
        assert f"{name} " in why(), "what has to leave"
        os.kill(running["pid"], signal.SIGCONT)
        *_, last = stream.begun.read().splitlines()
    assert json.loads(last)["eval_count"] == 30, "nothing was cut"
    status, text = waiting.result(120)
    assert status == 200, text
    assert crowded.instance(kept["id"])["generation"] == 1, "pinned"
    (event,) = crowded.manage("GET", "/api/events?topic=admission")
    assert (event["kind"], event["data"]["model"]) == ("waiting", newcomer)
    left = [each for each in crowded.instances() if each["model_name"] == f"{name}.gguf"]
    assert left[0]["reason"] == f"evicted for model '{newcomer}'"


def test_listed_models_are_loaded_at_the_start_as_far_as_there_is_room(crowded: Manager) -> None:
    crowded.setting(preload=[MODELS[3], "nobody", MODELS[1].upper(), MODELS[2]])
    crowded.restart()
    expected = {f"{MODELS[3]}.gguf": "healthy", f"{MODELS[1]}.gguf": "healthy"}
    crowded.until(
        lambda: {each["model_name"]: each["status"] for each in crowded.instances()} == expected, "both"
    )
    crowded.until(lambda: f"'{MODELS[2]}' was not loaded: model limit reached" in crowded.output(), "a word")
    assert "setting preload: 'nobody' was not loaded: model 'nobody' not found" in crowded.output()
