"""A full queue and a full house, in the exceptions that each client's users catch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Any

import anthropic
import ollama
import openai
import pytest
from samples import HELLO
from scripted_model import write_scripted_model

from llamaman.testing import write_slow_model
from llamaman.testing.engines import available_engines
from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager

pytestmark = pytest.mark.real("engine")


@pytest.fixture(scope="module")
def small_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """A manager for one model at a time; ``slow`` serves one request and lets one wait."""
    engine = next((each for each in available_engines() if not each.missing), None)
    if engine is None:
        pytest.skip("no engine: install xllamacpp, or set LLAMA_SERVER_BIN")
    folder = tmp_path_factory.mktemp("small")
    with Manager(folder, binary=engine.binary, env={"LLAMAMAN_MAX_MODELS": "1"}) as manager:
        write_scripted_model(manager.models / "words.gguf")
        write_slow_model(manager.models / "slow.gguf")
        manager.manage("POST", "/api/models/rescan")
        manager.preset("words")
        manager.launch("slow", max_concurrent=1, max_queue_depth=1, **ENDLESS)
        yield manager
        manager.terminate()


@contextmanager
def busy(manager: Manager, requests: int) -> Iterator[None]:
    """That many requests are with ``slow``, the first of them computing."""
    with ExitStack() as stack:
        for number in range(1, requests + 1):
            stack.enter_context(manager.ask("slow", stream=True, max_tokens=FOR_EVER))
            manager.until(
                lambda number=number: sum(_counts(manager)) == number, f"request {number} to be counted"
            )
        yield
    manager.until(lambda: sum(_counts(manager)) == 0, "all of them to be gone")


def _counts(manager: Manager) -> tuple[int, int]:
    (slow,) = manager.instances()
    return slow["queue"]["active"], slow["queue"]["queued"]


def openai_client(site: Manager) -> openai.OpenAI:
    url = f"http://127.0.0.1:{site.proxy_port}/v1"
    return openai.OpenAI(base_url=url, api_key=site.inference_key, max_retries=0)


def anthropic_client(site: Manager) -> anthropic.Anthropic:
    url = f"http://127.0.0.1:{site.proxy_port}"
    return anthropic.Anthropic(base_url=url, api_key=site.inference_key, max_retries=0)


def ollama_client(site: Manager) -> ollama.Client:
    headers = {"Authorization": f"Bearer {site.inference_key}"}
    return ollama.Client(host=f"http://127.0.0.1:{site.proxy_port}", headers=headers)


def test_a_full_queue_is_a_rate_limit_with_a_time_to_come_back(small_site: Manager) -> None:
    with busy(small_site, requests=2):
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError, match="queue") as limited:
                openai_client(small_site).chat.completions.create(model="slow", messages=HELLO, stream=stream)
            assert int(limited.value.response.headers["retry-after"]) >= 1
            with pytest.raises(anthropic.RateLimitError, match="queue") as overrun:
                anthropic_client(small_site).messages.create(
                    model="slow", max_tokens=8, messages=HELLO, stream=stream
                )
            assert overrun.value.type == "rate_limit_error"
            with pytest.raises(ollama.ResponseError, match="queue") as refused:
                list(ollama_client(small_site).chat("slow", HELLO, stream=stream))
            assert refused.value.status_code == 429


def test_a_full_house_is_unavailable_and_says_which_limit(small_site: Manager) -> None:
    limit = r"model limit reached \(LLAMAMAN_MAX_MODELS=1\)"
    with pytest.raises(openai.InternalServerError, match=f"{limit}; the OpenAI API does not evict") as full:
        openai_client(small_site).chat.completions.create(model="words", messages=HELLO)
    assert full.value.status_code == 503
    with pytest.raises(anthropic.InternalServerError, match=limit) as overloaded:
        anthropic_client(small_site).messages.create(model="words", max_tokens=8, messages=HELLO)
    assert overloaded.value.status_code == 503
    assert overloaded.value.type == "overloaded_error"
    with pytest.raises(ollama.ResponseError, match=f"{limit}; admin-launched models") as refused:
        ollama_client(small_site).chat("words", HELLO)
    assert refused.value.status_code == 503


def test_the_sdks_own_retries_get_through_once_there_is_room(small_site: Manager) -> None:
    refused = Event()

    def heard(response: Any) -> None:
        if response.status_code == 429:
            refused.set()

    with (
        openai.DefaultHttpxClient(event_hooks={"response": [heard]}) as http,
        openai_client(small_site).with_options(max_retries=5, http_client=http) as patient,
        ThreadPoolExecutor(1) as pool,
    ):
        with busy(small_site, requests=2):
            answer = pool.submit(patient.chat.completions.create, model="slow", messages=HELLO, max_tokens=4)
            assert refused.wait(60)
        assert answer.result(60).choices[0].finish_reason == "length"
