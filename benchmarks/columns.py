"""The columns of the comparison and the rounds that fill them.

Read by :mod:`benchmarks.__main__`. Guarantees that all columns run in one session on one machine,
interleaved: every round measures each scenario on every column in turn, in an order that rotates, so that a
neighbour's burst of work falls on all of them alike. Every column asks for the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import llamaman_proc, load, nginx_proxy, standin
from benchmarks.llamaman_proc import CHAT, MODEL
from llamaman.testing import processes

DIRECT, NGINX, LLAMAMAN = "direct", "nginx", "llamaman"
STREAMS = 400


@dataclass(frozen=True, slots=True)
class Column:
    """One way to the engine."""

    name: str
    port: int
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing to measure, and for how long (seconds of measured window)."""

    name: str
    job: Callable[[Column, float], load.Job]


#: Results by scenario and column, one per round.
Results = dict[str, dict[str, list[load.Result]]]


def _body(tokens: int, stream: bool, **standin_options: object) -> str:
    message = {"role": "user", "content": "What is a llama? Answer in one short sentence."}
    body: dict[str, object] = {"model": MODEL, "messages": [message], "max_tokens": tokens, "stream": stream}
    return json.dumps({**body, "standin": standin_options} if standin_options else body)


def _calls(connections: int) -> Callable[[Column, float], load.Job]:
    def job(column: Column, seconds: float) -> load.Job:
        return _job(column, seconds, connections, [_body(8, stream=False)])

    return job


def _full_speed(burst: int) -> Callable[[Column, float], load.Job]:
    def job(column: Column, seconds: float) -> load.Job:
        return _job(column, seconds, 16, [_body(4000, stream=True, burst=burst)])

    return job


def _job(column: Column, seconds: float, connections: int, bodies: list[str]) -> load.Job:
    return load.Job(
        "calls", column.port, CHAT, bodies, connections, seconds, warmup=0.3, headers=column.headers
    )


def _paced(column: Column, seconds: float) -> load.Job:
    """Streams of a token each 50 to 100 ms, 4 to 5 s long, begun within 2 s: all of them are open at once."""
    bodies = [_body(4500 // pace, stream=True, pace_ms=pace) for pace in range(50, 101)]
    limit = max(30.0, seconds)
    return load.Job("paced", column.port, CHAT, bodies, STREAMS, limit, stagger=2.0, headers=column.headers)


SCENARIOS = (
    Scenario("calls1", _calls(1)),
    Scenario("calls16", _calls(16)),
    Scenario("streams16", _full_speed(1)),
    Scenario("streams16-burst", _full_speed(4)),
    Scenario("paced400", _paced),
)


def open_columns(stack: contextlib.ExitStack, folder: Path) -> tuple[list[Column], dict[str, str]]:
    """Start what stands beside LlamaMan; ``stack`` ends it. Also: why a column is left out, by its name."""
    missing: dict[str, str] = {}
    columns = [open_direct(stack, folder)]
    front, upstream = processes.free_ports(1)[0], columns[0].port
    binary = nginx_proxy.find()
    if binary is None:
        missing[NGINX] = "nginx is not installed"
    else:
        stack.callback(processes.stop, nginx_proxy.start(binary, folder / "nginx", front, upstream))
        columns.append(Column(NGINX, front, {}))
    reason = llamaman_proc.unavailable()
    if reason is not None:
        missing[LLAMAMAN] = reason
    return columns, missing


def open_direct(stack: contextlib.ExitStack, folder: Path) -> Column:
    """Start the stand-in alone; ``stack`` ends it.

    :raises processes.NotReady: it does not come up.
    """
    port = processes.free_ports(1)[0]
    _start_standin(stack, folder, port)
    return Column(DIRECT, port, {})


def _start_standin(stack: contextlib.ExitStack, folder: Path, port: int) -> None:
    wrapper, log = standin.write_wrapper(folder / "llama-server"), folder / "standin.log"
    flags = ["--port", str(port), "--alias", MODEL, "--parallel", str(STREAMS)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(wrapper), *flags], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    stack.callback(processes.stop, process)
    processes.wait_until(lambda: processes.accepts(port), "the stand-in", process, log)


def open_llamaman(stack: contextlib.ExitStack, folder: Path) -> Column:
    """Start LlamaMan with one instance of the stand-in; ``stack`` ends it.

    :raises processes.NotReady: it does not come up.
    :raises llamaman_proc.ManagerError: it does not launch the model.
    """
    return launched(stack.enter_context(llamaman_proc.prepare(folder)))


def launched(manager: llamaman_proc.Manager) -> Column:
    """Give a running manager room for all streams.

    :raises llamaman_proc.ManagerError: it does not launch the model.
    """
    for _ in range(2):  # llama.cpp has at most 256 sequences a server, so 400 streams need two
        llamaman_proc.launch(manager, STREAMS // 2)
    return Column(LLAMAMAN, manager.proxy_port, {"Authorization": f"Bearer {manager.inference_key}"})


def measure(
    columns: Sequence[Column],
    scenarios: Sequence[Scenario],
    rounds: int,
    seconds: float,
    progress: Callable[[str], None],
) -> Results:
    """Fill every column, round by round."""
    results: Results = {each.name: {column.name: [] for column in columns} for each in scenarios}
    for number in range(rounds):
        turn = number % len(columns)
        for scenario in scenarios:
            for column in (*columns[turn:], *columns[:turn]):
                progress(f"round {number + 1}/{rounds}: {scenario.name}, {column.name}")
                results[scenario.name][column.name].append(load.run(scenario.job(column, seconds)))
    return results
