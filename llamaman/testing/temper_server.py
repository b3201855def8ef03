"""A stand-in for llama-server with a bad temper on demand. Standard library only, run as a script.

Started by the scripts that :mod:`llamaman.testing.tempers` writes; nothing imports it. It takes the command
line of llama-server, speaks enough of its HTTP (health, models, props, slots, metrics, chat, completions,
embeddings; plain and streamed; API key from the environment), and misbehaves as its first argument, a JSON
object, says.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn

_HELP = """----- common params -----

-h,    --help, --usage                  print usage and exit
--version                               show version and build info
-t,    --threads N                      number of CPU threads to use during generation (default: -1)
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = loaded from model)
-b,    --batch-size N                   logical maximum batch size (default: 2048)
-ub,   --ubatch-size N                  physical maximum batch size (default: 512)
-fa,   --flash-attn [on|off|auto]       set Flash Attention use ('on', 'off', or 'auto', default: 'auto')
-ctk,  --cache-type-k TYPE              KV cache data type for K
-ctv,  --cache-type-v TYPE              KV cache data type for V
-lm,   --load-mode MODE                 how the model file is read (default: auto)
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM (default: auto)
-sm,   --split-mode {none,layer,row}    how to split the model across multiple GPUs
-ts,   --tensor-split N0,N1,N2,...      fraction of the model to offload to each GPU
-ncmoe, --n-cpu-moe N                   keep the MoE weights of the first N layers in the CPU
-m,    --model FNAME                    model path to load
-a,    --alias STRING                   set model name aliases, comma-separated
-lv,   --verbosity, --log-verbosity N   set the verbosity threshold
--log-colors [on|off|auto]              set colored logging
--log-prefix                            enable prefix in log messages
--log-timestamps                        enable timestamps in log messages
--no-log-prefix                         disable prefix in log messages
-np,   --parallel N                     number of server slots (default: -1, -1 = auto)
-kvu,  --kv-unified, -no-kvu, --no-kv-unified
                                        use single unified KV buffer shared across all sequences
-cram, --cache-ram N                    set the maximum cache size in MiB (default: 8192)
-mm,   --mmproj FILE                    path to a multimodal projector file
--spec-type LIST                        type of speculative decoding
--spec-draft-n-max N                    number of tokens to draft
--host HOST                             ip address to listen, or path of a UNIX socket
--port PORT                             port to listen (default: 8080)
--ui, --no-ui                           whether to enable the Web UI (default: enabled)
--embedding, --embeddings               restrict to only support embedding use case
--metrics                               enable prometheus compatible metrics endpoint
--props                                 enable changing global properties via POST /props
--slots, --no-slots                     expose slots monitoring endpoint (default: enabled)
--sse-ping-interval N                   seconds between SSE pings
"""

#: What a server that has really failed to load leaves on stderr.
_NOT_GGUF = (
    "0.00.003.012 E gguf_init_from_file_impl: invalid magic characters: 'abcd', expected 'GGUF'",
    "0.00.003.040 E srv    load_model: failed to load model, '{model}'",
    "0.00.003.051 I srv  llama_server: exiting due to model loading error",
)


class State:
    """What the server knows about itself; one per process."""

    def __init__(self, settings: dict[str, Any], options: dict[str, str]) -> None:
        self.kind: str = settings["kind"]
        self.settings = settings
        self.started = time.monotonic()
        self.model = options.get("--model", "model.gguf")
        self.alias = options.get("--alias", "tempered")
        self.host = options.get("--host", "127.0.0.1")
        self.port = int(options.get("--port", "8080"))
        self.key = os.environ.get("LLAMA_API_KEY", "")
        self.lock = threading.Lock()
        self.requests = 0
        self.active = 0

    def get(self, name: str, default: float) -> float:
        return float(self.settings.get(name, default))

    def ready(self) -> bool:
        if self.kind == "never_ready":
            return False
        return (time.monotonic() - self.started) * 1000 >= self.get("load_ms", 0)


STATE: State


class Handler(BaseHTTPRequestHandler):
    """llama-server's routes, as far as a manager uses them."""

    protocol_version = "HTTP/1.1"
    server_version = "llama.cpp"
    sys_version = ""
    disable_nagle_algorithm = True

    def address_string(self) -> str:
        return "client"

    def log_message(self, format: str, *args: object) -> None:
        log("I srv  log_server_r: " + format % args)

    def answer(self, status: int, body: dict[str, Any] | list[Any] | bytes) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, bytes) else "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def refuse(self, status: int, message: str, kind: str) -> None:
        self.answer(status, {"error": {"code": status, "message": message, "type": kind}})

    def allowed(self) -> bool:
        if self.path not in ("/health", "/v1/health") and STATE.key:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if STATE.key not in (given, self.headers.get("X-Api-Key", "")):
                self.refuse(401, "Invalid API Key", "authentication_error")
                return False
        if not STATE.ready():
            self.refuse(503, "Loading model", "unavailable_error")
            return False
        return True

    def do_GET(self) -> None:
        if not self.allowed():
            return
        slots = [{"id": 0, "n_ctx": 4096, "is_processing": STATE.active > 0}]
        routes: dict[str, Any] = {
            "/health": {"status": "ok"},
            "/v1/health": {"status": "ok"},
            "/v1/models": {"object": "list", "data": [{"id": STATE.alias, "object": "model"}]},
            "/props": {
                "total_slots": int(STATE.get("slots", 1)),
                "default_generation_settings": {"n_ctx": 4096},
                "model_path": STATE.model,
            },
            "/slots": slots,
            "/metrics": f"llamacpp:requests_processing {STATE.active}\n".encode(),
        }
        found = routes.get(self.path.partition("?")[0])
        if found is None:
            self.refuse(404, "File Not Found", "not_found_error")
        else:
            self.answer(200, found)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        if not self.allowed():
            return
        with STATE.lock:
            STATE.requests += 1
            STATE.active += 1
            number = STATE.requests
        try:
            if STATE.kind == "crash_on_word" and str(STATE.settings.get("word", "poison")).encode() in raw:
                time.sleep(STATE.get("after_ms", 0) / 1000)
                crash()
            self.infer(json.loads(raw or b"{}"), number)
        except (BrokenPipeError, ConnectionResetError):
            log("I srv          stop: cancel task, id_task = 1")
        finally:
            with STATE.lock:
                STATE.active -= 1

    def infer(self, body: dict[str, Any], number: int) -> None:
        if STATE.kind == "hangs":
            time.sleep(86_400)
        if STATE.kind == "crash_on_request" and number >= STATE.get("nth", 1):
            crash()
        time.sleep(STATE.get("first_token_ms", 0) / 1000)
        tokens = int(body.get("max_tokens") or body.get("n_predict") or STATE.get("tokens", 16))
        if self.path == "/v1/embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [1.0, 0.0]}]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            self.answer(200, {"object": "list", "model": STATE.alias, "data": data, "usage": usage})
        elif self.path in ("/v1/chat/completions", "/v1/completions"):
            chat = self.path == "/v1/chat/completions"
            if body.get("stream"):
                self.stream(chat, tokens)
            else:
                self.whole(chat, tokens)
        else:
            self.refuse(404, "File Not Found", "not_found_error")

    def base(self, chat: bool, streamed: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if streamed else "chat.completion") if chat else "text_completion"
        return {"id": "chatcmpl-temper", "object": kind, "created": 1, "model": STATE.alias}

    def whole(self, chat: bool, tokens: int) -> None:
        die_after = STATE.get("chunks", 4) if STATE.kind == "dies_mid_stream" else tokens + 1
        for index in range(tokens):
            time.sleep(STATE.get("chunk_ms", 0) / 1000)
            wait_while_held()
            if index >= die_after:
                crash()
        text = "word " * tokens
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        choice = {"index": 0, "finish_reason": "stop", **said}
        self.answer(200, {**self.base(chat, False), "choices": [choice], "usage": usage})

    def stream(self, chat: bool, tokens: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for index in range(tokens):
            if STATE.kind == "dies_mid_stream" and index >= STATE.get("chunks", 4):
                crash()
            said = {"delta": {"content": "word "}} if chat else {"text": "word "}
            self.event({**self.base(chat, True), "choices": [{"index": 0, "finish_reason": None, **said}]})
            time.sleep(STATE.get("chunk_ms", 0) / 1000)
            wait_while_held()
        said = {"delta": {"content": ""}} if chat else {"text": ""}
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        choice = {"index": 0, "finish_reason": "stop", **said}
        self.event({**self.base(chat, True), "choices": [choice], "usage": usage})
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data: dict[str, Any] | str) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        raw = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))


def wait_while_held() -> None:
    while os.path.exists(str(STATE.settings.get("held_by", ""))):
        time.sleep(0.005)


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def crash() -> NoReturn:
    """End as a server does that the kernel killed: by a signal, without a word."""
    os.kill(os.getpid(), signal.Signals[str(STATE.settings.get("signal", "SIGSEGV"))])
    time.sleep(60)
    os._exit(1)


def die_loading() -> NoReturn:
    time.sleep(STATE.get("after_ms", 50) / 1000)
    for line in STATE.settings.get("lines") or _NOT_GGUF:
        log(str(line).replace("{model}", STATE.model))
    os._exit(int(STATE.get("exit_code", 1)))


def parse(arguments: list[str]) -> dict[str, str]:
    """Option -> value; a flag without a value gets an empty one."""
    options: dict[str, str] = {}
    last = ""
    for argument in arguments:
        if argument.startswith("-") and not argument[1:].replace(".", "").isdigit():
            last = {"-m": "--model", "-a": "--alias"}.get(argument, argument)
            options[last] = ""
        elif last:
            options[last] = argument
    return options


def make_server(state: State) -> ThreadingHTTPServer:
    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 512
        address_family = socket.AF_UNIX if state.host.endswith(".sock") else socket.AF_INET

        def server_bind(self) -> None:  # the base class looks up our host name, which may take seconds
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)
            self.server_name, self.server_port = "tempered", state.port

    return Server(state.host if state.host.endswith(".sock") else (state.host, state.port), Handler)  # type: ignore[arg-type]  # AF_UNIX takes a path


def main(arguments: list[str]) -> None:
    global STATE  # noqa: PLW0603 - the handler class is instantiated by the standard library, without arguments
    settings, options = json.loads(arguments[0]), parse(arguments[1:])
    if "--help" in options:
        print(_HELP, end="")
        return
    if "--version" in options:
        print("version: 0.6.0-dev (build 11434, commit temper)", file=sys.stderr)
        return
    STATE = State(settings, options)
    try:
        server = make_server(STATE)
    except OSError:
        log(
            "0.00.001.000 E srv         start: couldn't bind HTTP server socket, "
            f"hostname: {STATE.host}, port: {STATE.port}"
        )
        log("0.00.001.100 E srv  llama_server: exiting due to HTTP server error")
        sys.exit(1)
    ignored = STATE.kind == "ignores_sigterm"
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignored else lambda *_: os._exit(0))
    if STATE.kind == "dies_loading":
        threading.Thread(target=die_loading, daemon=True).start()
        STATE.settings["load_ms"] = 3_600_000
    log("0.00.001.000 I srv    load_model: loading model")
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
