"""The stand-in's command line: the flags of llama-server that a manager passes.

Read by :mod:`benchmarks.standin`. Guarantees that ``--help`` lists one flag per line in llama-server's layout
(names, value, description), so that a manager that probes for known flags finds the ones it wants to pass,
and that an unknown flag never stops the stand-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

VERSION_TEXT = "version: 0.0.0-standin (build 11434, commit standin)\nbuilt with python for benchmarks\n"

#: (names, value placeholder or "", meaning). A flag with a placeholder takes one value.
FLAGS: tuple[tuple[str, str, str], ...] = (
    ("-h,    --help, --usage", "", "print this list and exit"),
    ("--version", "", "print the version and exit"),
    ("-m,    --model", "FNAME", "model path, shown by /props; never opened"),
    ("-a,    --alias", "STRING", "model name in answers"),
    ("--host", "HOST", "address to listen on (default: 127.0.0.1)"),
    ("--port", "PORT", "port to listen on (default: 8080)"),
    ("-np,   --parallel", "N", "number of slots that /props and /slots show (default: 4)"),
    ("-c,    --ctx-size", "N", "context size that /props and /slots show (default: 4096)"),
    ("-kvu,  --kv-unified, -no-kvu, --no-kv-unified", "", "accepted; every slot shows the whole context"),
    ("-ngl,  --gpu-layers, --n-gpu-layers", "N", "accepted"),
    ("-t,    --threads", "N", "accepted"),
    ("-tb,   --threads-batch", "N", "accepted"),
    ("--threads-http", "N", "accepted"),
    ("-b,    --batch-size", "N", "accepted"),
    ("-ub,   --ubatch-size", "N", "accepted"),
    ("-fa,   --flash-attn", "[on|off|auto]", "accepted"),
    ("-fit,  --fit", "[on|off]", "accepted"),
    ("-ctk,  --cache-type-k", "TYPE", "accepted"),
    ("-ctv,  --cache-type-v", "TYPE", "accepted"),
    ("-lm,   --load-mode", "MODE", "accepted"),
    ("-cram, --cache-ram", "N", "accepted"),
    ("-cmoe, --cpu-moe", "", "accepted"),
    ("-ncmoe, --n-cpu-moe", "N", "accepted"),
    ("-ot,   --override-tensor", "PATTERN", "accepted"),
    ("-dev,  --device", "LIST", "accepted"),
    ("-sm,   --split-mode", "MODE", "accepted"),
    ("-ts,   --tensor-split", "LIST", "accepted"),
    ("-mg,   --main-gpu", "N", "accepted"),
    ("-mm,   --mmproj", "FILE", "accepted"),
    ("--no-mmproj", "", "accepted"),
    ("--lora", "FNAME", "accepted"),
    ("--embeddings", "", "accepted; no embeddings are served"),
    ("--pooling", "TYPE", "accepted"),
    ("--reranking", "", "accepted; no ranking is served"),
    ("--spec-type", "TYPE", "accepted"),
    ("--spec-draft-model", "FNAME", "accepted"),
    ("--spec-draft-n-max", "N", "accepted"),
    ("--spec-draft-n-min", "N", "accepted"),
    ("--spec-draft-p-min", "P", "accepted"),
    ("--spec-draft-p-split", "P", "accepted"),
    ("--jinja, --no-jinja", "", "accepted"),
    ("--chat-template", "TEMPLATE", "accepted"),
    ("--chat-template-file", "FILE", "accepted"),
    ("--reasoning-format", "FORMAT", "accepted"),
    ("--reasoning-budget", "N", "accepted"),
    ("--api-key-file", "FNAME", "one key a line; LLAMA_API_KEY holds a comma list"),
    ("--metrics", "", "accepted; /metrics is always on"),
    ("--slots, --no-slots", "", "accepted; /slots is always on"),
    ("--props", "", "accepted"),
    ("--no-ui", "", "accepted"),
    ("--slot-save-path", "PATH", "accepted"),
    ("--sse-ping-interval", "N", "accepted"),
    ("--timeout", "N", "accepted"),
    ("--warmup, --no-warmup", "", "accepted"),
    ("--offline", "", "accepted"),
    ("-lv,   --verbosity, --log-verbosity", "N", "accepted"),
    ("-v,    --verbose, --log-verbose", "", "accepted"),
    ("--log-colors", "[on|off|auto]", "accepted"),
    ("--log-prefix, --no-log-prefix", "", "accepted"),
    ("--log-timestamps, --no-log-timestamps", "", "accepted"),
)


@dataclass(frozen=True, slots=True)
class Options:
    """What the stand-in takes from its command line."""

    host: str = "127.0.0.1"
    port: int = 8080
    model: str = ""
    alias: str = ""
    parallel: int = 4
    ctx_size: int = 4096
    api_key_file: str = ""
    answer: str = ""
    """``help`` or ``version`` when the stand-in only prints and exits, else empty."""

    @property
    def model_id(self) -> str:
        """The name in answers: the alphabetically first alias, else the path as given, as llama-server
        does."""
        return min(self.alias.split(",")) if self.alias else self.model or "standin"


def help_text() -> str:
    """``--help`` as llama-server lays it out: names and value in the first 40 columns, then the
    description."""
    lines = ["----- stand-in params -----", ""]
    for names, value, meaning in FLAGS:
        left = f"{names} {value}".rstrip()
        lines += [f"{left:<40}{meaning}"] if len(left) < 40 else [left, f"{'':<40}{meaning}"]
    return "\n".join(lines) + "\n"


def parse(argv: Sequence[str]) -> Options:
    """Read the flags that matter; every other argument is skipped, with its value when it has a known one.

    :raises SystemExit: a number is not one; the sentence names the flag.
    """
    takes_value = {
        name.strip(): names.split(",")[-1].strip().lstrip("-")
        for names, value, _ in FLAGS
        if value
        for name in names.split(",")
    }
    found: dict[str, str] = {}
    answer = ""
    at = 0
    while at < len(argv):
        flag = argv[at]
        if flag in ("-h", "--help", "--usage", "--version"):
            answer = answer or ("version" if flag == "--version" else "help")
        elif flag in takes_value and at + 1 < len(argv):
            at += 1
            found[takes_value[flag]] = argv[at]
        at += 1
    return Options(
        host=found.get("host", "127.0.0.1"),
        port=_number(found, "port", 8080),
        model=found.get("model", ""),
        alias=found.get("alias", ""),
        parallel=max(1, _number(found, "parallel", 4)),
        ctx_size=_number(found, "ctx-size", 4096),
        api_key_file=found.get("api-key-file", ""),
        answer=answer,
    )


def _number(found: dict[str, str], flag: str, default: int) -> int:
    text = found.get(flag, str(default))
    try:
        return int(text)
    except ValueError:
        raise SystemExit(f"error while handling argument --{flag}: {text!r} is not a whole number") from None
