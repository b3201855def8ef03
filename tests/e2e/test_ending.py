"""How a manager ends when it is told to: nobody is cut off without a word, and nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager, command
from llamaman.testing.wire import Request, refuses

ENDS_S = 30.0
"""Generous: five seconds of grace, one for the last words, one for the rest. No stream would end by itself."""

NOTES = """
import os, time
from pathlib import Path
from llamaman import Job, hookimpl

def note(*words):
    with Path(os.environ["NOTES"]).open("a") as file:
        file.write(" ".join(map(str, words)) + "\\n")

@hookimpl
def post_forward(record):
    time.sleep(0.2)
    note("post_forward", record.outcome)

@hookimpl
def instance_event(event):
    note("instance_event", event.state)

@hookimpl
def job_declare():
    return [Job("notes.long", 0.05, long)]

def long():
    note("job")
    time.sleep(20)

@hookimpl
def shutdown(kernel):
    note("shutdown")
"""


def with_notes(folder: Path) -> dict[str, str]:
    """The environment of a manager with a plugin that notes what it is told, in ``NOTES``."""
    info = folder / "site" / "notes-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: notes\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[llamaman.plugins]\nnotes = notes_plugin\n", encoding="utf-8")
    (folder / "site" / "notes_plugin.py").write_text(NOTES, encoding="utf-8")
    return {"PYTHONPATH": str(folder / "site"), "NOTES": str(folder / "notes")}


def rest_of(request: Request) -> tuple[list[dict[str, Any]], float]:
    """What is still to come of a stream, and when it ended; a stream that is cut off raises."""
    events = [json.loads(data) for data in request.events() if data != "[DONE]"]
    return events, time.monotonic()


def test_a_stream_that_outlives_the_grace_is_told_and_ended_and_the_engines_are_gone(
    manager: Manager, slow: Callable[[Manager], str], measured: Callable[..., None]
) -> None:
    instance = manager.launch(slow(manager), **ENDLESS, parallel=2)
    request = manager.ask("slow", stream=True, max_tokens=FOR_EVER)
    through_its_own_port = manager.ask("slow", port=instance["port"], stream=True, max_tokens=FOR_EVER)
    for each in (request, through_its_own_port):
        next(each.events())
    begun = time.monotonic()
    manager.running.terminate()
    for each in (request, through_its_own_port):
        events, ended = rest_of(each)
        assert events[-1]["error"]["message"] == "LlamaMan is ending; try again"
        assert events[-1]["error"]["code"] == "model_unavailable"
        assert all("choices" in event for event in events[:-1])
        measured("stream ended after", ended - begun)
        assert ended - begun < ENDS_S
    assert manager.running.wait(60) == 0
    assert not manager.engines()
    assert refuses(manager.port)
    assert refuses(instance["port"])
    assert "Traceback" not in manager.output()


def test_a_stream_that_ends_within_the_grace_is_finished(
    tempered: Callable[..., Manager], tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.touch()
    manager = tempered("polite", held_by=str(held))
    manager.launch("tiny")
    request = manager.ask("tiny", stream=True, max_tokens=200)
    events = request.events()
    next(events)
    manager.running.terminate()
    manager.until(lambda: "ending:" in manager.output(), "the signal to be heard")
    held.unlink()
    rest = list(events)
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "stop"
    assert len(rest) == 201, "every piece of it, and the end"
    assert manager.running.wait(60) == 0


def test_an_answer_in_one_piece_that_outlives_the_grace_is_a_503(
    plain_manager: Manager, slow: Callable[[Manager], str]
) -> None:
    manager = plain_manager
    instance = manager.launch(slow(manager), **ENDLESS)
    request = manager.ask("slow", max_tokens=FOR_EVER)
    waits = manager.ask("slow", max_tokens=5)
    manager.until(lambda: manager.instance(instance["id"])["queue"]["queued"] == 1, "one waiting")
    manager.running.terminate()
    for each in (request, waits):
        answer = each.answer()
        assert (answer.status, answer.error) == (503, "LlamaMan is ending; try again")
        assert int(answer.headers["retry-after"]) > 0
    assert manager.running.wait(60) == 0


def test_asked_twice_it_ends_once_and_in_order(
    plain_manager: Manager, slow: Callable[[Manager], str]
) -> None:
    manager = plain_manager
    manager.launch(slow(manager), **ENDLESS)
    request = manager.ask("slow", stream=True, max_tokens=FOR_EVER)
    next(request.events())
    manager.running.terminate()
    manager.until(lambda: "ending:" in manager.output(), "the first to be heard")
    manager.running.terminate()
    manager.running.send_signal(signal.SIGINT)
    events, _ = rest_of(request)
    assert events[-1]["error"]["message"] == "LlamaMan is ending; try again"
    assert manager.running.wait(60) == 0
    assert not manager.engines()
    assert "Traceback" not in manager.output()


def test_asked_while_a_model_loads_it_ends_the_load(tempered: Callable[..., Manager]) -> None:
    manager = tempered("polite", load_ms=60_000)
    manager.launch("tiny", wait=None)
    manager.until(manager.engines, "the engine")
    waits = manager.ask("tiny")
    manager.until(lambda: manager.instances()[0]["queue"]["queued"] == 1, "one waiting")
    begun = time.monotonic()
    manager.running.terminate()
    answer = waits.answer()
    assert answer.status == 503
    assert manager.running.wait(60) == 0
    assert time.monotonic() - begun < ENDS_S, "the load would take longer"
    assert not manager.engines()
    assert "Traceback" not in manager.output()


def test_a_ctrl_c_reaches_everybody_on_the_terminal_and_the_engines_are_still_ended_in_order(
    plain_manager: Manager, slow: Callable[[Manager], str]
) -> None:
    manager = plain_manager
    manager.terminate()
    with manager.log.open("ab") as log:
        manager.process = subprocess.Popen(
            [*command(), "serve"],
            env=manager.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )
    manager.wait_ready()
    manager.launch(slow(manager), **ENDLESS)
    request = manager.ask("slow", stream=True, max_tokens=FOR_EVER)
    next(request.events())
    os.killpg(manager.running.pid, signal.SIGINT)
    events, _ = rest_of(request)
    assert events[-1]["error"]["message"] == "LlamaMan is ending; try again"
    assert manager.running.wait(60) == 0
    assert not manager.engines()


def test_plugins_are_told_of_everything_before_they_are_told_that_it_is_over(
    embedded: object, new_manager: Callable[..., Manager], slow: Callable[[Manager], str], tmp_path: Path
) -> None:
    env = with_notes(tmp_path)
    manager = new_manager(env=env)
    manager.launch(slow(manager), **ENDLESS, parallel=2)
    for _ in range(5):
        assert manager.chat("slow", max_tokens=2).status == 200
    request = manager.ask("slow", stream=True, max_tokens=FOR_EVER)
    next(request.events())
    assert "job" in Path(env["NOTES"]).read_text(encoding="utf-8").splitlines()
    begun = time.monotonic()
    manager.running.terminate()
    _, ended = rest_of(request)
    assert ended - begun < 15, "a job that takes its time does not keep clients waiting"
    assert manager.running.wait(60) == 0
    notes = Path(env["NOTES"]).read_text(encoding="utf-8").splitlines()
    told = [line for line in notes if line.startswith("post_forward")]
    assert told == ["post_forward complete"] * 5 + ["post_forward error"]
    states = [line.split()[1] for line in notes if line.startswith("instance_event")]
    assert states[-2:] == ["stopping", "stopped"]
    assert notes[-1] == "shutdown"
    assert notes.count("shutdown") == 1
