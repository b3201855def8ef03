"""The embedded engine: llama.cpp's own HTTP server out of the ``xllamacpp`` package, in a process of its own.

Run as a script by the process runtime, which has translated the launch (:mod:`llamaman.runtimes.embedded`).
Nothing of LlamaMan is imported here, so that a model is served some 80 ms after the start. From outside it
behaves like llama-server: it answers 503 while loading, logs to stderr, ends with 1 when the model cannot be
loaded and with 0 on SIGTERM; before the model is loaded SIGTERM ends it at once.

``LLAMAMAN_EMBEDDED`` holds a JSON list of ``[attribute path, value]``; a value ``{"enum": [type, member]}``
is looked up in the package. ``LLAMA_API_KEY`` holds the key. Both are removed from what libraries see.
"""

import json
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

#: Exit status for a launch that this engine cannot express (EX_USAGE of sysexits.h).
EX_USAGE = 64
_CHECK_EVERY_MS = 2_000
_LAST_LINES_S = 5
_DESCRIPTORS = 256  # the listener is opened before any client can be


def main() -> NoReturn:
    assignments = json.loads(os.environ.pop("LLAMAMAN_EMBEDDED"))
    key = os.environ.pop("LLAMA_API_KEY", "")
    import xllamacpp

    params = xllamacpp.CommonParams()
    for path, value in assignments:
        try:
            assign(xllamacpp, params, path, value)
        except (AttributeError, TypeError, ValueError, AssertionError, OverflowError) as error:
            fail(EX_USAGE, f"error: embedded engine cannot express '{path}': {error}")
    if key:
        params.api_keys = [key]
    before = listening_sockets()
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:  # its own log lines have said why
        fail(1, "embedded engine: exiting, the server did not start")
    serve(server, listening_sockets() - before)


def assign(module: Any, params: Any, path: str, value: Any) -> None:
    """Set the attribute that ``path`` names, parts separated by dots, below ``params``."""
    *owners, name = path.split(".")
    target = params
    for owner in owners:
        target = getattr(target, owner)
    if isinstance(value, dict) and "enum" in value:
        value = getattr(getattr(module, value["enum"][0]), value["enum"][1])
    elif isinstance(value, dict) and "enums" in value:
        value = [getattr(getattr(module, kind), member) for kind, member in value["enums"]]
    elif isinstance(value, dict) and "loras" in value:
        value = [module.CommonAdapterLoraInfo(file, scale) for file, scale in value["loras"]]
    elif isinstance(value, dict) and "set" in value:
        value = set(value["set"])
    elif isinstance(value, dict) and "bits" in value:
        value = int(getattr(target, name)) | int(getattr(getattr(module, value["bits"][0]), value["bits"][1]))
    elif isinstance(value, dict) and "padded" in value:
        value = (value["padded"] + [0.0] * len(getattr(target, name)))[: len(getattr(target, name))]
    elif not hasattr(target, name):  # a renamed parameter must not become a new, idle attribute
        raise AttributeError(f"xllamacpp has no parameter '{path}'")
    setattr(target, name, value)


def serve(server: Any, listening: set[int]) -> NoReturn:
    """Wait for the signal to end, or for the server to have stopped listening by itself."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the pipe says it
    poll = select.poll()
    poll.register(readable, select.POLLIN)
    while True:
        if poll.poll(_CHECK_EVERY_MS):
            # Nothing is left to write, and taking the server down in order would wait for open streams.
            print("embedded engine: terminated by a signal", file=sys.stderr, flush=True)
            os._exit(0)
        if not all(listens(descriptor) for descriptor in listening):
            del server  # says in the log what became of it
            fail(1, "embedded engine: exiting, the server's listener is gone")


def listening_sockets() -> set[int]:
    """Our descriptors that accept connections; the sandbox shows no /proc to list them in."""
    return {descriptor for descriptor in range(_DESCRIPTORS) if listens(descriptor)}


def listens(descriptor: int) -> bool:
    """Whether ``descriptor`` is a listening socket now."""
    try:
        copy = os.dup(descriptor)
    except OSError:  # closed
        return False
    try:
        probe = socket.socket(fileno=copy)
    except OSError:  # no socket
        os.close(copy)
        return False
    with probe:
        try:
            return bool(probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        except OSError:
            return False


def fail(status: int, message: str) -> NoReturn:
    """End in order, since the library writes its last lines, which hold the cause, from a thread of its own."""
    print(message, file=sys.stderr, flush=True)
    signal.alarm(_LAST_LINES_S)  # should that thread hang, the default action of the signal ends us
    sys.exit(status)


if __name__ == "__main__":
    main()
