"""A real ``llamaman serve`` process in folders and on ports of its own, and everything a test asks of it.

For end-to-end tests, ours and those of plugins, and for benchmarks. Guarantees that nothing of a LlamaMan
that may be installed here is touched: data, models and logs lie in one folder, the admin socket in another
of ours, every port is chosen free, the environment holds nothing of the caller's but the locale, and
:meth:`Manager.close` ends the manager and every engine that it started, by their ids. Engines are known by
the marks in their environment, so they are found whatever they are called and whoever forgot them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from llamaman.testing import processes
from llamaman.testing.wire import Answer, Request, call, is_overloaded

CHAT = "/v1/chat/completions"

#: What a test's instance is launched with where the test does not say otherwise: two cores are shared.
SMALL: Mapping[str, Any] = {"threads": 1, "ctx_size": 4096}

#: Launched with these, an engine goes on where its context is full, so that an answer ends when its reader does:
#: what must still be running while a test looks at it is asked for :data:`FOR_EVER` tokens. No number of tokens
#: is enough for that otherwise, where the engine is fast and the test waits for a processor.
ENDLESS: Mapping[str, Any] = {"extra_args": "--context-shift"}
FOR_EVER = 10**8

PATIENCE_S = 60.0
"""How long anything is waited for that comes at once where nobody else needs the processors."""

T = TypeVar("T")


class ManagerError(Exception):
    """LlamaMan answered something else than its user needs; the text holds the answer."""


@dataclass(frozen=True, slots=True)
class Key:
    """An API key just made."""

    id: str
    secret: str


def command() -> list[str]:
    """How to run the CLI that belongs to this interpreter: its script when there is one, else the package."""
    script = Path(sys.executable).parent / "llamaman"
    return [str(script)] if script.exists() else [sys.executable, "-m", "llamaman"]


def unavailable() -> str | None:
    """Why ``llamaman serve`` cannot run here, None when it can."""
    done = subprocess.run([*command(), "serve", "--help"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    last = lines[-1] if lines else "it wrote nothing"
    return f"`{' '.join(command())} serve --help` exited {done.returncode}: {last}"


class Manager:
    """One manager; made stopped. ``with Manager(...) as manager:`` starts it and cleans up.

    :param folder: a folder for it alone; created. Models are expected in :attr:`models`.
    :param binary: the llama-server it shall use, or None for the embedded engine.
    :param env: further environment variables, which win over ours.
    :param instance_ports: how many ports each of the two instance ranges has.
    :param program: what to run instead of the CLI that belongs to this interpreter; it is given ``serve``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        binary: Path | None = None,
        env: Mapping[str, str] | None = None,
        instance_ports: int = 8,
        program: Sequence[str] | None = None,
    ) -> None:
        self.folder = folder
        self.program = program or command()
        self.models = folder / "models"
        self.data = folder / "data"
        self.logs = folder / "logs"
        self.log = folder / "manager.log"
        for each in (self.models, self.data, self.logs, folder / "path"):
            each.mkdir(parents=True, exist_ok=True)
        self.data.chmod(0o700)
        # Not below the folder: the address of a socket has some hundred bytes, and tests have long names.
        self._runtime_dir = Path(tempfile.mkdtemp(prefix="llamaman-"))
        ports = processes.free_ports(2 + 2 * instance_ports)
        self.port, self.proxy_port = ports[:2]
        self.public_ports = tuple(ports[2 : 2 + instance_ports])
        self.internal_ports = tuple(ports[2 + instance_ports :])
        self.node = f"test-{secrets.token_hex(6)}"
        self.inference_key = "llm-" + secrets.token_urlsafe(32)
        self.env = {name: os.environ[name] for name in ("LANG", "LC_ALL", "HOME") if name in os.environ}
        self.env |= {
            "PATH": str(folder / "path"),  # empty, so that no llama-server of this machine is found
            "LLAMAMAN_NODE_NAME": self.node,
            "LLAMAMAN_HOST": "127.0.0.1",
            "LLAMAMAN_PORT": str(self.port),
            "LLAMAMAN_PROXY_PORT": str(self.proxy_port),
            "PORT_RANGE_START": str(self.public_ports[0]),
            "PORT_RANGE_END": str(self.public_ports[-1]),
            "INTERNAL_PORT_RANGE_START": str(self.internal_ports[0]),
            "INTERNAL_PORT_RANGE_END": str(self.internal_ports[-1]),
            "DATA_DIR": str(self.data),
            "MODELS_DIR": str(self.models),
            "LOGS_DIR": str(self.logs),
            "LLAMAMAN_RUNTIME": "process",
            "XDG_RUNTIME_DIR": str(self._runtime_dir),
            "LLAMAMAN_BOOTSTRAP_API_KEY": self.inference_key,
        }
        if binary is not None:
            self.env["LLAMA_SERVER_BIN"] = str(binary)
        self.env.update(env or {})
        self.process: subprocess.Popen[bytes] | None = None
        self._key_names = 0

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- its process ---------------------------------------------------------------------------------

    def spawn(self) -> None:
        """Start ``llamaman serve`` and return at once."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        self._runtime_dir.mkdir(mode=0o700, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program, "serve"],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )

    def start(self) -> None:
        """Start it and wait until it is ready.

        :raises processes.NotReady: it does not come up.
        """
        self.spawn()
        self.wait_ready()

    def wait_ready(self, seconds: float = 3 * PATIENCE_S) -> None:
        """Wait until management answers through Flask, which is the last part of it to come up.

        :raises processes.NotReady: it exits or is not ready in time.
        """
        processes.wait_until(self._answers, "llamaman serve", self.running, self.log, seconds)

    def _answers(self) -> bool:
        try:
            return self.admin("GET", "/api/instances", seconds=20).status == 200
        except OSError:
            return False

    @property
    def running(self) -> subprocess.Popen[bytes]:
        """Its process; fails when it was never started."""
        assert self.process is not None, "the manager was not started"
        return self.process

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL: no word to anybody. Its engines go on."""
        self.running.kill()
        self.running.wait()

    def terminate(self, seconds: float = PATIENCE_S) -> int:
        """SIGTERM; returns its exit status.

        :raises subprocess.TimeoutExpired: it did not end.
        """
        self.running.terminate()
        return self.running.wait(seconds)

    def restart(self) -> None:
        """End it if it runs and start it again in the same folders and on the same ports."""
        if self.is_alive:
            self.terminate()
        self.start()

    def close(self) -> None:
        """End the manager, then every engine that carries its mark, each by its own id."""
        if self.process is not None:
            processes.stop(self.process, seconds=PATIENCE_S)
        for pid in self.engines():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._runtime_dir, ignore_errors=True)

    def output(self) -> str:
        """What the manager wrote so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # --- asking it -----------------------------------------------------------------------------------

    @property
    def admin_socket(self) -> Path:
        """Where its local admin socket lies."""
        from llamaman.gateway.admin_socket import socket_path

        return socket_path(Path(self.env["XDG_RUNTIME_DIR"]) / "llamaman", self.env["LLAMAMAN_NODE_NAME"])

    def admin(
        self, method: str, path: str, body: object = None, *, seconds: float = 3 * PATIENCE_S
    ) -> Answer:
        """One call through the admin socket, whatever its status."""
        return call(self.admin_socket, method, path, body=body, seconds=seconds)

    def manage(self, method: str, path: str, body: object = None, *, seconds: float = 3 * PATIENCE_S) -> Any:
        """One call through the admin socket that must succeed: its JSON.

        One that is told to come again, since no password could be hashed on a machine this busy, does so.

        :raises ManagerError: any status but 2xx.
        """
        deadline = time.monotonic() + PATIENCE_S
        answer = self.admin(method, path, body, seconds=seconds)
        while is_overloaded(answer) and time.monotonic() < deadline:
            answer = self.admin(method, path, body, seconds=seconds)
        if answer.status // 100 != 2:
            raise ManagerError(f"{method} {path} answered {answer.status}: {answer.text}")
        return answer.json()

    def http(self, method: str, path: str, body: object = None, *, key: str = "", **options: Any) -> Answer:
        """One call to the management port over TCP."""
        return call(self.port, method, path, body=body, key=key, **options)

    def key(self, scope: str = "manage", **fields: Any) -> Key:
        """Make an API key; further fields as in ``POST /api/api-keys``."""
        self._key_names += 1
        made = self.manage(
            "POST", "/api/api-keys", {"name": f"key-{self._key_names}", "scope": scope, **fields}
        )
        return Key(made["id"], made["key"])

    def revoke(self, key: Key) -> None:
        """Revoke a key."""
        self.manage("DELETE", f"/api/api-keys/{key.id}")

    def setting(self, **patch: Any) -> None:
        """Change settings."""
        self.manage("POST", "/api/settings", patch)

    def preset(self, model: str, **options: Any) -> None:
        """Save a model's preset, :data:`SMALL` included."""
        path = quote(str(self.models / f"{model}.gguf").lstrip("/"))
        self.manage("PUT", f"/api/presets/{path}", {**SMALL, **options})

    # --- instances -----------------------------------------------------------------------------------

    def instances(self) -> list[dict[str, Any]]:
        """Every instance as REST shows it."""
        return list(self.manage("GET", "/api/instances"))

    def instance(self, instance_id: str) -> dict[str, Any]:
        """One instance."""
        return dict(self.manage("GET", f"/api/instances/{instance_id}"))

    def launch(self, model: str = "tiny", wait: str | None = "healthy", **options: Any) -> dict[str, Any]:
        """Launch a model with :data:`SMALL` and ``options``, and wait for a status (None: do not)."""
        body = {"model_path": str(self.models / f"{model}.gguf"), **SMALL, **options}
        made = dict(self.manage("POST", "/api/instances", body))
        return self.wait_status(made["id"], wait) if wait else made

    def wait_status(self, instance_id: str, status: str, seconds: float = PATIENCE_S) -> dict[str, Any]:
        """Poll until an instance has that status; the instance.

        :raises ManagerError: it fails instead, or does not get there in time.
        """

        def reached() -> dict[str, Any] | None:
            seen = self.instance(instance_id)
            if seen["status"] == status and seen["state"] != "stopping":
                return seen  # one that is stopping has the status of where it goes
            if seen["status"] == "failed":
                raise ManagerError(f"instance {instance_id} is failed, not {status}: {seen['reason']}")
            return None

        return self.until(reached, f"instance {instance_id} to be {status}", seconds)

    def until(self, condition: Callable[[], T | None], what: str, seconds: float = PATIENCE_S) -> T:
        """The first truthy value of ``condition``, polled every 10 ms.

        :raises ManagerError: there was none in time.
        """
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise ManagerError(f"waited {seconds:g} s in vain for {what}; {self._situation()}")
            time.sleep(0.01)
        return value

    def _situation(self) -> str:
        try:
            seen = [(i["id"][:8], i["state"], i["reason"], i["queue"]) for i in self.instances()]
        except (OSError, ManagerError) as error:
            return f"it does not answer: {error}"
        return f"instances: {seen}"

    def stop(self, instance_id: str, *, force: bool = False) -> None:
        """Stop an instance; returns when it is stopped."""
        self.manage("DELETE", f"/api/instances/{instance_id}" + ("?force=true" if force else ""))

    def remove(self, instance_id: str) -> None:
        """Forget a stopped instance."""
        self.manage("DELETE", f"/api/instances/{instance_id}/remove")

    def clear(self) -> None:
        """Stop and forget every instance."""
        for each in self.instances():
            if each["status"] not in ("stopped", "failed"):
                self.stop(each["id"], force=True)
            self.remove(each["id"])

    # --- inference -----------------------------------------------------------------------------------

    def ask(
        self,
        model: str | None = "tiny",
        *,
        port: int | None = None,
        key: str | None = None,
        prompt: str = "hello",
        stream: bool = False,
        max_tokens: int = 8,
        path: str = CHAT,
        seconds: float = 2 * PATIENCE_S,
        **fields: Any,
    ) -> Request:
        """Send a chat request (to the proxy port, with the inference key) and return before its answer."""
        body: dict[str, Any] = {"max_tokens": max_tokens, "stream": stream, **fields}
        if model is not None:
            body["model"] = model
        if path == CHAT:
            body.setdefault("messages", [{"role": "user", "content": prompt}])
        else:
            body.setdefault("prompt", prompt)
        secret = self.inference_key if key is None else key
        return Request(port or self.proxy_port, "POST", path, key=secret, body=body, seconds=seconds)

    def chat(self, model: str | None = "tiny", **options: Any) -> Answer:
        """:meth:`ask`, and the whole answer."""
        return self.ask(model, **options).answer()

    # --- engines -------------------------------------------------------------------------------------

    def engines(self, instance_id: str | None = None) -> dict[int, dict[str, str]]:
        """The engine processes that carry this manager's mark (pid -> environment), known to it or not."""
        found = {}
        for pid in processes.pids():
            environ = processes.environ(pid)
            if environ.get("LLAMAMAN_NODE") != self.env["LLAMAMAN_NODE_NAME"]:
                continue
            if instance_id in (None, environ.get("LLAMAMAN_INSTANCE_ID")):
                found[pid] = environ
        return found

    def slots(self, instance_id: str) -> list[dict[str, Any]]:
        """What the engine itself says about its slots, asked directly with its own key."""
        (environ,) = self.engines(instance_id).values()
        port = int(environ["LLAMAMAN_ADDRESS"].rpartition(":")[2])
        return list(call(port, "GET", "/slots", key=environ["LLAMA_API_KEY"]).json())

    def busy_slots(self, instance_id: str) -> int:
        """How many of the engine's slots compute."""
        return sum(bool(slot["is_processing"]) for slot in self.slots(instance_id))
