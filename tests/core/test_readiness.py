"""When an engine is ready: health at growing intervals, a cap, and a stall seen by signs of life."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from llamaman.core import readiness
from llamaman.core.engine_client import EngineUnreachable
from llamaman.core.readiness import Facts, Health, await_ready, probe
from llamaman.records import EngineFacts

PROPS = {"total_slots": 4, "default_generation_settings": {"n_ctx": 8192}}


@dataclass
class Answer:
    """An engine's answer."""

    status: int
    body: bytes

    async def read_all(self, limit: int) -> bytes:
        return self.body


@dataclass
class Client:
    """An engine whose health is the test's; what it cannot answer it raises."""

    health: Callable[[int], Any]
    props: Any = field(default_factory=lambda: Answer(200, json.dumps(PROPS).encode()))
    probes: int = 0
    authorised: bool = False

    async def request(
        self, method: str, target: bytes, headers: Any, body: bytes = b"", *, silence_s: float
    ) -> Answer:
        await asyncio.sleep(0)
        if target == b"/props":
            self.authorised = (b"authorization", b"Bearer key") in tuple(headers)
            answer = self.props
        else:
            self.probes += 1
            answer = self.health(self.probes)
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            answer = 200
        return answer if isinstance(answer, Answer) else Answer(answer, b"{}")

    async def close(self) -> None: ...

    def abort(self) -> None: ...


def health(client: Client, log: Path, *, load_s: float = 20.0, probe_s: float = 1.0) -> Health:
    return Health(client, b"key", log, os.getpid(), load_timeout_s=load_s, health_timeout_s=probe_s)


def ready(client: Client, log: Path, **given: float) -> Facts:
    return asyncio.run(asyncio.wait_for(await_ready(health(client, log, **given)), 20))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "SHORTEST_INTERVAL_S", 0.001)
    monkeypatch.setattr(readiness, "LONGEST_INTERVAL_S", 0.01)


def test_it_is_ready_when_health_says_so_and_tells_slots_and_context(tmp_path: Path) -> None:
    client = Client(lambda number: 200 if number > 5 else 503)
    facts = ready(client, tmp_path / "log")
    assert (facts.slots, facts.context_length) == (4, 8192)
    assert (client.probes, client.authorised) == (6, True)


@pytest.mark.parametrize(
    "trouble", [503, 500, 404, ConnectionRefusedError(), EngineUnreachable("reset"), TimeoutError(), 30.0]
)
def test_whatever_else_it_says_it_is_asked_again(tmp_path: Path, trouble: Any) -> None:
    client = Client(lambda number: 200 if number > 2 else trouble)
    assert ready(client, tmp_path / "log", probe_s=0.05).slots == 4


@pytest.mark.parametrize(
    "props",
    [
        Answer(200, b"no json"),
        Answer(200, b"[]"),
        Answer(200, b"{}"),
        Answer(401, b'{"error":{}}'),
        Answer(200, b'{"total_slots":0,"default_generation_settings":{"n_ctx":-1}}'),
        Answer(200, b'{"total_slots":true,"default_generation_settings":{"n_ctx":"x"}}'),
        Answer(200, b'{"total_slots":null,"default_generation_settings":null}'),
        Answer(200, b'{"default_generation_settings":[1]}'),
        Answer(200, b'{"modalities":[1],"chat_template_caps":null,"media_marker":7}'),
        EngineUnreachable("gone"),
        OSError(),
        TimeoutError(),
    ],
)
def test_what_a_ready_engine_does_not_say_is_unknown(tmp_path: Path, props: Any) -> None:
    facts = ready(Client(lambda _: 200, props), tmp_path / "log")
    assert (facts.slots, facts.context_length) == (None, None)
    assert facts.engine in (None, EngineFacts())


def test_what_the_engine_can_do_is_told(tmp_path: Path) -> None:
    props = (
        b'{"modalities":{"vision":true,"audio":false},"media_marker":"<m>",'
        b'"chat_template_caps":{"supports_tools":true,"supports_x":"?"}}'
    )
    facts = ready(Client(lambda _: 200, Answer(200, props)), tmp_path / "log")
    assert facts.engine == EngineFacts(frozenset({"vision"}), "<m>", {"supports_tools": True})


@pytest.mark.parametrize(
    ("waited_s", "pause_s"), [(0.0, 0.02), (0.5, 0.02), (2.0, 0.04), (10.0, 0.2), (25.0, 0.5), (600.0, 0.5)]
)
def test_readiness_is_noticed_within_a_fiftieth_of_the_wait(
    monkeypatch: pytest.MonkeyPatch, waited_s: float, pause_s: float
) -> None:
    monkeypatch.undo()
    assert readiness.pause_s(waited_s) == pytest.approx(pause_s)


def test_a_load_over_the_cap_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match=r"within 0\.1 s.*MODEL_LOAD_TIMEOUT"):
        ready(Client(lambda _: 503), tmp_path / "log", load_s=0.1)


STUCK = "Check logs via the Logs button. Common causes: OOM, model path typo, corrupt GGUF, image not pulled."
WRONG_PLACE = (
    "The container is healthy but llamaman can't reach it. Deployment mode is auto-detected, but if it's wrong for "
    "your runtime, set LLAMAMAN_IN_DOCKER=false (bare-metal) or true (in Docker) explicitly."
)


@pytest.mark.parametrize("in_container", [True, False])
@pytest.mark.parametrize("answer", [503, 500])
def test_an_engine_that_answers_and_does_not_become_ready_has_the_documented_answer(
    tmp_path: Path, in_container: bool, answer: int
) -> None:
    given = health(Client(lambda _: answer), tmp_path / "log", load_s=0.1)
    with pytest.raises(TimeoutError) as error:
        asyncio.run(await_ready(replace(given, in_container=in_container)))
    assert str(error.value).endswith(f". {STUCK}")
    assert WRONG_PLACE not in str(error.value)


@pytest.mark.parametrize("silence", [ConnectionRefusedError(), EngineUnreachable("no route"), 30.0])
def test_a_container_that_is_never_reached_has_the_documented_answer(tmp_path: Path, silence: Any) -> None:
    given = health(Client(lambda _: silence), tmp_path / "log", load_s=0.1, probe_s=0.05)
    with pytest.raises(TimeoutError) as error:
        asyncio.run(await_ready(replace(given, in_container=True)))
    assert f"llamaman never reached it. {WRONG_PLACE}" in str(error.value)
    with pytest.raises(TimeoutError) as error:
        asyncio.run(await_ready(given))
    assert WRONG_PLACE not in str(error.value), "there is no container to be mistaken about"
    assert str(error.value).endswith(STUCK)


def test_a_container_that_answered_once_can_be_reached(tmp_path: Path) -> None:
    client = Client(lambda number: 503 if number == 1 else ConnectionRefusedError())
    given = health(client, tmp_path / "log", load_s=0.1)
    with pytest.raises(TimeoutError) as error:
        asyncio.run(await_ready(replace(given, in_container=True)))
    assert WRONG_PLACE not in str(error.value)


def test_a_load_without_any_sign_of_life_is_a_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "STALL_S", 0.1)
    given = health(Client(lambda _: 503), tmp_path / "log")
    still = Health(given.client, b"", given.log_path, None, load_timeout_s=20, health_timeout_s=1)
    with pytest.raises(TimeoutError, match="stalled"):
        asyncio.run(asyncio.wait_for(await_ready(still), 10))


def test_a_growing_log_is_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "STALL_S", 0.1)
    log = tmp_path / "log"

    def answer(number: int) -> int:
        with log.open("a") as out:
            out.write("x")
        return 200 if number > 60 else 503

    client = Client(answer)
    given = Health(client, b"key", log, None, load_timeout_s=20, health_timeout_s=1)
    assert asyncio.run(asyncio.wait_for(await_ready(given), 10)).slots == 4


def test_work_without_a_log_line_is_a_sign_of_life_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "STALL_S", 0.3)

    def answer(number: int) -> int:
        end = time.process_time() + 0.006
        while time.process_time() < end:  # in this very process, which is the one that is watched
            pass
        return 200 if number > 80 else 503

    assert ready(Client(answer), tmp_path / "log").slots == 4


@pytest.mark.parametrize("works", [True, False])
def test_what_its_runtime_measures_is_a_sign_of_life_where_its_process_cannot_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    monkeypatch.setattr(readiness, "STALL_S", 0.1)
    client = Client(lambda number: 200 if time.monotonic() - begun > 0.4 else 503)
    use = time.monotonic if works else lambda: 0.0
    given = Health(client, b"key", tmp_path / "log", None, load_timeout_s=20, health_timeout_s=1, use=use)
    begun = time.monotonic()
    if works:
        assert asyncio.run(asyncio.wait_for(await_ready(given), 10)).slots == 4
    else:
        with pytest.raises(TimeoutError, match="stalled"):
            asyncio.run(asyncio.wait_for(await_ready(given), 10))


def test_a_probe_is_bounded_and_raises_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        assert await probe(Client(lambda _: 200), 1.0) is True
        assert await probe(Client(lambda _: 503), 1.0) is False
        assert await probe(Client(lambda _: 30.0), 0.05) is False
        assert await probe(Client(lambda _: EngineUnreachable("x")), 1.0) is False

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_probe_that_is_cancelled_is_cancelled() -> None:
    async def main() -> None:
        task = asyncio.create_task(probe(Client(lambda _: 30.0), 60))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(main(), 10))
