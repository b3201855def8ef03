"""CPU and memory figures: of the container where there is one, and null where nobody can tell."""

from __future__ import annotations

from pathlib import Path

from llamaman.dashboard.system import SystemMeter

GIB = 1 << 30


def proc(folder: Path, busy: int, idle: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3 4\n")
    kilobytes = GIB // 1024
    (folder / "meminfo").write_text(
        f"MemTotal: {8 * kilobytes} kB\nMemFree: 1 kB\nMemAvailable: {6 * kilobytes} kB\n"
    )
    return folder


def test_cpu_use_is_that_since_the_previous_call(tmp_path: Path) -> None:
    meter = SystemMeter(proc(tmp_path / "proc", 100, 900), tmp_path / "none")
    proc(tmp_path / "proc", 130, 970)
    assert meter.read()["cpu_percent"] == 30.0
    assert meter.read()["cpu_percent"] is None


def test_memory_of_a_machine(tmp_path: Path) -> None:
    facts = SystemMeter(proc(tmp_path / "proc", 1, 1), tmp_path / "none").read()
    assert (facts["ram_total_mb"], facts["ram_used_mb"], facts["ram_free_mb"]) == (8192.0, 2048.0, 6144.0)
    assert facts["ram_percent"] == 25.0


def test_memory_of_a_container_leaves_out_cache_that_can_be_dropped(tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    (cgroup / "memory.max").write_text(f"{4 * GIB}\n")
    (cgroup / "memory.current").write_text(f"{3 * GIB}\n")
    (cgroup / "memory.stat").write_text(f"anon 5\ninactive_file {2 * GIB}\n")
    facts = SystemMeter(proc(tmp_path / "proc", 1, 1), cgroup).read()
    assert (facts["ram_total_mb"], facts["ram_used_mb"]) == (4096.0, 1024.0)


def test_memory_of_a_container_with_version_1_of_cgroups(tmp_path: Path) -> None:
    memory = tmp_path / "cgroup" / "memory"
    memory.mkdir(parents=True)
    (memory / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    (memory / "memory.usage_in_bytes").write_text(f"{GIB}\n")
    (memory / "memory.stat").write_text(f"total_inactive_file {GIB // 2}\n")
    facts = SystemMeter(proc(tmp_path / "proc", 1, 1), tmp_path / "cgroup").read()
    assert (facts["ram_total_mb"], facts["ram_used_mb"]) == (2048.0, 512.0)


def test_a_container_without_a_limit_is_as_large_as_its_machine(tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("max\n")
    assert SystemMeter(proc(tmp_path / "proc", 1, 1), cgroup).read()["ram_total_mb"] == 8192.0


def test_what_cannot_be_read_is_null(tmp_path: Path) -> None:
    facts = SystemMeter(tmp_path / "none", tmp_path / "none").read()
    assert {name for name, value in facts.items() if value is not None} == {"cpu_cores"}
