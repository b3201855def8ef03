"""`llamaman demo`: from nothing to a streamed answer, with every step shown. Run by `make demo`.

Guarantees: everything it writes lies in `.demo/` below the current folder unless DATA_DIR, MODELS_DIR or LOGS_DIR
say otherwise; it talks to the manager only as any user would (the CLI, and the API with a key); a step that fails
says what to do; and however it ends, no process is left.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaman import demo_server
from llamaman.demo_model import FILE as DEMO_FILE
from llamaman.demo_model import DemoModel, NoModel, find_or_get
from llamaman.demo_server import DemoFailed
from llamaman.gateway.admin_socket import too_long
from llamaman.runtimes.engines import find_binary
from llamaman.runtimes.openmp import engine_environment

QUESTION = "What is a llama?"
MANNER = "Answer in one or two short sentences."
MAX_TOKENS = 120
ANSWER_TIMEOUT_S = 120.0
#: Settings of another installation that would take the demo away from its own folder.
FOREIGN = ("LLAMAMAN_URL", "LLAMAMAN_API_KEY", "DATABASE_URL", "LLAMAMAN_STORAGE", "CLUSTER_ENABLED")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the demo runs: its environment and what was chosen from it."""

    environment: dict[str, str]
    folder: Path
    host: str
    dashboard_port: int
    api_port: int

    @property
    def log(self) -> Path:
        """What the manager prints."""
        return self.folder / "llamaman.log"


def say(text: str) -> None:
    """One line of progress."""
    print(f"[demo] {text}", flush=True)


def run() -> int:
    """Run the demo and return its exit status: 0 when the answer came and all was stopped, 1 when a step failed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    demo_server.become_reaper()
    try:
        return _demo()
    except DemoFailed as failure:
        print(f"[demo] FAILED: {failure}", file=sys.stderr, flush=True)
    except (OSError, NoModel) as error:
        print(
            f"[demo] FAILED: {error}. Check the free space here and the network.", file=sys.stderr, flush=True
        )
    except KeyboardInterrupt:
        say("stopped")
        return 130
    finally:
        left = demo_server.sweep()
        if left:
            say(f"ended {len(left)} process(es) that were still running")
    return 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _demo() -> int:
    place = prepare(Path.cwd() / ".demo")
    say(f"1/6 engine: {engine(place)}")
    folders = [Path(part) for part in place.environment["MODELS_DIR"].split(":")]
    say("2/6 model")
    model = find_or_get(folders, say)
    say(f"  {model.path} ({model.path.stat().st_size / 1e6:.0f} MB; {model.source})")
    say(f"3/6 starting LlamaMan (its log: {place.log})")
    server = demo_server.start(place.environment, place.log)
    undo: list[tuple[str, ...]] = []
    try:
        demo_server.wait_ready(server, f"http://{place.host}:{place.dashboard_port}", place.log)
        key = create_key(place, undo)
        name = launch(place, model, undo)
        say(f"6/6 asking through port {place.api_port}: {QUESTION}")
        chat(place, key, name)
        if not model.sensible:
            say("that was noise: no real model could be fetched; put a GGUF file into MODELS_DIR for sense")
        elif model.path.name == DEMO_FILE:
            say(
                "a model this small writes fluently and is often wrong; MODELS_DIR=... make demo takes a better one"
            )
        if os.environ.get("DEMO_EXIT") == "1":
            print(what_next(place, key, name), flush=True)
            return 0
        return keep_running(server, place, what_next(place, key, name))
    finally:
        clean_up(server, place, undo)


def keep_running(server: subprocess.Popen[bytes], place: Place, invitation: str) -> int:
    """Say how to go on and wait for Ctrl-C (0), or for the manager to end by itself (DemoFailed)."""
    try:
        # Inside the try: whoever reads "Ctrl-C" may press it before this process runs again.
        print(invitation, flush=True)
        status = server.wait()
    except KeyboardInterrupt:
        return 0
    raise DemoFailed(f"the manager ended with status {status}; it said:\n{demo_server.tail(place.log)}")


def clean_up(server: subprocess.Popen[bytes], place: Place, undo: list[tuple[str, ...]]) -> None:
    """Take back what the demo made, newest first, and end the manager; nothing interrupts this."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    say("stopping the model and LlamaMan")
    for command in reversed(undo):
        if server.poll() is None:
            result = llamaman(place, *command)
            if result.returncode != 0:
                say(f"  llamaman {shlex.join(command)}: {result.stderr.strip()}")
    demo_server.stop(server)


def prepare(folder: Path) -> Place:
    """The environment of the demo's manager; folders are created, busy ports are replaced."""
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    defaults = {
        "LLAMAMAN_NODE_NAME": "demo",
        "LLAMAMAN_RUNTIME": "process",
        "LLAMAMAN_HOST": "127.0.0.1",
        "DATA_DIR": str(folder / "data"),
        "MODELS_DIR": str(folder / "models"),
        "LOGS_DIR": str(folder / "logs"),
    }
    for name, value in defaults.items():
        if not environment.get(name):
            environment[name] = value
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Its own runtime folder even where XDG_RUNTIME_DIR is set: another LlamaMan may listen there.
    runtime = folder / "run"
    if too_long(runtime / "llamaman"):  # as LlamaMan names its folder there
        runtime = Path(tempfile.mkdtemp(prefix="llamaman-demo-"))
    environment["XDG_RUNTIME_DIR"] = str(runtime)
    for path in (runtime, Path(environment["DATA_DIR"]), Path(environment["LOGS_DIR"])):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    host = environment["LLAMAMAN_HOST"]
    ports = {}
    for name, usual, what in (
        ("LLAMAMAN_PORT", 5000, "dashboard"),
        ("LLAMAMAN_PROXY_PORT", 42069, "inference API"),
    ):
        ports[name] = free_port(host, int(environment.get(name) or usual), what)
        environment[name] = str(ports[name])
    local = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return Place(environment, folder, local, ports["LLAMAMAN_PORT"], ports["LLAMAMAN_PROXY_PORT"])


def free_port(host: str, wanted: int, what: str) -> int:
    """`wanted`, or another free port when something else listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in (wanted, 0):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if port == 0:
                    raise DemoFailed(
                        f"cannot listen on {host}: {error}; choose another LLAMAMAN_HOST"
                    ) from error
                continue
            chosen = int(probe.getsockname()[1])
        if chosen != wanted:
            say(f"port {wanted} is taken here; the {what} gets port {chosen} instead")
        return chosen
    raise AssertionError("the loop returns or raises")


def engine(place: Place) -> str:
    """The engine that will run, in words. Raises DemoFailed when there is none."""
    configured = place.environment.get("LLAMA_SERVER_BIN")
    binary = find_binary(Path(configured) if configured else None)
    if binary is not None:
        return f"llama-server at {binary}"
    if configured:
        raise DemoFailed(
            f"LLAMA_SERVER_BIN names {configured}, which cannot be executed: correct or unset it"
        )
    probe = "import xllamacpp, importlib.metadata as m; print(m.version('xllamacpp'))"
    environment = {**place.environment, **engine_environment()}
    found = subprocess.run(
        [sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=False
    )
    if found.returncode == 0:
        return f"embedded (xllamacpp {found.stdout.strip()}), in a process of its own"
    reason = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise DemoFailed(
        f"the embedded engine cannot be loaded: {reason}. Install it with `pip install xllamacpp` "
        "(Debian also needs libgomp1), or set LLAMA_SERVER_BIN to a llama-server."
    )


def llamaman(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would, on the demo's admin socket."""
    return subprocess.run(
        [sys.executable, "-m", "llamaman", *arguments],
        env=place.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def asked(place: Place, *arguments: str) -> dict[str, Any]:
    """The JSON answer of a `llamaman` command. Raises DemoFailed with the command's own words."""
    result = llamaman(place, *arguments, "--json")
    if result.returncode != 0:
        words = result.stderr.strip() or result.stdout.strip()
        raise DemoFailed(f"`llamaman {shlex.join(arguments)}` failed: {words}\n{demo_server.tail(place.log)}")
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def create_key(place: Place, undo: list[tuple[str, ...]]) -> str:
    """An API key that may ask models and nothing else."""
    say("4/6 an API key: llamaman keys create --name demo --scope inference")
    made = asked(place, "keys", "create", "--name", "demo", "--scope", "inference")
    undo.append(("keys", "revoke", str(made["id"])))
    return str(made["key"])


def launch(place: Place, model: DemoModel, undo: list[tuple[str, ...]]) -> str:
    """Launch the model, wait until it answers, and return the name to ask for."""
    say(f"5/6 launching: llamaman launch {model.path.stem.lower()} --wait")
    started = time.monotonic()
    instance = asked(place, "launch", str(model.path.absolute()), "--wait")
    undo += [("rm", str(instance["id"])), ("stop", str(instance["id"]), "--force")]
    say(f"  {instance['model']} is {instance['status']} after {time.monotonic() - started:.1f} s")
    return str(instance["model"])


def chat(place: Place, key: str, model: str) -> None:
    """Ask QUESTION and print the answer as it comes. Raises DemoFailed when there is none."""
    started = time.monotonic()
    first: float | None = None
    pieces = 0
    print("\n    ", end="", flush=True)
    for piece in stream(place, key, model):
        first = first or time.monotonic() - started
        pieces += 1
        print(piece.replace("\n", "\n    "), end="", flush=True)
    print("\n", flush=True)
    if first is None:
        raise DemoFailed(f"the answer was empty; the manager said:\n{demo_server.tail(place.log)}")
    took = time.monotonic() - started
    say(f"{pieces} pieces in {took:.1f} s, the first after {first * 1000:.0f} ms")


def stream(place: Place, key: str, model: str) -> Iterator[str]:
    """The pieces of text of one streamed chat completion."""
    body = {
        "model": model,
        "messages": [{"role": "system", "content": MANNER}, {"role": "user", "content": QUESTION}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    connection = http.client.HTTPConnection(place.host, place.api_port, timeout=ANSWER_TIMEOUT_S)
    try:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            text = answer.read(4096).decode("utf-8", errors="replace")
            raise DemoFailed(f"the API answered {answer.status}: {text}\n{demo_server.tail(place.log)}")
        for line in answer:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise DemoFailed(f"the answer broke off: {event['error']}\n{demo_server.tail(place.log)}")
                for choice in event.get("choices", ()):
                    if choice["delta"].get("content"):
                        yield choice["delta"]["content"]
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise DemoFailed(f"the answer did not come: {error!r}\n{demo_server.tail(place.log)}") from error
    finally:
        connection.close()


def what_next(place: Place, key: str, model: str) -> str:
    """What the reader can do now, ready to paste."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    program = Path(sys.executable).with_name("llamaman")
    return f"""
  LlamaMan runs. In another terminal:

    curl http://{place.host}:{place.api_port}/v1/chat/completions \\
      -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
      -d '{body}'

    export XDG_RUNTIME_DIR={shlex.quote(place.environment["XDG_RUNTIME_DIR"])}
    {shlex.quote(str(program))} ps          (also: models, launch, stop, logs -f, keys, settings; --help)

  Dashboard: http://{place.host}:{place.dashboard_port}  (make the first user there; more pages come later)
  Any OpenAI client works: base URL http://{place.host}:{place.api_port}/v1, the key above, model {model}
  To stop: Ctrl-C. The model and the data stay in {place.folder}; `make clean` removes them.
"""
