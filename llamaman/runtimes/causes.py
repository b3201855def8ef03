"""Why an engine died, in words a user understands. Pure.

For everybody who waits for a model: the sentences hold no host path, no port and no log line, which only
callers with MANAGE may see. Source of the tell-tales: llama-server b11434, each line produced by a real
process in the tests; the CUDA and ROCm ones from its source.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Final

from llamaman.records import Exit

#: A runtime writes a line that begins so before each start, since a log file outlives one run.
START_MARK: Final = "=== LlamaMan starts"

#: Tell-tale -> sentence; the first that matches any line wins, so a cause stands before its consequences.
#: Groups may be used in the sentence and match only names that say nothing of the host.
_TELL_TALES: Final[tuple[tuple[str, str], ...]] = (
    # the command line
    (
        r"^error: embedded engine cannot express '([\w.+-]{1,60})",
        "the embedded engine cannot do '{}'; use llama-server",
    ),
    (r"error: invalid argument: (-{1,2}[\w-]{1,60})", "llama-server does not know the flag {}"),
    (
        r'error while handling argument "(-{1,2}[\w-]{1,60})": the argument has been removed',
        "the flag {} was removed from llama-server",
    ),
    (
        r'error while handling argument "(?:-dev|--device)"',
        "a device named in the launch settings is not on this machine, or this build cannot use it",
    ),
    (r'error while handling argument "(-{1,2}[\w-]{1,60})"', "llama-server refuses the value of {}"),
    (r'error while handling environment variable "(\w{1,60})"', "llama-server refuses the value of {}"),
    # the address
    (
        r"couldn't bind HTTP server socket",
        "its internal port is in use, or its address is not one of this machine",
    ),
    # memory
    (
        r"(?:cudaMalloc|hipMalloc) failed: out of memory|ErrorOutOfDeviceMemory|CUDA error: out of memory",
        "not enough GPU memory; use fewer GPU layers, a smaller context or a smaller quantisation",
    ),
    (
        r"failed to allocate buffer for kv cache",
        "not enough memory for the context; use a smaller context size",
    ),
    (
        r"insufficient memory|std::bad_alloc|Cannot allocate memory|failed to allocate \S+ buffer"
        r"|unable to allocate \S+ buffer",
        "not enough memory",
    ),
    (
        r"failed to mlock|mlock failed",
        "the memory cannot be locked; raise the lock limit or change the load mode",
    ),
    # what stands beside the model
    (
        r"failed to load CLIP model|failed to load multimodal model",
        "the multimodal projector (mmproj) cannot be loaded; it must belong to this model",
    ),
    (r"failed to load lora adapter", "a LoRA adapter cannot be loaded; it must belong to this model"),
    (
        r"doesn't contain MTP layers|failed to create MTP context",
        "the model has no MTP layers; turn speculative decoding off",
    ),
    (
        r"quantized V cache requires flash_attn",
        "a quantised V cache needs flash attention; set flash_attn to on",
    ),
    (r"failed to load draft model", "the draft model cannot be loaded"),
    # the model file
    (r"failed to open GGUF file .*\(No such file", "the model file is not there any more"),
    (r"failed to open GGUF file .*\(Permission denied", "the engine may not read the model file"),
    (r"failed to open GGUF file", "the model file cannot be opened"),
    (r"invalid magic characters", "the file is not a GGUF file"),
    (r"failed to read magic", "the model file is empty or a folder"),
    (
        r"this GGUF file is version (\d{1,9})",
        "the file has GGUF version {}, which this llama.cpp does not know; update the engine",
    ),
    (
        r"not within the file bounds|failed to read key-value pairs|failed to read tensor"
        r"|exceeds remaining file size|failed to read header|invalid split file|missing .{0,20}split",
        "the model file is incomplete or damaged (a partial download?); download it again",
    ),
    (
        r"unknown model architecture: '([\w.-]{1,60})'",
        "this llama.cpp does not know the model's architecture '{}'; update the engine",
    ),
    (r"unknown pre-tokenizer type", "this llama.cpp does not know the model's tokenizer; update the engine"),
    (
        r"missing tensor|wrong number of tensors|key not found in model",
        "the model file lacks parts that this llama.cpp needs; it was made for another version",
    ),
    # the device, the program
    (r"CUDA error|ROCm error|HIP error|hipError|ggml_cuda.*error", "the GPU driver reported an error"),
    (r"ErrorDeviceLost", "the GPU was reset while the model ran"),
    (r"failed to reload model after sleeping", "the model could not be loaded again after sleeping"),
    (
        r"error while loading shared libraries: ([\w.+-]{1,80})",
        "the llama-server program needs the library {}, which this machine lacks",
    ),
    (
        r"No module named 'xllamacpp|ImportError: .*xllamacpp",
        "the embedded engine's package cannot be loaded; install llamaman[embedded] again",
    ),
    (r"Illegal instruction", "this processor lacks an instruction that the engine was built for"),
    # the general form of a failed load, when nothing above said more
    (r"exiting due to model loading error", "the model could not be loaded"),
    (r"exiting due to HTTP server error", "its HTTP server could not start"),
)

_COMPILED: Final = tuple((re.compile(pattern), sentence) for pattern, sentence in _TELL_TALES)

_SIGNALS: Final = {
    signal.SIGSEGV: "it crashed (SIGSEGV)",
    signal.SIGBUS: "it crashed (SIGBUS); a file changed or was cut while it was in use",
    signal.SIGABRT: "it gave up after an internal error (SIGABRT)",
    signal.SIGILL: "it crashed (SIGILL); this processor lacks an instruction that the engine was built for",
    signal.SIGFPE: "it crashed (SIGFPE)",
    signal.SIGTERM: "it was asked to end (SIGTERM)",
    signal.SIGINT: "it was asked to end (SIGINT)",
}

_STATUSES: Final = {
    0: "it ended by itself",
    126: "the engine program could not be executed",
    127: "the engine program or a part of it was not found",
}


#: What only a container runtime can know, as clauses for :attr:`Exit.cause`.
CONTAINER_KILLED: Final = "somebody killed its container (docker kill)"
CONTAINER_STOPPED: Final = "somebody stopped its container (docker stop)"
CONTAINER_REMOVED: Final = "somebody removed its container (docker rm)"
CONTAINER_CUT_OFF: Final = "its container was taken off its Docker network (docker network disconnect)"
DAEMON_RESTARTED: Final = "the Docker daemon was restarted, which ended its containers"
NEVER_STARTED: Final = "its container was created but never started"


def out_of_memory(limit: int | None) -> str:
    """The clause for an engine that reached its own memory limit.

    :param limit: bytes; None or 0 when it is not known.
    """
    cure = "raise memory_limit, or use a smaller context size, fewer parallel slots or a smaller quantisation"
    if not limit:
        return f"it ran out of memory and was killed: it reached its memory limit; {cure}"
    size = f"{limit / 2**30:.3g} GB" if limit >= 2**30 else f"{limit / 2**20:.3g} MB"
    return f"it ran out of memory and was killed: its limit is {size}; {cure}"


def cause(exit_: Exit | None, lines: Sequence[str]) -> str:
    """One sentence, without a final full stop, on why an engine ended.

    What its runtime knows (:attr:`Exit.cause`) stands before what the log says: an engine that was ended from
    outside is not dead of what it complained about before, and one out of memory had no time to say so.

    :param exit_: how it ended; None when that is not known.
    :param lines: the end of its log, at least back to the line with :data:`START_MARK` where there is one;
        what stands before the last such line belongs to an earlier run.
    """
    if exit_ is not None and exit_.cause:
        return exit_.cause
    lines = this_run(lines)
    for pattern, sentence in _COMPILED:
        for line in lines:
            found = pattern.search(line)
            if found:
                return sentence.format(*found.groups())
    return _by_status(exit_)


def _by_status(exit_: Exit | None) -> str:
    if exit_ is None or (exit_.code is None and exit_.signal is None):
        return "it ended, and nobody saw how"
    number = exit_.signal
    if number is None and exit_.code is not None and exit_.code > 128:
        number = exit_.code - 128  # how shells and container runtimes report a signal
    if exit_.oom or number == signal.SIGKILL:
        if exit_.oom:
            return "the operating system killed it because memory ran out"
        if exit_.oom is None:
            return "it was killed (SIGKILL), maybe because memory ran out"
        return "it was killed (SIGKILL)"
    if number is not None:
        try:
            return _SIGNALS.get(signal.Signals(number), f"it was ended by {signal.Signals(number).name}")
        except ValueError:
            return f"it was ended by signal {number}"
    assert exit_.code is not None
    return _STATUSES.get(exit_.code, f"it ended with exit status {exit_.code}")


def this_run(lines: Sequence[str]) -> Sequence[str]:
    """The lines after the last start mark, all of them where there is none."""
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith(START_MARK):
            return lines[index + 1 :]
    return lines
