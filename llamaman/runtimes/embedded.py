"""The manager's half of the embedded engine: which llama-server flags it can express, and how.

For the process runtime, which starts :mod:`llamaman.runtimes.embedded_child` with what is made here, and for
the supervisor, which asks :func:`refusals` before a launch. Pure; ``xllamacpp`` is never imported here.
Source of the parameters: the attributes of ``xllamacpp.CommonParams`` 2026.10 and llama.cpp's own parsing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llamaman.records import LaunchPlan

CHILD: Final = Path(__file__).with_name("embedded_child.py")

#: The variable in which the child finds its parameters.
VARIABLE: Final = "LLAMAMAN_EMBEDDED"

Assignment = tuple[str, Any]
"""A dotted attribute path below ``CommonParams`` and its JSON value."""

Convert = Callable[[str], list[Assignment]]


@dataclass(frozen=True, slots=True)
class _Flag:
    """One flag: whether a value follows it, and what it (with that value) sets."""

    takes_value: bool
    convert: Convert


def refusals(plan: LaunchPlan) -> list[str]:
    """Why the embedded engine cannot run this plan: one sentence per flag, empty when it can."""
    return _translate(plan.flags)[1]


def parameters(plan: LaunchPlan) -> str:
    """The JSON text for :data:`VARIABLE`; holds no secret.

    :raises ValueError: the plan has :func:`refusals`.
    """
    assignments, refused = _translate(plan.flags)
    if refused:
        raise ValueError("; ".join(refused))
    fixed: list[Assignment] = [
        ("model.path", str(plan.model_path)),
        ("model_alias", {"set": [plan.alias]}),
        ("hostnames", [plan.host]),
        ("port", plan.port),
        ("ui", False),
        ("endpoint_metrics", True),
        ("endpoint_slots", True),
    ]
    return json.dumps(fixed + assignments)


def _translate(flags: Sequence[str]) -> tuple[list[Assignment], list[str]]:
    assignments: list[Assignment] = []
    refused: list[str] = []
    tokens = list(flags)
    while tokens:
        token = tokens.pop(0)
        flag = _FLAGS.get(token)
        if flag is None:
            refused.append(f"embedded engine cannot express '{token}'")
            while tokens and tokens[0] not in _FLAGS and not tokens[0].startswith("--"):
                tokens.pop(0)  # its values
            continue
        if flag.takes_value and not tokens:
            refused.append(f"'{token}' needs a value")
            break
        value = tokens.pop(0) if flag.takes_value else ""
        try:
            assignments += flag.convert(value)
        except (ValueError, KeyError):
            refused.append(f"embedded engine cannot express '{token} {value}'")
    if any(path == "embedding" and value for path, value in assignments):
        # An embedding's input is one physical batch, so the logical one must not be larger.
        batch = next((value for path, value in reversed(assignments) if path == "n_ubatch"), 512)
        assignments.append(("n_batch", batch))
    return assignments, refused


# --- converters ---------------------------------------------------------------------------------------


def _number(*paths: str) -> Convert:
    return lambda text: [(path, int(text)) for path in paths]


def _decimal(path: str) -> Convert:
    return lambda text: [(path, float(text))]


def _text(path: str) -> Convert:
    return lambda text: [(path, text)]


def _set(*assignments: Assignment) -> Convert:
    return lambda text: list(assignments)


def _enum(path: str, kind: str, prefix: str, **names: str) -> Convert:
    """A word -> ``prefix`` + its member; ``names`` maps those words whose member is named otherwise."""

    def convert(text: str) -> list[Assignment]:
        if not text.replace("-", "_").replace("+", "_").isidentifier():
            raise ValueError
        member = names.get(text) or text.upper().replace("-", "_").replace("+", "_")
        return [(path, {"enum": [kind, prefix + member]})]

    return convert


def _choice(path: str, kind: str, **members: str) -> Convert:
    """One of a few words, each with its full member name."""
    return lambda text: [(path, {"enum": [kind, members[text.replace("-", "_").replace("+", "_")]]})]


def _sampling(name: str, bit: str, number: type[int] | type[float]) -> Convert:
    """A sampling default that the model file's own recommendation must not override."""
    return lambda text: [
        (f"sampling.{name}", number(text)),
        (
            "sampling.user_sampling_config",
            {"bits": ["common_params_sampling_config", f"COMMON_PARAMS_SAMPLING_CONFIG_{bit}"]},
        ),
    ]


def _layers(text: str) -> list[Assignment]:
    return [("n_gpu_layers", {"auto": -1, "all": -2}.get(text) if text in ("auto", "all") else int(text))]


def _expert_layers(text: str) -> list[Assignment]:
    # Layer by layer, as llama.cpp does: the tensors of its experts stay in the host's memory.
    patterns = (rf"blk\.{layer}\.{_EXPERTS}=CPU" for layer in range(int(text)))
    return [("tensor_buft_overrides", ",".join(patterns))]


def _speculation(text: str) -> list[Assignment]:
    kinds = text.split(",")
    if not set(kinds) <= {"none", "draft-mtp"}:
        raise ValueError
    members = [f"COMMON_SPECULATIVE_TYPE_{kind.upper().replace('-', '_')}" for kind in kinds]
    return [
        ("speculative.types", {"enums": [["common_speculative_type", member] for member in members]}),
        ("load_mtp", "draft-mtp" in kinds),
    ]


def _template_arguments(text: str) -> list[Assignment]:
    # The server keeps each value as JSON text.
    return [("default_template_kwargs", {key: json.dumps(value) for key, value in json.loads(text).items()})]


def _seed(text: str) -> list[Assignment]:
    return [("sampling.seed", int(text) & 0xFFFFFFFF)]


_EXPERTS = r"ffn_(up|down|gate|gate_up)_(ch|)exps"
_CACHE_TYPES = {
    "f32": "GGML_TYPE_F32",
    "f16": "GGML_TYPE_F16",
    "bf16": "GGML_TYPE_BF16",
    "q8_0": "GGML_TYPE_Q8_0",
    "q4_0": "GGML_TYPE_Q4_0",
    "q4_1": "GGML_TYPE_Q4_1",
    "iq4_nl": "GGML_TYPE_IQ4_NL",
    "q5_0": "GGML_TYPE_Q5_0",
    "q5_1": "GGML_TYPE_Q5_1",
}

#: Spellings separated by spaces -> what the value that follows sets.
_WITH_VALUE: Final[dict[str, Convert]] = {
    "-t --threads": _number("cpuparams.n_threads"),
    "-tb --threads-batch": _number("cpuparams_batch.n_threads"),
    "--poll": _number("cpuparams.poll"),
    "-c --ctx-size": _number("n_ctx"),
    "-n --predict --n-predict": _number("n_predict"),
    "-b --batch-size": _number("n_batch"),
    "-ub --ubatch-size": _number("n_ubatch"),
    "--keep": _number("n_keep"),
    "-np --parallel": _number("n_parallel"),
    "--kv-unified-per-slot": _number("kv_unified_per_slot"),
    "-ngl --gpu-layers --n-gpu-layers": _layers,
    "-mg --main-gpu": _number("main_gpu"),
    "-ncmoe --n-cpu-moe": _expert_layers,
    "-ts --tensor-split": lambda text: [
        ("tensor_split", {"padded": [float(part) for part in text.replace("/", ",").split(",")]})
    ],
    "-sm --split-mode": _choice(
        "split_mode",
        "llama_split_mode",
        none="LLAMA_SPLIT_MODE_NONE",
        layer="LLAMA_SPLIT_MODE_LAYER",
        row="LLAMA_SPLIT_MODE_ROW",
        tensor="LLAMA_SPLIT_MODE_TENSOR",
    ),
    "-fa --flash-attn": _choice(
        "flash_attn_type",
        "llama_flash_attn_type",
        on="LLAMA_FLASH_ATTN_TYPE_ENABLED",
        off="LLAMA_FLASH_ATTN_TYPE_DISABLED",
        auto="LLAMA_FLASH_ATTN_TYPE_AUTO",
    ),
    "-ctk --cache-type-k": _choice("cache_type_k", "ggml_type", **_CACHE_TYPES),
    "-ctv --cache-type-v": _choice("cache_type_v", "ggml_type", **_CACHE_TYPES),
    "-lm --load-mode": _choice(
        "load_mode",
        "llama_load_mode",
        auto="LLAMA_LOAD_MODE_AUTO",
        none="LLAMA_LOAD_MODE_NONE",
        mmap="LLAMA_LOAD_MODE_MMAP",
        mlock="LLAMA_LOAD_MODE_MLOCK",
        mmap_mlock="LLAMA_LOAD_MODE_MMAP_MLOCK",
        dio="LLAMA_LOAD_MODE_DIRECT_IO",
    ),
    "-fit --fit": lambda text: [("fit_params", {"on": True, "off": False}[text])],
    "-fitc --fit-ctx": _number("fit_params_min_ctx"),
    "-mm --mmproj": _text("mmproj.path"),
    "--image-min-tokens": _number("image_min_tokens"),
    "--image-max-tokens": _number("image_max_tokens"),
    "-cram --cache-ram": _number("cache_ram_mib"),
    "-ctxcp --ctx-checkpoints --swa-checkpoints": _number("n_ctx_checkpoints"),
    "-cms --checkpoint-min-step": _number("checkpoint_min_step"),
    "--cache-reuse": _number("n_cache_reuse"),
    "-sps --slot-prompt-similarity": _decimal("slot_prompt_similarity"),
    "--pooling": _enum("pooling_type", "llama_pooling_type", "LLAMA_POOLING_TYPE_"),
    "--embd-normalize": _number("embd_normalize"),
    "--rope-scaling": _enum("rope_scaling_type", "llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE_"),
    "--rope-scale": lambda text: [("rope_freq_scale", 1 / float(text))],
    "--rope-freq-base": _decimal("rope_freq_base"),
    "--rope-freq-scale": _decimal("rope_freq_scale"),
    "--yarn-orig-ctx": _number("yarn_orig_ctx"),
    "--yarn-ext-factor": _decimal("yarn_ext_factor"),
    "--yarn-attn-factor": _decimal("yarn_attn_factor"),
    "--yarn-beta-slow": _decimal("yarn_beta_slow"),
    "--yarn-beta-fast": _decimal("yarn_beta_fast"),
    "--temp --temperature": _sampling("temp", "TEMP", float),
    "--top-k": _sampling("top_k", "TOP_K", int),
    "--top-p": _sampling("top_p", "TOP_P", float),
    "--min-p": _sampling("min_p", "MIN_P", float),
    "--repeat-penalty": _sampling("penalty_repeat", "PENALTY_REPEAT", float),
    "--repeat-last-n": _sampling("penalty_last_n", "PENALTY_LAST_N", int),
    "--presence-penalty": _decimal("sampling.penalty_present"),
    "--frequency-penalty": _decimal("sampling.penalty_freq"),
    "-s --seed": _seed,
    "--chat-template": _text("chat_template"),
    "--chat-template-kwargs": _template_arguments,
    "--reasoning-format": _enum("reasoning_format", "common_reasoning_format", "COMMON_REASONING_FORMAT_"),
    "--spec-type": _speculation,
    "--spec-draft-n-max": _number("speculative.draft.n_max"),
    "--spec-draft-n-min": _number("speculative.draft.n_min"),
    "--spec-draft-p-min": _decimal("speculative.draft.p_min"),
    "--lora": lambda text: [("lora_adapters", {"loras": [[file, 1.0] for file in text.split(",")]})],
    "-to --timeout": _number("timeout_read", "timeout_write"),
    "--threads-http": _number("n_threads_http"),
    "--sse-ping-interval": _number("sse_ping_interval"),
    "-lv --verbosity --log-verbosity": _number("verbosity"),
}

#: Spellings of switches -> what they set.
_SWITCHES: Final[dict[str, Convert]] = {
    "-kvu --kv-unified": _set(("kv_unified", True)),
    "-no-kvu --no-kv-unified": _set(("kv_unified", False)),
    "--swa-full": _set(("swa_full", True)),
    "-kvo --kv-offload": _set(("no_kv_offload", False)),
    "-nkvo --no-kv-offload": _set(("no_kv_offload", True)),
    "--repack": _set(("no_extra_bufts", False)),
    "-nr --no-repack": _set(("no_extra_bufts", True)),
    "--no-host": _set(("no_host", True)),
    "--op-offload": _set(("no_op_offload", False)),
    "--no-op-offload": _set(("no_op_offload", True)),
    "-cmoe --cpu-moe": _set(("tensor_buft_overrides", rf"\.{_EXPERTS}=CPU")),
    "--no-mmproj --no-mmproj-auto": _set(("no_mmproj", True)),
    "--mmproj-offload": _set(("mmproj_use_gpu", True)),
    "--no-mmproj-offload": _set(("mmproj_use_gpu", False)),
    "--check-tensors": _set(("check_tensors", True)),
    "--cache-prompt": _set(("cache_prompt", True)),
    "--no-cache-prompt": _set(("cache_prompt", False)),
    "--cache-idle-slots": _set(("cache_idle_slots", True)),
    "--no-cache-idle-slots": _set(("cache_idle_slots", False)),
    "--context-shift": _set(("ctx_shift", True)),
    "--no-context-shift": _set(("ctx_shift", False)),
    "-cb --cont-batching": _set(("cont_batching", True)),
    "-nocb --no-cont-batching": _set(("cont_batching", False)),
    "--embedding --embeddings": _set(("embedding", True)),
    "--rerank --reranking": _set(
        ("embedding", True), ("pooling_type", {"enum": ["llama_pooling_type", "LLAMA_POOLING_TYPE_RANK"]})
    ),
    "--ignore-eos": _set(("sampling.ignore_eos", True)),
    "--jinja": _set(("use_jinja", True)),
    "--no-jinja": _set(("use_jinja", False)),
    "--prefill-assistant": _set(("prefill_assistant", True)),
    "--no-prefill-assistant": _set(("prefill_assistant", False)),
    "-sp --special": _set(("special", True)),
    "--lora-init-without-apply": _set(("lora_init_without_apply", True)),
    "--warmup": _set(("warmup", True)),
    "--no-warmup": _set(("warmup", False)),
    "--perf": _set(("no_perf", False), ("sampling.no_perf", False)),
    "--no-perf": _set(("no_perf", True), ("sampling.no_perf", True)),
    "--metrics": _set(("endpoint_metrics", True)),
    "--props": _set(("endpoint_props", True)),
    "--slots": _set(("endpoint_slots", True)),
    "--no-slots": _set(("endpoint_slots", False)),
    "--ui --webui": _set(("ui", True)),
    "--no-ui --no-webui": _set(("ui", False)),
}


def _table() -> Iterator[tuple[str, _Flag]]:
    for table, takes_value in ((_WITH_VALUE, True), (_SWITCHES, False)):
        for spellings, convert in table.items():
            for spelling in spellings.split():
                yield spelling, _Flag(takes_value, convert)


_FLAGS: Final[dict[str, _Flag]] = dict(_table())

#: The llama-server flags that the embedded engine can express.
FLAGS: Final[frozenset[str]] = frozenset(_FLAGS)
