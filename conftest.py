"""What holds for every test here and in the plugins: in CI a real part may not be missing.

Fixtures live in `llamaman.testing`, where plugin authors find them too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Where tests run side by side, give each process a folder with a short path: sockets lie below it."""
    run = getattr(config, "workerinput", None)
    if run:
        name = f"lm-{run['testrunuid'][:8]}-{run['workerid']}"
        config.option.basetemp = str(Path(tempfile.gettempdir()) / name)
    # How long an example takes says how busy the machine is.
    settings.register_profile("busy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Nobody looks into that folder any more."""
    if hasattr(config, "workerinput"):
        shutil.rmtree(config.option.basetemp, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip of a test marked `real` into a failure when CI is set."""
    report = yield
    expected = hasattr(report, "wasxfail")
    if _IN_CI and report.skipped and not expected and item.get_closest_marker("real"):
        report.outcome = "failed"
        report.longrepr = f"in CI a real part may not be missing: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself whole: its marks cannot be seen then."""
    report = yield
    if _IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"in CI no module may skip itself: {_reason(report)}"
    return report


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Begin with the usual one: a manager that a test boots in this process sets a stricter one, for itself."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The words given to the skip; pytest keeps (file, line, words)."""
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
