"""Jobs run in time, never beside themselves, and survive their own failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from llamaman.core.jobs import DEGRADED_AFTER, Jobs, wait_after
from llamaman.records import Job

DEADLINE_S = 60.0


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    jobs = Jobs()
    jobs.start()
    yield jobs
    jobs.stop()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def test_a_job_runs_again_and_again(jobs: Jobs) -> None:
    runs: list[int] = []
    jobs.add(Job("tick", 0.005, lambda: runs.append(1)), "core")
    eventually(lambda: len(runs) >= 5)


def test_the_first_run_comes_after_one_period_or_when_it_was_asked_for(jobs: Jobs) -> None:
    late: list[int] = []
    soon: list[int] = []
    jobs.add(Job("late", 3600, lambda: late.append(1)), "core")
    jobs.add(Job("soon", 3600, lambda: soon.append(1)), "core", first_in_s=0)
    eventually(lambda: bool(soon))
    assert not late
    jobs.run_now("late")
    eventually(lambda: bool(late))


def test_a_job_never_runs_beside_itself_and_a_request_meanwhile_is_not_lost(jobs: Jobs) -> None:
    inside = threading.Semaphore(1)
    release = threading.Event()
    overlaps: list[int] = []
    runs: list[int] = []

    def run() -> None:
        if not inside.acquire(blocking=False):
            overlaps.append(1)
        runs.append(1)
        release.wait(DEADLINE_S)
        inside.release()

    jobs.add(Job("slow", 3600, run), "core", first_in_s=0)
    eventually(lambda: bool(runs))
    for _ in range(5):
        jobs.run_now("slow")
    assert jobs.report()[0].running
    release.set()
    eventually(lambda: len(runs) == 2 and not jobs.report()[0].running)
    assert not overlaps


def test_a_slow_job_does_not_hold_up_the_others(jobs: Jobs) -> None:
    release = threading.Event()
    runs: list[int] = []
    jobs.add(Job("slow", 3600, lambda: release.wait(DEADLINE_S) and None), "core", first_in_s=0)
    eventually(lambda: any(report.running for report in jobs.report()))
    jobs.add(Job("quick", 0.005, lambda: runs.append(1)), "core")
    eventually(lambda: len(runs) >= 3)
    release.set()


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3)])
def test_a_failing_job_is_logged_counted_and_runs_again(
    jobs: Jobs, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: Iterator[BaseException | None] = iter([error, error, None])

    def run() -> None:
        outcome = next(outcomes, None)
        if outcome is not None:
            raise outcome

    jobs.add(Job("flaky", 0.002, run), "plugin x")
    eventually(lambda: jobs.report()[0].runs >= 3)
    report = jobs.report()[0]
    assert (report.failures, report.failures_in_a_row, report.degraded) == (2, 0, False)
    assert report.last_error is not None
    assert type(error).__name__ in report.last_error
    assert "plugin x" in caplog.text


def test_a_job_that_always_fails_is_degraded(jobs: Jobs) -> None:
    def run() -> None:
        raise ValueError("always")

    jobs.add(Job("broken", 0.001, run), "x")
    eventually(lambda: jobs.report()[0].failures_in_a_row >= DEGRADED_AFTER)
    assert jobs.report()[0].degraded


def test_failures_make_the_wait_longer_within_limits() -> None:
    assert [wait_after(10, failures) for failures in range(4)] == [10, 20, 40, 80]
    assert wait_after(10, 1000) == 600
    assert wait_after(3600, 5) == 3600


def test_two_jobs_of_one_name_are_refused_naming_both_owners(jobs: Jobs) -> None:
    jobs.add(Job("sweep", 60, lambda: None), "plugin a")
    with pytest.raises(ValueError, match=r"sweep.*plugin a.*plugin b"):
        jobs.add(Job("sweep", 60, lambda: None), "plugin b")


@pytest.mark.parametrize("every_s", [0, -1, float("nan")])
def test_a_period_that_is_none_is_refused(jobs: Jobs, every_s: float) -> None:
    with pytest.raises(ValueError, match="every_s"):
        jobs.add(Job("x", every_s, lambda: None), "core")


def test_stop_waits_for_what_runs_and_starts_nothing_more() -> None:
    jobs = Jobs()
    jobs.start()
    ended: list[int] = []
    started = threading.Event()

    def run() -> None:
        started.set()
        time.sleep(0.05)
        ended.append(1)

    jobs.add(Job("last", 0.001, run), "core")
    assert started.wait(DEADLINE_S)
    assert jobs.stop(DEADLINE_S)
    runs = len(ended)
    assert runs >= 1
    assert not [thread for thread in threading.enumerate() if thread in jobs._threads]
    assert len(ended) == runs


def test_stop_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    jobs = Jobs()
    jobs.start()
    release, started = threading.Event(), threading.Event()

    def run() -> None:
        started.set()
        release.wait(DEADLINE_S)

    jobs.add(Job("hangs", 3600, run), "x", first_in_s=0)
    assert started.wait(DEADLINE_S)
    assert jobs.stop(0.05) is False
    assert "hangs" in caplog.text
    release.set()


def test_stopping_what_never_started_is_no_error() -> None:
    jobs = Jobs()
    jobs.add(Job("x", 1, lambda: None), "core")
    assert jobs.stop()
