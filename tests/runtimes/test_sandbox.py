"""What an engine may still do in its sandbox, tried out by a program in its place."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamaman.records import Engine
from llamaman.runtimes import sandbox
from llamaman.runtimes.spawn import spawn

from .conftest import Lab

needs_landlock = pytest.mark.skipif(
    sandbox.version() < 6, reason="this kernel has no Landlock of version 6 or later"
)

PROBE = """
import json, os, socket, sys
model, secret, port, other, manager = sys.argv[1:]
def attempt(action):
    try:
        action()
        return "allowed"
    except OSError as error:
        return error.__class__.__name__
def connect():
    socket.create_connection(("127.0.0.1", int(other)), 5)
def bind(number):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", number))
print(json.dumps({
    "read the model": attempt(lambda: open(model, "rb").read(4)),
    "write the model": attempt(lambda: open(model, "r+b")),
    "read a secret": attempt(lambda: open(secret).read()),
    "list its folder": attempt(lambda: os.listdir(os.path.dirname(secret))),
    "write beside it": attempt(lambda: open(secret + ".new", "w")),
    "write to /tmp": attempt(lambda: open("/tmp/%d.llamaman-probe" % os.getpid(), "w")),
    "read the system": attempt(lambda: os.listdir("/usr")),
    "use a device": attempt(lambda: open("/dev/null", "w").write("x")),
    "listen on its port": attempt(lambda: bind(int(port))),
    "listen on another": attempt(lambda: bind(0)),
    "connect": attempt(connect),
    "signal the manager": attempt(lambda: os.kill(int(manager), 0)),
    "read the manager's environment": attempt(lambda: open(f"/proc/{manager}/environ").read()),
}))
"""


@needs_landlock
def test_an_engine_reads_its_model_listens_on_its_port_and_nothing_else(lab: Lab) -> None:
    secret = lab.folder / "state" / "secret"
    secret.write_text("the root secret")
    plan = lab.plan(Engine("x", "binary", sys.executable))
    box = sandbox.for_plan(
        plan, Path(sys.executable), private=lab.folder, code=(Path(sys.prefix), Path(sys.base_prefix))
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = [lab.model, secret, plan.port, listener.getsockname()[1], os.getpid()]
        found = run([sys.executable, "-I", "-c", PROBE, *map(str, words)], box, lab.folder)
    assert found == {
        "read the model": "allowed",
        "write the model": "PermissionError",
        "read a secret": "PermissionError",
        "list its folder": "PermissionError",
        "write beside it": "PermissionError",
        "write to /tmp": "PermissionError",
        "read the system": "allowed",
        "use a device": "allowed",
        "listen on its port": "allowed",
        "listen on another": "PermissionError",
        "connect": "PermissionError",
        "signal the manager": "PermissionError",
        "read the manager's environment": "PermissionError",
    }


@needs_landlock
def test_the_manager_itself_stays_free(lab: Lab) -> None:
    plan = lab.plan(Engine("x", "binary", sys.executable))
    box = sandbox.for_plan(plan, Path(sys.executable), private=lab.folder, code=(Path(sys.base_prefix),))
    run([sys.executable, "-I", "-S", "-c", "print('{}')"], box, lab.folder)
    (lab.folder / "written").write_text("after the spawn")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        socket.create_connection(listener.getsockname(), 5).close()


def run(argv: list[str], box: sandbox.Sandbox, folder: Path) -> Any:
    output = folder / "output"
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        child = spawn(argv, env={}, output=descriptor, user=None, sandbox=box).child
    finally:
        os.close(descriptor)
    child.wait(60)
    return json.loads(output.read_text())


def test_a_folder_that_holds_our_data_is_never_opened_for_its_libraries(lab: Lab) -> None:
    home = lab.folder / "home"
    (home / "data").mkdir(parents=True)
    for name in ("llama-server", "libllama.so.1", "notes.txt"):
        (home / name).write_text("")
    plan = lab.plan(Engine("x", "binary", str(home / "llama-server")))

    def opened(private: Path) -> set[str]:
        box = sandbox.for_plan(plan, home / "llama-server", private=private)
        return {path for path, _ in box.paths if path.startswith(str(home))}

    assert opened(lab.folder / "elsewhere") == {str(home), str(home / "llama-server")}
    assert opened(home / "data") == {str(home / "llama-server"), str(home / "libllama.so.1")}


def test_all_shards_and_the_files_that_flags_name_can_be_read(lab: Lab) -> None:
    model = lab.folder / "m-00001-of-00003.gguf"
    names = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]
    assert [path.name for path in sandbox.shards(model)] == names
    assert sandbox.shards(lab.model) == [lab.model]
    for name in ("a.gguf", "b.gguf", "c.gguf"):
        (lab.folder / name).write_text("")
    flags = (
        "--lora-scaled",
        f"{lab.folder}/a.gguf:0.5,{lab.folder}/b.gguf:-1",
        "--mmproj",
        f"{lab.folder}/c.gguf",
    )
    box = sandbox.for_plan(
        lab.plan(Engine("x", "binary", "/bin/true"), flags=flags), Path("/bin/true"), private=lab.folder
    )
    paths = {Path(path).name for path, _ in box.paths}
    assert {"a.gguf", "b.gguf", "c.gguf"} <= paths


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda patch: patch.setattr(sandbox, "version", lambda: 0), "no Landlock"),
        (lambda patch: patch.setattr(sandbox, "_GPU_FILES", ("/dev/null",)), "GPU"),
        (lambda patch: None, "script"),
    ],
)
def test_where_there_is_no_sandbox_the_reason_is_given(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], object], words: str
) -> None:
    script = Path(lab.temper("polite").path)
    if words == "script" and sandbox.why_not(Path(sys.executable)):
        pytest.skip("no program runs in a sandbox on this machine")
    change(monkeypatch)
    assert words in (sandbox.why_not(script) or "")
    assert any(words in note for note in lab.runtime.isolation())


def test_an_engine_on_a_unix_socket_may_make_it_and_listen_on_no_port(lab: Lab) -> None:
    plan = lab.plan(Engine("x", "binary", "/bin/true"), host=f"{lab.folder}/x.sock", port=0)
    box = sandbox.for_plan(plan, Path("/bin/true"), private=lab.folder)
    assert box.port is None
    assert str(lab.folder) in {path for path, _ in box.paths}
