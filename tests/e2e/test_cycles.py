"""Launching and stopping again and again leaves nothing behind.

100 cycles with each real engine, or as many as LLAMAMAN_TEST_CYCLES says; the benchmark
``python -m benchmarks.cycles`` runs 1,000.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

from llamaman.testing import processes
from llamaman.testing.manager import Manager

CYCLES = int(os.environ.get("LLAMAMAN_TEST_CYCLES", "100"))
WARM_UP = 5
"""Cycles after which thread pools and caches have their size."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a manager holds while nothing runs."""

    ports: int
    engines: int
    threads: int
    descriptors: int
    records: int
    children: int


def held(manager: Manager) -> Held:
    pid = manager.running.pid
    children = sum(processes.parent(each) == pid for each in processes.pids())
    return Held(
        ports=len(processes.listening((*manager.public_ports, *manager.internal_ports))),
        engines=len(manager.engines()),
        threads=processes.thread_count(pid) or 0,
        descriptors=processes.descriptor_count(pid) or 0,
        records=len(manager.instances()),
        children=children,
    )


def settled(manager: Manager) -> Held:
    """What it holds once two looks 0.3 s apart agree: connections of the looks themselves take a moment."""
    last = held(manager)
    deadline = time.monotonic() + 60
    while True:
        time.sleep(0.3)
        now = held(manager)
        if now == last or time.monotonic() > deadline:
            return now
        last = now


def cycle(manager: Manager, number: int) -> None:
    instance = manager.launch("tiny")
    if number % 3 == 0:
        assert manager.chat("tiny", stream=number % 2 == 0, max_tokens=2).status == 200
    manager.stop(instance["id"], force=number % 5 == 0)
    manager.remove(instance["id"])


def test_launching_and_stopping_leaks_no_port_process_thread_descriptor_or_record(manager: Manager) -> None:
    for number in range(WARM_UP):
        cycle(manager, number)
    before = settled(manager)
    assert (before.ports, before.engines, before.records, before.children) == (0, 0, 0, 0)
    for number in range(CYCLES):
        cycle(manager, number)
    after = settled(manager)
    # A pool may still grow by a thread when two things meet; what leaks, leaks in every cycle.
    assert after.threads - before.threads < CYCLES / 10
    assert after.descriptors <= before.descriptors
    assert (after.ports, after.engines, after.records, after.children) == (0, 0, 0, 0)
    assert manager.manage("GET", "/api/next-port")["port"] == manager.public_ports[0]
    assert "descriptor" not in manager.output().lower()


def test_sleeping_and_waking_leaks_nothing_either(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = manager.launch("tiny", wait=None, idle_timeout_min=0.005)
    manager.wait_status(instance["id"], "sleeping")
    before = settled(manager)
    for _ in range(5):
        assert manager.chat("tiny").status == 200
        manager.wait_status(instance["id"], "sleeping")
    after = settled(manager)
    assert after.threads - before.threads < 5, "what leaks, leaks in every cycle"
    assert after.descriptors - before.descriptors < 5
    assert replace(after, threads=0, descriptors=0) == replace(before, threads=0, descriptors=0)
    assert manager.instance(instance["id"])["generation"] == 6


def test_failed_launches_leak_nothing(plain_manager: Manager) -> None:
    manager = plain_manager
    bad = {"model_path": str(manager.models / "tiny.gguf"), "extra_args": "--lora no-such.gguf"}
    manager.admin("POST", "/api/instances", bad)
    before = settled(manager)
    for _ in range(20):
        assert manager.admin("POST", "/api/instances", bad).status == 400
    after = settled(manager)
    assert after.descriptors <= before.descriptors
    assert (after.ports, after.engines, after.records) == (0, 0, 0)
