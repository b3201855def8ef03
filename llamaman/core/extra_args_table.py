"""What each llama-server flag means for free-form extra arguments. Read by `extra_args.py` only.

Every flag is in one class:

- owned: LlamaMan passes it itself;
- option: a launch field exists for it;
- safe: a number, word or switch of known arity and range;
- path: its value must be a scanned file below MODELS_DIR;
- refused: it opens files, the network or a shell, or ends the server at once.

A flag that is in no class is unlisted. Source: the option list that llama-server b11434 prints, and the older
spellings that earlier builds still take. A spelling appears once; :data:`FLAGS` is keyed by spelling.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

FlagClass = Literal["owned", "option", "safe", "path", "refused"]


@dataclass(frozen=True, slots=True)
class Value:
    """One argument of a flag: ``check`` returns the text to pass or raises ``ValueError``."""

    check: Callable[[str], str]
    allowed: str


@dataclass(frozen=True, slots=True)
class Flag:
    """One spelling of a flag.

    :ivar values: its arguments; empty for a switch. For classes other than safe and path they are not read.
    :ivar note: for option the launch field, for owned and refused the reason.
    """

    name: str
    kind: FlagClass
    values: tuple[Value, ...] = ()
    note: str = ""


def integer(low: int, high: int) -> Value:
    def check(text: str) -> str:
        if not re.fullmatch(r"-?[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError
        return str(int(text))

    return Value(check, f"a whole number from {low} to {high}")


def decimal(low: float, high: float) -> Value:
    def check(text: str) -> str:
        if not re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{0,12})?([eE][+-]?[0-9]{1,2})?", text):
            raise ValueError
        if not math.isfinite(float(text)) or not low <= float(text) <= high:
            raise ValueError
        return text

    return Value(check, f"a number from {low:g} to {high:g}")


def word(*choices: str) -> Value:
    def check(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return Value(check, "one of " + ", ".join(choices))


def pattern(regex: str, allowed: str) -> Value:
    compiled = re.compile(regex)

    def check(text: str) -> str:
        if text.startswith("-") or not compiled.fullmatch(text):
            raise ValueError
        return text

    return Value(check, allowed)


def _json_object(text: str) -> str:
    if not isinstance(json.loads(text), dict):
        raise ValueError  # noqa: TRY004 - every check of this table raises ValueError
    return text


ON_OFF_AUTO = word("on", "off", "auto")
ANY = Value(lambda text: text, "anything")
_COUNT = integer(0, 1 << 24)
_TOKENS = integer(-1, 1 << 24)
_THREADS = integer(1, 4096)
_SIGNED = decimal(-1e6, 1e6)
_POSITIVE = decimal(0, 1e9)
_SHARE = decimal(-1, 1)
_BIT = word("0", "1")
_CACHE_TYPE = word("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_MASK = pattern(r"(0x)?[0-9a-fA-F]{1,256}", "a hexadecimal mask")
_RANGE = pattern(r"[0-9]{1,4}-[0-9]{1,4}", "a range such as 0-7")
_DEVICES = pattern(
    r"none|[A-Za-z]+[0-9]{0,3}(,[A-Za-z]+[0-9]{0,3}){0,31}", "device names such as CUDA0,CUDA1"
)
_NUMBERS = pattern(
    r"[0-9]{1,9}(\.[0-9]{1,6})?(,[0-9]{1,9}(\.[0-9]{1,6})?){0,63}", "numbers separated by commas"
)
_TEXT = pattern(r".{1,512}", "text of at most 512 characters that does not start with '-'")
_LAYERS = pattern(r"[0-9]{1,4}|auto|all", "a number of layers, auto or all")
_TENSORS = pattern(
    r"[\w.\\()|\[\]*+?^$-]{1,256}=[A-Za-z0-9_]{1,32}(,[\w.\\()|\[\]*+?^$-]{1,256}=[A-Za-z0-9_]{1,32}){0,31}",
    "tensor name pattern=buffer type, separated by commas",
)
_SPEC_TYPES = (
    "none|draft-simple|draft-eagle3|draft-mtp|draft-dflash|draft-dspark"
    "|ngram-simple|ngram-map-k|ngram-map-k4v|ngram-mod|ngram-cache"
)
_SPEC_TYPE = pattern(
    rf"({_SPEC_TYPES})(,({_SPEC_TYPES})){{0,10}}", "one or more of " + _SPEC_TYPES.replace("|", ", ")
)

#: spellings separated by spaces -> arguments
_SAFE: tuple[tuple[str, tuple[Value, ...]], ...] = (
    # processors
    ("-tb --threads-batch", (_THREADS,)),
    ("-td --threads-draft --spec-draft-threads", (_THREADS,)),
    ("-tbd --threads-batch-draft --spec-draft-threads-batch", (_THREADS,)),
    ("-C --cpu-mask", (_MASK,)),
    ("-Cb --cpu-mask-batch", (_MASK,)),
    ("-Cd --cpu-mask-draft --spec-draft-cpu-mask", (_MASK,)),
    ("-Cbd --cpu-mask-batch-draft --spec-draft-cpu-mask-batch", (_MASK,)),
    ("-Cr --cpu-range", (_RANGE,)),
    ("-Crb --cpu-range-batch", (_RANGE,)),
    ("-Crd --cpu-range-draft --spec-draft-cpu-range", (_RANGE,)),
    ("--cpu-strict", (_BIT,)),
    ("--cpu-strict-batch", (_BIT,)),
    ("--cpu-strict-draft --spec-draft-cpu-strict", (_BIT,)),
    ("--cpu-strict-batch-draft --spec-draft-cpu-strict-batch", (_BIT,)),
    # 3 is real time, which can starve the host of its own processors
    ("--prio", (integer(-1, 2),)),
    ("--prio-batch", (integer(-1, 2),)),
    ("--prio-draft --spec-draft-prio", (integer(-1, 2),)),
    ("--prio-batch-draft --spec-draft-prio-batch", (integer(-1, 2),)),
    ("--poll", (integer(0, 100),)),
    ("--poll-batch", (_BIT,)),
    ("--poll-draft --spec-draft-poll", (_BIT,)),
    ("--poll-batch-draft --spec-draft-poll-batch", (_BIT,)),
    ("--numa", (word("distribute", "isolate", "numactl"),)),
    # memory and devices
    ("-b --batch-size", (integer(1, 1 << 20),)),
    ("-ub --ubatch-size", (integer(1, 1 << 20),)),
    ("--swa-full", ()),
    ("-kvo --kv-offload", ()),
    ("-nkvo --no-kv-offload", ()),
    ("--repack", ()),
    ("-nr --no-repack", ()),
    ("--no-host", ()),
    ("-lzm --lazy-mode", (ON_OFF_AUTO,)),
    ("-dev --device", (_DEVICES,)),
    ("-devd --device-draft --spec-draft-device", (_DEVICES,)),
    ("-mmdev --mmproj-device", (_DEVICES,)),
    ("-ot --override-tensor", (_TENSORS,)),
    ("-otd --override-tensor-draft --spec-draft-override-tensor", (_TENSORS,)),
    ("-cmoe --cpu-moe", ()),
    ("-cmoed --cpu-moe-draft --spec-draft-cpu-moe", ()),
    ("-ncmoed --n-cpu-moe-draft --spec-draft-n-cpu-moe --spec-draft-ncmoe", (integer(0, 10_000),)),
    ("-ncffn --n-cpu-ffn", (integer(0, 10_000),)),
    ("-mg --main-gpu", (integer(0, 255),)),
    ("-fit --fit", (word("on", "off"),)),
    ("-fitt --fit-target", (_NUMBERS,)),
    ("-fitc --fit-ctx", (_COUNT,)),
    ("-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl", (_LAYERS,)),
    ("-ctkd --cache-type-k-draft --spec-draft-type-k", (_CACHE_TYPE,)),
    ("-ctvd --cache-type-v-draft --spec-draft-type-v", (_CACHE_TYPE,)),
    ("--op-offload", ()),
    ("--no-op-offload", ()),
    ("--mmproj-auto", ()),
    ("--no-mmproj --no-mmproj-auto", ()),
    ("--mmproj-offload", ()),
    ("--no-mmproj-offload", ()),
    ("--check-tensors", ()),
    ("--override-kv", (pattern(r"[\w.-]{1,128}=(int|float|bool|str):[^,]{1,128}", "KEY=TYPE:VALUE"),)),
    # context and cache
    ("-n --predict --n-predict", (integer(-2, 1 << 24),)),
    ("--keep", (_TOKENS,)),
    ("-ctxcp --ctx-checkpoints --swa-checkpoints", (integer(0, 4096),)),
    ("-cms --checkpoint-min-step", (_COUNT,)),
    ("--cache-idle-slots", ()),
    ("--no-cache-idle-slots", ()),
    ("--cache-prompt", ()),
    ("--no-cache-prompt", ()),
    ("--cache-reuse", (_COUNT,)),
    ("--context-shift", ()),
    ("--no-context-shift", ()),
    ("-sps --slot-prompt-similarity", (decimal(0, 1),)),
    ("-cb --cont-batching", ()),
    ("-nocb --no-cont-batching", ()),
    ("--rope-scaling", (word("none", "linear", "yarn"),)),
    ("--rope-scale", (_POSITIVE,)),
    ("--rope-freq-base", (_POSITIVE,)),
    ("--rope-freq-scale", (_POSITIVE,)),
    ("--yarn-orig-ctx", (_COUNT,)),
    ("--yarn-ext-factor", (_SIGNED,)),
    ("--yarn-attn-factor", (_SIGNED,)),
    ("--yarn-beta-slow", (_SIGNED,)),
    ("--yarn-beta-fast", (_SIGNED,)),
    # sampling defaults
    ("--samplers", (pattern(r"[a-z_]+(;[a-z_]+){0,31}", "sampler names separated by ';'"),)),
    ("-s --seed", (integer(-1, (1 << 32) - 1),)),
    ("--sampler-seq --sampling-seq", (pattern(r"[a-z]{1,32}", "letters"),)),
    ("--ignore-eos", ()),
    ("--temp --temperature", (decimal(-1, 100),)),
    ("--top-k", (_TOKENS,)),
    ("--top-p", (decimal(0, 1),)),
    ("--min-p", (decimal(0, 1),)),
    ("--top-nsigma --top-n-sigma", (_SIGNED,)),
    ("--xtc-probability", (decimal(0, 1),)),
    ("--xtc-threshold", (decimal(0, 1),)),
    ("--typical --typical-p", (decimal(0, 1),)),
    ("--repeat-last-n", (_TOKENS,)),
    ("--repeat-penalty", (decimal(0, 100),)),
    ("--presence-penalty", (decimal(-100, 100),)),
    ("--frequency-penalty", (decimal(-100, 100),)),
    ("--dry-multiplier", (_SIGNED,)),
    ("--dry-base", (_SIGNED,)),
    ("--dry-allowed-length", (_COUNT,)),
    ("--dry-penalty-last-n", (_TOKENS,)),
    ("--dry-sequence-breaker", (_TEXT,)),
    ("--adaptive-target", (_SHARE,)),
    ("--adaptive-decay", (decimal(0, 0.99),)),
    ("--dynatemp-range", (_POSITIVE,)),
    ("--dynatemp-exp", (_POSITIVE,)),
    ("--mirostat", (integer(0, 2),)),
    ("--mirostat-lr", (_POSITIVE,)),
    ("--mirostat-ent", (_POSITIVE,)),
    ("-l --logit-bias", (pattern(r"[0-9]{1,9}[+-][0-9.]{1,12}", "TOKEN_ID+BIAS or TOKEN_ID-BIAS"),)),
    ("-bs --backend-sampling", ()),
    ("-r --reverse-prompt", (_TEXT,)),
    # chat
    ("--jinja", ()),
    ("--no-jinja", ()),
    ("--chat-template", (pattern(r"[a-z0-9][a-z0-9._-]{0,40}", "the name of a built-in template"),)),
    ("--chat-template-kwargs", (Value(_json_object, "a JSON object"),)),
    ("--reasoning-format", (word("none", "deepseek", "deepseek-legacy", "auto"),)),
    ("-rea --reasoning", (ON_OFF_AUTO,)),
    ("--reasoning-effort", (pattern(r"[a-z]{1,16}", "a level such as low"),)),
    ("--reasoning-budget", (_TOKENS,)),
    ("--reasoning-budget-message", (_TEXT,)),
    ("--reasoning-preserve", ()),
    ("--no-reasoning-preserve", ()),
    ("--skip-chat-parsing", ()),
    ("--no-skip-chat-parsing", ()),
    ("--prefill-assistant", ()),
    ("--no-prefill-assistant", ()),
    ("-sp --special", ()),
    ("--spm-infill", ()),
    # embeddings and media
    ("--pooling", (word("none", "mean", "cls", "last", "rank"),)),
    ("--rerank --reranking", ()),
    ("--embd-normalize", (integer(-1, 64),)),
    ("--image-min-tokens", (_COUNT,)),
    ("--image-max-tokens", (_COUNT,)),
    ("--mtmd-batch-max-tokens", (_COUNT,)),
    ("--video-fps", (decimal(0, 1000),)),
    ("--video-timestamp-interval", (_COUNT,)),
    ("--lora-init-without-apply", ()),
    ("--control-vector-layer-range", (integer(0, 10_000), integer(0, 10_000))),
    # speculative decoding other than the MTP field's
    ("--spec-type", (_SPEC_TYPE,)),
    ("--spec-default", ()),
    ("--spec-draft-n-max", (integer(1, 1024),)),
    ("--spec-draft-n-min", (integer(0, 1024),)),
    ("--spec-draft-p-split --draft-p-split", (decimal(0, 1),)),
    ("--spec-draft-p-min --draft-p-min", (decimal(0, 1),)),
    ("--spec-draft-backend-sampling", ()),
    ("--no-spec-draft-backend-sampling", ()),
    ("--spec-draft-sampling", (word("greedy", "probabilistic"),)),
    ("--spec-ngram-mod-n-min", (integer(0, 4096),)),
    ("--spec-ngram-mod-n-max", (integer(0, 4096),)),
    ("--spec-ngram-mod-n-match", (integer(0, 4096),)),
    *(
        (f"--spec-ngram-{form}-{part}", (integer(0, 4096),))
        for form in ("simple", "map-k", "map-k4v")
        for part in ("size-n", "size-m", "min-hits")
    ),
    # talkativeness
    ("--perf", ()),
    ("--no-perf", ()),
    ("-e --escape", ()),
    ("--no-escape", ()),
    ("--warmup", ()),
    ("--no-warmup", ()),
    ("-v --verbose --log-verbose", ()),
    ("-lv --verbosity --log-verbosity", (integer(0, 5),)),
)

#: The value of a path flag is a comma-separated list of files, each with ":SCALE" behind it where ``scaled``.
PATH_FLAGS: dict[str, bool] = {
    "--lora": False,
    "--lora-scaled": True,
    "--control-vector": False,
    "--control-vector-scaled": True,
    "--spec-draft-model": False,
    "-md": False,
    "--model-draft": False,
}

_OPTIONS: dict[str, str] = {
    "-c --ctx-size": "ctx_size",
    "-np --parallel": "parallel",
    "-ngl --gpu-layers --n-gpu-layers": "n_gpu_layers",
    "-t --threads": "threads",
    "-fa --flash-attn": "flash_attn",
    "-ctk --cache-type-k": "cache_type_k",
    "-ctv --cache-type-v": "cache_type_v",
    "-ncmoe --n-cpu-moe": "n_cpu_moe",
    "-sm --split-mode": "split_mode",
    "-ts --tensor-split": "tensor_split",
    "-mm --mmproj": "mmproj",
    "-lm --load-mode --mmap --no-mmap --mlock -dio --direct-io -ndio --no-direct-io": "load_mode",
    "-cram --cache-ram": "cache_ram",
    "--embedding --embeddings": "embedding_model",
}

_OWNED = """
    -m --model -a --alias --tags --host --port --reuse-port --api-prefix --api-key --api-key-file
    --ui --webui --no-ui --no-webui --metrics --props --slots --no-slots
    -kvu --kv-unified -no-kvu --no-kv-unified --kv-unified-per-slot
    -to --timeout --sse-ping-interval --threads-http --sleep-idle-seconds --offline
    --log-disable --log-file --log-colors --log-jsonl --no-log-jsonl --log-prefix --no-log-prefix
    --log-timestamps --no-log-timestamps
"""

_REFUSED: dict[str, str] = {
    "it ends the server at once": """
        -h --help --usage --version -cl --cache-list --completion-bash --list-devices --license""",
    "it makes the server fetch files from the network": """
        -mu --model-url -dr --docker-repo -hf -hfr --hf-repo -hff --hf-file -hft --hf-token -mmu --mmproj-url
        -hfv -hfrv --hf-repo-v -hffv --hf-file-v --spec-draft-hf -hfd -hfrd --hf-repo-draft
        --embd-gemma-default --fim-qwen-1.5b-default --fim-qwen-3b-default --fim-qwen-7b-default
        --fim-qwen-7b-spec --fim-qwen-14b-spec --fim-qwen-30b-default
        --gpt-oss-20b-default --gpt-oss-120b-default --vision-gemma-4b-default --vision-gemma-12b-default""",
    "it lets the server reach other machines or run programs": """
        --rpc --tools --tools-runtime --mcp-servers-config --mcp-servers-json -ag --agent -no-ag --no-agent
        --ui-mcp-proxy --webui-mcp-proxy --no-ui-mcp-proxy --no-webui-mcp-proxy""",
    "it opens the server to other web pages": """
        --cors-origins --cors-methods --cors-headers --cors-credentials --no-cors-credentials
        --ui-config --webui-config --ui-config-file --webui-config-file --path""",
    "it makes the server read or write files": """
        --grammar-file -jf --json-schema-file -lcs --lookup-cache-static -lcd --lookup-cache-dynamic
        --chat-template-file --ssl-key-file --ssl-cert-file --slot-save-path --media-path --video-ffmpeg-dir
        --log-prompts-dir -mv --model-vocoder --tts-speaker-file""",
    "it turns the server into a router of models, which LlamaMan is": """
        --models-dir --models-preset --models-max --models-autoload --no-models-autoload""",
    "send it with the request instead": "--grammar -j --json-schema",
    "it falsifies answers or was removed from llama.cpp": """
        --spec-synth-len --spec-synth-rates -dt --defrag-thold
        --draft --draft-n --draft-max --draft-min --draft-n-min
        --spec-ngram-size-n --spec-ngram-size-m --spec-ngram-min-hits""",
}


def _flags() -> Iterable[Flag]:
    for spellings, values in _SAFE:
        yield from (Flag(name, "safe", values) for name in spellings.split())
    yield from (Flag(name, "path", (ANY,)) for name in PATH_FLAGS)
    for spellings, field in _OPTIONS.items():
        yield from (Flag(name, "option", note=field) for name in spellings.split())
    yield from (Flag(name, "owned") for name in _OWNED.split())
    for reason, spellings in _REFUSED.items():
        yield from (Flag(name, "refused", note=reason) for name in spellings.split())


def _table() -> dict[str, Flag]:
    table: dict[str, Flag] = {}
    for flag in _flags():
        if flag.name in table:
            raise ValueError(f"{flag.name} is in the table of extra arguments twice")
        table[flag.name] = flag
    return table


FLAGS: dict[str, Flag] = _table()
