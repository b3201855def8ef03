"""What containers use: the arithmetic on samples of real engines, and the sampling of real containers."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamaman.records import ResourceUse, WorkDone
from llamaman.runtimes.docker import usage
from llamaman.runtimes.docker.daemon import Daemon
from llamaman.runtimes.docker.usage import (
    Sampler,
    anonymous_memory,
    cpu_percent,
    cpu_quota,
    memory_bytes,
    memory_limit,
    online_cpus,
    use_of,
    work_done,
)

from .conftest import Containers
from .waiting import until

real = pytest.mark.real("docker")

Sample = dict[str, Any]

#: Recorded from Docker 20.10 with control groups of version 1: one processor of two, busy, half a second apart.
V1: Sample = {
    "read": "2026-01-02T03:04:05.250110226Z",
    "preread": "0001-01-01T00:00:00Z",
    "cpu_stats": {
        "cpu_usage": {
            "total_usage": 886_945_917,
            "percpu_usage": [574_104_159, 312_841_758],
            "usage_in_kernelmode": 10_000_000,
            "usage_in_usermode": 860_000_000,
        },
        "system_cpu_usage": 51_466_580_000_000,
        "online_cpus": 2,
    },
    "precpu_stats": {"cpu_usage": {"total_usage": 0}},
    "memory_stats": {
        "usage": 405_504,
        "stats": {"inactive_file": 1000, "total_inactive_file": 5504, "rss": 1, "total_rss": 114_688},
        "limit": 25_276_510_208,
    },
}

#: As documented for version 2: no figures per processor, other names in memory's statistics.
V2: Sample = {
    "cpu_stats": {
        "cpu_usage": {
            "total_usage": 5_000_000_000,
            "usage_in_kernelmode": 1_000_000_000,
            "usage_in_usermode": 4_000_000_000,
        },
        "system_cpu_usage": 800_000_000_000,
        "online_cpus": 8,
    },
    "precpu_stats": {},
    "memory_stats": {
        "usage": 3_000_000_000,
        "stats": {"anon": 1_200_000_000, "file": 1_800_000_000, "inactive_file": 500_000_000},
        "limit": 4_294_967_296,
    },
}


def later(sample: Sample, used: int, passed: int) -> Sample:
    """The same container after so many nanoseconds of its own and of the machine's processor time."""
    sample = copy.deepcopy(sample)
    sample["cpu_stats"]["cpu_usage"]["total_usage"] += used
    sample["cpu_stats"]["system_cpu_usage"] += passed
    return sample


def test_one_busy_processor_is_a_hundred_percent() -> None:
    second = 1_000_000_000
    assert cpu_percent(V1, later(V1, second, 2 * second)) == pytest.approx(100)
    assert cpu_percent(V2, later(V2, 4 * second, 8 * second)) == pytest.approx(400)
    assert cpu_percent(V2, later(V2, 0, 8 * second)) == 0


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (None, V1),
        (V1, V1),
        (V1, later(V1, -5, 10)),
        ({"cpu_stats": {"cpu_usage": {"total_usage": 0}}}, V1),
        ({}, V1),
    ],
    ids=["no sample before", "no time passed", "another run", "no time of the machine", "nothing"],
)
def test_a_percentage_that_two_samples_do_not_tell_is_unknown(before: Sample | None, now: Sample) -> None:
    assert cpu_percent(before, now) is None


def test_processors_are_counted_where_the_daemon_does_not_say_how_many() -> None:
    sample = copy.deepcopy(V1)
    del sample["cpu_stats"]["online_cpus"]
    assert online_cpus(sample) == online_cpus(V1) == 2
    assert online_cpus({}) is None


def test_memory_is_told_without_cache_that_could_be_dropped() -> None:
    assert memory_bytes(V1) == 400_000
    assert memory_bytes(V2) == 2_500_000_000
    assert memory_bytes({"memory_stats": {"usage": 10, "stats": {"inactive_file": 20}}}) == 10
    assert memory_bytes({"memory_stats": {}}) is None


def test_the_limit_of_memory() -> None:
    assert memory_limit(V2) == 4 << 30
    assert memory_limit({"memory_stats": {"limit": 9_223_372_036_854_771_712}}) is None
    assert memory_limit({}) is None


def test_memory_that_is_no_file_cache() -> None:
    assert anonymous_memory(V1) == 114_688
    assert anonymous_memory(V2) == 1_200_000_000
    assert anonymous_memory({"memory_stats": {"usage": 1}}) is None


def test_what_it_has_done_is_told_as_far_as_it_is_known() -> None:
    assert work_done(V1) == WorkDone(0.886945917, None)
    memory = {"stats": {"pgmajfault": 3, "total_pgmajfault": 5}}
    assert work_done({**V1, "memory_stats": memory}).faults == 5
    assert work_done({"memory_stats": {"stats": {"pgmajfault": 3}}}) == WorkDone(None, 3), "version 2"
    assert work_done({}) == WorkDone()


def test_the_quota_however_it_was_given() -> None:
    assert cpu_quota({"HostConfig": {"NanoCpus": 1_500_000_000}}) == 1.5
    assert cpu_quota({"HostConfig": {"NanoCpus": 0, "CpuQuota": 50_000, "CpuPeriod": 0}}) == 0.5
    assert cpu_quota({"HostConfig": {"NanoCpus": 0, "CpuQuota": -1, "CpuPeriod": 0}}) is None


def test_without_a_quota_the_processors_are_those_of_the_machine() -> None:
    assert use_of(None, V2, None) == ResourceUse(None, 8, None, 2_500_000_000, 4 << 30)
    assert use_of(None, V2, 1.5).cpus == use_of(None, V2, 1.5).cpu_quota == 1.5


# --- with a real engine ------------------------------------------------------------------------------


@pytest.fixture
def sampler(daemon: Daemon) -> Iterator[Sampler]:
    sampler = Sampler(daemon, every_s=0.5)
    yield sampler
    sampler.close()
    until(lambda: not sampling())


def sampling() -> list[str]:
    """The sampler's threads."""
    return [each.name for each in threading.enumerate() if each.name.startswith("docker-stats")]


def asked(sampler: Sampler, container_id: str, ready: Callable[[ResourceUse], object]) -> ResourceUse:
    def known() -> ResourceUse | None:
        use = sampler.usage(container_id)
        return use if use is not None and ready(use) else None

    found = until(known)
    assert isinstance(found, ResourceUse)
    return found


@real
def test_a_busy_container_with_a_quota(sampler: Sampler, containers: Containers) -> None:
    limit = 64 << 20
    body = containers.shell("while :; do :; done", NanoCpus=int(0.25e9), Memory=limit, MemorySwap=limit)
    container_id = containers.run("busy", body)
    begun = time.monotonic()
    assert sampler.usage(container_id) is None
    assert time.monotonic() - begun < 1, "asking does not wait for the daemon"
    first = asked(sampler, container_id, lambda use: True)
    assert first.cpu_percent is None, "one sample says nothing of time"
    use = asked(sampler, container_id, lambda use: use.cpu_percent)
    assert use.cpu_percent is not None
    assert 1 < use.cpu_percent < 60
    assert (use.cpus, use.cpu_quota, use.memory_limit) == (0.25, 0.25, limit)
    assert use.memory_bytes is not None
    assert 0 < use.memory_bytes < limit
    containers.daemon.kill(container_id)
    until(lambda: sampler.usage(container_id) is None)  # one that has ended uses nothing


@real
def test_memory_of_a_model_that_is_no_file_cache(sampler: Sampler, containers: Containers) -> None:
    container_id = containers.run("model", containers.serving(NetworkMode="none"))
    found = until(lambda: (sampler.anonymous_bytes(container_id) or 0) > 1 << 20)
    assert found
    use = asked(sampler, container_id, lambda use: use.memory_bytes)
    assert use.cpus == containers.daemon.info()["NCPU"]
    assert use.cpu_quota is None
    containers.daemon.remove(container_id)
    assert sampler.anonymous_bytes(container_id) is None
    assert sampler.anonymous_bytes("0" * 64) is None


@real
def test_the_work_of_a_container_goes_on_until_it_is_paused(sampler: Sampler, containers: Containers) -> None:
    container_id = containers.run("works", containers.shell("while :; do :; done"))

    def done() -> float:
        work = sampler.work(container_id)
        assert work is not None
        assert work.cpu_s is not None
        assert work.faults is not None
        return work.cpu_s

    begun = done()
    until(lambda: done() > begun)
    containers.daemon._connection.call("POST", f"/containers/{container_id}/pause")
    paused = done()
    assert done() == paused
    containers.daemon.remove(container_id)
    assert sampler.work(container_id) is None


@real
def test_sampling_ends_when_nobody_asks_and_begins_again(
    sampler: Sampler, containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "ASKED_WITHIN_S", 0.2)
    container_id = containers.run("idle", containers.shell("exec sleep 300"))
    assert sampling() == []
    asked(sampler, container_id, lambda use: True)
    until(lambda: not sampling())
    assert asked(sampler, container_id, lambda use: True).cpu_percent is None, "what was long ago counts not"
    sampler.forget(container_id)
    assert sampler.usage(container_id) is None


def test_a_daemon_that_is_not_there_leaves_all_unknown(tmp_path: Path) -> None:
    daemon = Daemon(f"unix://{tmp_path}/no.sock")
    sampler = Sampler(daemon, every_s=0.05)
    assert sampler.usage("c") is None
    until(lambda: "docker-stats-worker" in sampling())
    assert sampler.usage("c") is None
    assert sampler.anonymous_bytes("c") is None
    assert sampler.work("c") is None
    sampler.close()
    until(lambda: not sampling())
    daemon.close()
