"""A LlamaMan of its own for a run: temporary folders, free ports, the stand-in as its engine.

Read by :mod:`benchmarks.columns`, :mod:`benchmarks.startup` and :mod:`benchmarks.cycles`. Guarantees that
nothing of a LlamaMan that may be installed here is touched: data, models, logs and the admin socket lie in
one folder, every port is chosen free, and the environment holds nothing of the caller's but PATH and the
locale.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.parse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import processes, standin

MODEL = "bench"
CHAT = "/v1/chat/completions"
PORTS = 8
CTX_SIZE = 4096


class ManagerError(Exception):
    """LlamaMan answered something else than the benchmark needs; the text holds the answer."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Where one manager lives. ``manage_key`` is empty until :func:`create_key` was called."""

    folder: Path
    port: int
    proxy_port: int
    public_ports: tuple[int, ...]
    internal_ports: tuple[int, ...]
    env: dict[str, str]
    inference_key: str
    manage_key: str = ""

    @property
    def model_path(self) -> Path:
        """The one model on disk."""
        return self.folder / "models" / f"{MODEL}.gguf"

    @property
    def log(self) -> Path:
        """What the manager wrote to stdout and stderr."""
        return self.folder / "manager.log"


def command() -> list[str]:
    """How to run the CLI of the checkout: its script when there is one, else the package."""
    script = Path(sys.executable).parent / "llamaman"
    return [str(script)] if script.exists() else [sys.executable, "-m", "llamaman"]


def unavailable() -> str | None:
    """Why ``llamaman serve`` cannot run here, null when it can."""
    done = subprocess.run([*command(), "serve", "--help"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    last = lines[-1] if lines else "it wrote nothing"
    return f"`{' '.join(command())} serve --help` exited {done.returncode}: {last}"


def prepare(folder: Path) -> Setup:
    """Folders, engine script, model file, ports and environment; starts nothing."""
    for name in ("data", "models", "logs", "run"):
        (folder / name).mkdir(parents=True)
    (folder / "run").chmod(0o700)
    ports = processes.free_ports(2 + 2 * PORTS)
    public, internal = tuple(ports[2 : 2 + PORTS]), tuple(ports[2 + PORTS :])
    key = "llm-" + secrets.token_urlsafe(32)
    env = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "HOME") if name in os.environ}
    env |= {
        "LLAMAMAN_NODE_NAME": "bench",
        "LLAMAMAN_HOST": "127.0.0.1",
        "LLAMAMAN_PORT": str(ports[0]),
        "LLAMAMAN_PROXY_PORT": str(ports[1]),
        "PORT_RANGE_START": str(public[0]),
        "PORT_RANGE_END": str(public[-1]),
        "INTERNAL_PORT_RANGE_START": str(internal[0]),
        "INTERNAL_PORT_RANGE_END": str(internal[-1]),
        "DATA_DIR": str(folder / "data"),
        "MODELS_DIR": str(folder / "models"),
        "LOGS_DIR": str(folder / "logs"),
        "LLAMAMAN_RUNTIME": "process",
        "LLAMA_SERVER_BIN": str(standin.write_wrapper(folder / "llama-server")),
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "LLAMAMAN_BOOTSTRAP_API_KEY": key,
    }
    setup = Setup(folder, ports[0], ports[1], public, internal, env, key)
    from llamaman.testing.tiny_model import write_tiny_model

    write_tiny_model(setup.model_path)
    return setup


def spawn(setup: Setup) -> subprocess.Popen[bytes]:
    """Start ``llamaman serve`` and return at once; end it with :func:`end`."""
    with setup.log.open("ab") as log:
        return subprocess.Popen(
            [*command(), "serve"],
            env=setup.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=setup.folder,
        )


def start(setup: Setup) -> subprocess.Popen[bytes]:
    """Start ``llamaman serve`` and wait until /health answers.

    :raises processes.NotReady: it does not come up.
    """
    process = spawn(setup)
    try:
        processes.wait_until(lambda: healthy(setup), "llamaman serve", process, setup.log)
    except processes.NotReady:
        end(setup, process)
        raise
    return process


def healthy(setup: Setup) -> bool:
    """Whether /health of the management port answers 200."""
    try:
        return call(setup.port, "GET", "/health", key="")[0] == 200
    except OSError:
        return False


def call(
    port: int, method: str, path: str, *, key: str, body: object = None, seconds: float = 30
) -> tuple[int, Any]:
    """One request on a fresh connection: (status, parsed JSON, or the text where it is none).

    :raises OSError: no connection, or no answer in ``seconds``.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    data = None
    if body is not None:
        data, headers["Content-Type"] = json.dumps(body), "application/json"
    try:
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        text = answer.read()
    except http.client.HTTPException as problem:
        raise ConnectionError(f"{method} {path}: {problem!r}") from problem
    finally:
        connection.close()
    try:
        return answer.status, json.loads(text)
    except ValueError:
        return answer.status, text.decode(errors="replace")


def create_key(setup: Setup) -> Setup:
    """Have the running manager make a management key through its local admin socket."""
    arguments = ["keys", "create", "--name", "bench", "--scope", "manage", "--json"]
    done = subprocess.run(
        [*command(), *arguments], env=setup.env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ManagerError(
            f"`llamaman {' '.join(arguments)}` exited {done.returncode}: {done.stderr.strip()[-800:]}"
        )
    return replace(setup, manage_key=json.loads(done.stdout)["key"])


def manage(setup: Setup, method: str, path: str, body: object = None) -> Any:
    """One management call.

    :raises ManagerError: any status but 2xx; the text holds the answer.
    """
    status, answer = call(setup.port, method, path, key=setup.manage_key, body=body)
    if status // 100 != 2:
        raise ManagerError(f"{method} {path} answered {status}: {answer}")
    return answer


def launch(setup: Setup, parallel: int) -> str:
    """Launch the model and wait until it is healthy; its instance id."""
    body = {"model_path": str(setup.model_path), "ctx_size": CTX_SIZE, "parallel": parallel}
    instance = manage(setup, "POST", "/api/instances", body)["id"]
    wait_status(setup, instance, "healthy")
    return str(instance)


def wait_status(setup: Setup, instance: str, wanted: str, seconds: float = 30) -> None:
    """Poll one instance until it has ``wanted`` as its status.

    :raises ManagerError: it fails, or does not get there in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        record = manage(setup, "GET", f"/api/instances/{instance}")
        if record["status"] == wanted:
            return
        if record["status"] == "failed" or time.monotonic() > deadline:
            raise ManagerError(f"instance {instance} is {record['status']}, not {wanted}: {record}")
        time.sleep(0.01)


def stop_and_remove(setup: Setup, instance: str) -> None:
    """Stop an instance and forget its record."""
    manage(setup, "DELETE", f"/api/instances/{instance}")
    wait_status(setup, instance, "stopped")
    manage(setup, "DELETE", f"/api/instances/{instance}/remove")


def save_preset(setup: Setup) -> None:
    """Give the model a preset, so that a request by name launches with it."""
    path = urllib.parse.quote(str(setup.model_path).lstrip("/"))
    manage(setup, "PUT", f"/api/presets/{path}", {"ctx_size": CTX_SIZE, "parallel": 4})


def end(setup: Setup, process: subprocess.Popen[bytes]) -> None:
    """Stop a manager, then the engines that it leaves running for its next start to adopt."""
    processes.stop(process)
    for pid in processes.mentioning(str(setup.folder)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
