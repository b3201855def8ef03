"""What running instances use: who is asked, and what is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from llamaman.core.instance import Instance
from llamaman.core.usage import of_running
from llamaman.errors import RuntimeLost
from llamaman.records import Address, Handle, ResourceUse
from llamaman.runtime import Runtime

USE = ResourceUse(cpu_percent=250.0, cpus=4.0, memory_bytes=1 << 30)


class Measuring:
    """A runtime that measures."""

    name = "measuring"

    def __init__(self, use: ResourceUse | None = USE, error: Exception | None = None) -> None:
        self.use, self.error = use, error
        self.asked: list[str] = []

    def usage(self, handle: Handle) -> ResourceUse | None:
        self.asked.append(handle.instance_id)
        if self.error:
            raise self.error
        return self.use

    def anonymous_bytes(self, handle: Handle) -> int | None:
        return None


def instance(id: str, runtime: str, *, running: bool = True) -> Instance:
    handle = Handle(id, 1, None, None, Address("127.0.0.1", 9000)) if running else None
    return Instance(
        id=id,
        model="tiny",
        model_path=Path("/m/tiny.gguf"),
        port=8000,
        runtime=runtime,
        log_path=Path("/l"),
        overrides={},
        options={},
        handle=handle,
    )


def used(*instances: Instance, **runtimes: Any) -> dict[str, ResourceUse]:
    return of_running(instances, cast("dict[str, Runtime]", runtimes))


def test_each_running_instance_is_measured_by_its_own_runtime() -> None:
    one, two = Measuring(), Measuring(ResourceUse(cpu_percent=1.0))
    found = used(instance("a", "one"), instance("b", "two"), one=one, two=two)
    assert found == {"a": USE, "b": ResourceUse(cpu_percent=1.0)}
    assert (one.asked, two.asked) == (["a"], ["b"])


def test_an_instance_without_an_engine_is_not_listed() -> None:
    runtime = Measuring()
    assert used(instance("a", "one", running=False), one=runtime) == {}
    assert runtime.asked == []


def test_what_nobody_measures_is_unknown_and_the_instance_is_listed_all_the_same() -> None:
    lost = Measuring(error=RuntimeLost("the daemon is away"))
    found = used(
        instance("plain", "plain"), instance("early", "early"), instance("lost", "lost"),
        plain=object(), early=Measuring(None), lost=lost,
    )  # fmt: skip
    assert found == {"plain": ResourceUse(), "early": ResourceUse(), "lost": ResourceUse()}
