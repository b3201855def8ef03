"""The process runtime with servers of bad temper: what must hold whatever an engine does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llamaman.errors import LaunchError
from llamaman.records import Address, Engine, Exit, Handle
from llamaman.runtimes import procfs
from llamaman.runtimes.process import ProcessRuntime

from .conftest import KEY, Lab, until


def test_an_engine_is_started_and_found_healthy(lab: Lab) -> None:
    handle = lab.launch(lab.temper("polite"))
    assert lab.call(handle, "/v1/models")[1]["data"][0]["id"] == "tiny"
    assert lab.runtime.inspect(handle) is None


def test_the_environment_of_an_engine_is_clean_and_marked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLAMA_ARG_STATIC_PATH", "AIP_MODE", "HF_TOKEN", "GGML_BACKEND_PATH", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "/etc")
    handle = lab.launch(lab.temper("polite"), env={"CUDA_VISIBLE_DEVICES": "1"}, generation=7)
    assert handle.pid is not None
    environ = procfs.environ(handle.pid)
    assert set(environ) - {"PWD"} == {  # PWD comes from the shell of the stand-in
        "PATH",
        "HOME",
        "XDG_CONFIG_HOME",
        "LANG",
        "CUDA_VISIBLE_DEVICES",
        "LLAMA_API_KEY",
        "LLAMAMAN_INSTANCE_ID",
        "LLAMAMAN_NODE",
        "LLAMAMAN_INSTALL",
        "LLAMAMAN_GENERATION",
        "LLAMAMAN_ADDRESS",
    }
    assert environ["LLAMAMAN_INSTANCE_ID"] == handle.instance_id
    assert environ["LLAMAMAN_GENERATION"] == "7"
    assert os.listdir(environ["HOME"]) == []


def test_the_key_is_in_no_argument_vector(lab: Lab) -> None:
    handle = lab.launch(lab.temper("polite"))
    assert handle.pid is not None
    assert KEY not in " ".join(procfs.command_line(handle.pid))
    assert lab.call(handle, "/v1/models", key="another")[0] == 401


def test_an_engine_leads_its_own_session_and_gains_no_rights(lab: Lab) -> None:
    handle = lab.launch(lab.temper("polite"))
    assert handle.pid is not None
    process = procfs.read(handle.pid)
    assert process is not None
    assert process.session == process.group == handle.pid
    status = Path(f"/proc/{handle.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Umask:\t0077" in status
    limits = Path(f"/proc/{handle.pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    # The thread that started it took the vow for it; we did not.
    assert "NoNewPrivs:\t0" in Path("/proc/self/status").read_text() or os.geteuid() != 0


def test_no_descriptor_of_ours_reaches_an_engine(lab: Lab) -> None:
    leak = os.open("/etc/hostname" if os.path.exists("/etc/hostname") else "/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        handle = lab.launch(lab.temper("polite"))
    finally:
        os.close(leak)
    folder = f"/proc/{handle.pid}/fd"
    targets = {os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
    assert {target for target in targets if target.startswith("/etc/")} == set()
    assert os.readlink(f"{folder}/0") == "/dev/null"
    assert os.readlink(f"{folder}/1") == os.readlink(f"{folder}/2") == str(lab.folder / "logs/engine.log")


def test_the_log_is_private_and_runs_in_it_are_parted(lab: Lab) -> None:
    engine = lab.temper("polite")
    lab.runtime.stop(lab.launch(engine), 5)
    lab.launch(engine, generation=2)
    path = lab.folder / "logs" / "engine.log"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert lab.log().count("=== LlamaMan starts") == 2
    assert "generation 2" in lab.log()


def test_stop_asks_first_and_reports_the_exit_code(lab: Lab) -> None:
    handle = lab.launch(lab.temper("polite"))
    exit_ = lab.runtime.stop(handle, 60)
    assert (exit_.code, exit_.signal) == (0, None)
    assert procfs.read(handle.pid or 0) is None


def test_stop_kills_what_ignores_the_request(lab: Lab) -> None:
    handle = lab.launch(lab.temper("ignores_sigterm"))
    exit_ = lab.runtime.stop(handle, 0.2)
    assert exit_.signal == signal.SIGKILL
    assert exit_.oom is False


def test_stopping_twice_is_no_error_and_gives_the_same_answer(lab: Lab) -> None:
    handle = lab.launch(lab.temper("polite"))
    first = lab.runtime.stop(handle, 60)
    assert lab.runtime.stop(handle, 60) == first


def test_stopping_from_two_threads_at_once_gives_both_the_exit(lab: Lab) -> None:
    handle = lab.launch(lab.temper("ignores_sigterm"))
    exits: list[Exit] = []
    threads = [threading.Thread(target=lambda: exits.append(lab.runtime.stop(handle, 0.1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [exit_.signal for exit_ in exits] == [signal.SIGKILL] * 4


def test_the_whole_process_group_ends_with_the_engine(lab: Lab) -> None:
    script = lab.folder / "llama-server-with-child"
    script.write_text("#!/bin/sh\n(trap '' TERM; sleep 1000) &\nexec sleep 1000\n")
    script.chmod(0o700)
    engine = Engine("llama-server", "binary", str(script))
    handle = lab.start(lab.plan(engine))

    def members() -> list[int]:
        found = (procfs.read(pid) for pid in procfs.pids())
        return [process.pid for process in found if process and process.group == handle.pid and process.alive]

    until(lambda: len(members()) == 2)
    lab.runtime.stop(handle, 0.2)
    until(lambda: members() == [])


def test_what_a_dead_engine_leaves_behind_ends_too(lab: Lab) -> None:
    script = lab.folder / "llama-server-that-leaves-a-child"
    script.write_text("#!/bin/sh\n(trap '' TERM; echo $$ > /dev/null; sleep 1000) &\nexit 3\n")
    script.chmod(0o700)
    handle = lab.start(lab.plan(Engine("llama-server", "binary", str(script))))
    assert lab.end_of(handle).code == 3
    groups = (procfs.read(pid) for pid in procfs.pids())
    until(lambda: not any(process and process.group == handle.pid and process.alive for process in groups))


def test_a_watcher_hears_of_a_death_once_with_the_exit_code(lab: Lab) -> None:
    handle = lab.start(lab.plan(lab.temper("dies_loading", after_ms=200, exit_code=1)))
    heard: list[Exit] = []
    lab.runtime.watch(handle, heard.append)
    until(lambda: heard)
    assert heard[0].code == 1
    assert lab.runtime.inspect(handle) == heard[0]
    late: list[Exit] = []
    lab.runtime.watch(handle, late.append)
    assert late == heard


def test_a_cancelled_watcher_hears_nothing_and_the_others_do(lab: Lab) -> None:
    handle = lab.launch(lab.temper("polite"))
    first: list[Exit] = []
    second: list[Exit] = []
    cancel = lab.runtime.watch(handle, first.append)
    lab.runtime.watch(handle, second.append)
    cancel()
    cancel()
    lab.runtime.stop(handle, 60)
    until(lambda: second)
    assert first == []


def test_a_watcher_that_fails_does_not_deafen_the_others(lab: Lab) -> None:
    handle = lab.launch(lab.temper("polite"))
    heard: list[Exit] = []

    def fails(_: Exit) -> None:
        raise RuntimeError("a fault of the watcher")

    lab.runtime.watch(handle, fails)
    lab.runtime.watch(handle, heard.append)
    lab.runtime.stop(handle, 60)
    until(lambda: heard)


def test_a_crash_is_reported_as_its_signal(lab: Lab) -> None:
    handle = lab.launch(lab.temper("crash_on_request"))
    with pytest.raises(OSError):
        lab.call(handle, "/v1/chat/completions", {"messages": []})
    assert lab.end_of(handle).signal == signal.SIGSEGV


def test_nobody_watching_leaves_no_zombie(lab: Lab) -> None:
    handle = lab.start(lab.plan(lab.temper("dies_loading", after_ms=0)))
    until(lambda: procfs.read(handle.pid or 0) is None)


def test_many_engines_need_one_thread_and_none_when_idle(lab: Lab) -> None:
    before = threading.active_count()
    engine = lab.temper("polite")
    handles = [lab.start(lab.plan(engine, generation=number)) for number in range(6)]
    assert threading.active_count() == before + 1
    for handle in handles:
        lab.runtime.stop(handle, 60)
    until(lambda: threading.active_count() == before)


def test_start_and_stop_leak_no_descriptor_thread_or_process(lab: Lab) -> None:
    plan = lab.plan(lab.temper("polite"))  # one: to be sure of a port takes a descriptor

    def cycle() -> None:
        handle = lab.runtime.start(plan)
        lab.runtime.watch(handle, lambda _: None)
        lab.runtime.stop(handle, 0)

    def settled() -> tuple[int, int]:
        until(lambda: threading.active_count() == threads)
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    threads = threading.active_count()
    cycle()
    before = settled()
    for _ in range(10):
        cycle()
    assert settled() == before
    assert lab.runtime.find("test-node", lab.folder.name) == []


def test_a_signal_never_goes_to_a_process_with_another_start_time(lab: Lab) -> None:
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        process = procfs.read(stranger.pid)
        assert process is not None
        handle = Handle("x", 1, stranger.pid, process.started + 1, Address("127.0.0.1", 1))
        exit_ = lab.runtime.stop(handle, 0)
        assert (exit_.code, exit_.signal) == (None, None)
        assert stranger.poll() is None
        assert lab.runtime.inspect(handle) is not None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_new_manager_finds_watches_and_stops_what_the_old_one_started(lab: Lab) -> None:
    engine = lab.temper("polite")
    old = lab.folder / "old_manager.py"
    old.write_text(
        "import sys, json, os, signal\n"
        "from dataclasses import asdict\n"
        "from pathlib import Path\n"
        "from llamaman.records import Engine, LaunchPlan\n"
        "from llamaman.runtimes.process import ProcessRuntime\n"
        "binary, state, model, log, port = sys.argv[1:]\n"
        "runtime = ProcessRuntime(binary=Path(binary), embedded=False, state_dir=Path(state))\n"
        "plan = LaunchPlan('abc', 'test-node', Path(state).parent.name, 5, runtime.engines()[0], Path(model),"
        " 'tiny', {}, (), {}, '127.0.0.1', int(port), Path(log), '', api_key='" + KEY + "')\n"
        "print(json.dumps(asdict(runtime.start(plan))), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    plan = lab.plan(engine)
    arguments = [engine.path, str(lab.folder / "state"), str(lab.model), str(plan.log_path), str(plan.port)]
    ended = subprocess.run(
        [sys.executable, str(old), *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr

    found = lab.runtime.find("test-node", lab.folder.name)
    assert len(found) == 1
    handle = found[0]
    lab.handles.append(handle)
    assert json.loads(json.dumps(asdict(handle))) == json.loads(ended.stdout)
    assert (handle.instance_id, handle.generation, handle.address.port) == ("abc", 5, plan.port)
    lab.ready(handle)

    heard: list[Exit] = []
    lab.runtime.watch(handle, heard.append)
    exit_ = lab.runtime.stop(handle, 60)
    assert (exit_.code, exit_.signal) == (None, None)  # init reaped it, not we
    until(lambda: heard)


def test_engines_of_another_installation_or_node_are_not_found(lab: Lab) -> None:
    handle = lab.launch(lab.temper("polite"))
    assert lab.runtime.find("test-node", lab.folder.name) == [handle]
    assert lab.runtime.find("test-node", "another") == []
    assert lab.runtime.find("another", lab.folder.name) == []


def test_a_process_with_our_marks_but_another_program_is_not_found(lab: Lab) -> None:
    copy = lab.folder / "not-an-engine"
    shutil.copy("/bin/sleep", copy)
    runtime = ProcessRuntime(binary=copy, embedded=False, state_dir=lab.folder / "other-state")
    marks = {
        "LLAMAMAN_INSTANCE_ID": "x",
        "LLAMAMAN_NODE": "n",
        "LLAMAMAN_INSTALL": "i",
        "LLAMAMAN_GENERATION": "1",
        "LLAMAMAN_ADDRESS": "127.0.0.1:1",
    }
    for program, expected in ((str(copy), 1), ("/bin/sleep", 0)):
        child = subprocess.Popen([program, "1000"], env=marks, start_new_session=True)
        try:
            until(lambda child=child: "x" in procfs.environ(child.pid).values())
            assert len(runtime.find("n", "i")) == expected, program
        finally:
            child.kill()
            child.wait()
    runtime.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_path": Path("/nonexistent/model.gguf")}, "cannot be found"),
        ({"model_path": Path("/etc")}, "not a file"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused_before_anything_runs(
    lab: Lab, change: dict[str, Path], words: str
) -> None:
    engine = lab.temper("polite")
    with pytest.raises(LaunchError, match=words) as caught:
        lab.runtime.start(replace(lab.plan(engine), **change))
    assert "/nonexistent" not in caught.value.message
    assert not (lab.folder / "logs").exists()


def test_a_program_that_cannot_be_run_is_refused_with_what_to_do(lab: Lab) -> None:
    gone = Engine("llama-server", "binary", str(lab.folder / "gone"))
    with pytest.raises(LaunchError, match="set LLAMA_SERVER_BIN"):
        lab.runtime.start(lab.plan(gone))
    plain = lab.folder / "plain"
    plain.write_text("no program\n")
    with pytest.raises(LaunchError, match=r"chmod \+x"):
        lab.runtime.start(lab.plan(replace(gone, path=str(plain))))
    plain.chmod(0o700)
    plain.write_bytes(b"\x7fELF and nothing more")
    with pytest.raises(LaunchError, match="built for this machine"):
        lab.runtime.start(lab.plan(replace(gone, path=str(plain))))
    assert lab.runtime.find("test-node", lab.folder.name) == []


def test_only_flags_that_the_build_knows_are_added(lab: Lab) -> None:
    engine = lab.temper("polite")
    knows = lab.launch(engine)
    older = lab.launch(replace(engine, flags=frozenset({"--no-webui"})))
    blind = lab.launch(replace(engine, flags=None))
    lines = [procfs.command_line(handle.pid or 0) for handle in (knows, older, blind)]
    tail = [line[line.index("--parallel") + 2 :] for line in lines]
    assert tail == [("--no-ui", "--log-colors", "off", "--metrics"), ("--no-webui",), ()]


def test_starting_returns_before_the_model_is_loaded(lab: Lab) -> None:
    engine = lab.temper("slow", load_ms=60_000)
    handle = lab.start(lab.plan(engine))

    def answer() -> int:
        try:
            return lab.call(handle, "/health")[0]
        except OSError:
            return 0

    assert until(answer) == 503


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes as another user")
def test_root_starts_engines_as_the_configured_user(lab: Lab) -> None:
    engine = lab.temper("polite")
    runtime = ProcessRuntime(binary=None, embedded=False, state_dir=lab.folder / "state", user="nobody")
    # Below /tmp, since the test's own folder is closed to other users.
    script = Path("/tmp") / f"llama-server-{lab.folder.name}-{os.getpid()}"
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    script.chmod(0o755)
    try:
        handle = runtime.start(replace(lab.plan(engine), engine=replace(engine, path=str(script))))
        assert handle.pid is not None
        until(lambda: procfs.command_line(handle.pid or 0)[:1] == ("sleep",))
        uids = next(
            line
            for line in Path(f"/proc/{handle.pid}/status").read_text().splitlines()
            if line.startswith("Uid")
        )
        assert len(set(uids.split()[1:])) == 1
        assert uids.split()[1] != "0"
        runtime.stop(handle, 5)
    finally:
        script.unlink()
        runtime.close()


def test_an_unknown_user_is_refused_with_the_variable_named(lab: Lab) -> None:
    engine = lab.temper("polite")
    runtime = ProcessRuntime(
        binary=Path(engine.path), embedded=False, state_dir=lab.folder / "s", user="no-such-account"
    )
    if os.geteuid() != 0:
        assert any("LLAMA_SERVER_USER is ignored" in note for note in runtime.isolation())
        return
    with pytest.raises(LaunchError, match="LLAMA_SERVER_USER"):
        runtime.start(lab.plan(engine))


def test_what_is_not_isolated_is_said(lab: Lab) -> None:
    lab.temper("polite")  # a script, which no sandbox can be made for
    assert any(note.startswith("no isolation of files and network") for note in lab.runtime.isolation())
