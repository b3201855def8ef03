"""Every launch option, once. Read by `launch.py`, and through :func:`llamaman.core.launch.schema` by forms,
presets, REST and the documentation.

Names, defaults and ranges are those of the REST API's launch body; names never change. ``port`` and
``model_path`` say where and what, not how, and belong to the launch request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "int", "float", "bool", "text", "choice", "layers", "memory", "devices", "proportions", "file", "engine"
]

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


@dataclass(frozen=True, slots=True)
class LaunchOption:
    """One launch option.

    :ivar flag: the engine's flag, newest spelling first; empty for what LlamaMan does itself.
    :ivar live: a change applies to a running instance; otherwise it needs a relaunch.
    :ivar nullable: null (and a blank string) means "leave it to the engine".
    :ivar emit: pass the flag only for a value other than null; options with a rule of their own in
        `launch.py` leave it False.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    flag: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    live: bool = False
    advanced: bool = False
    nullable: bool = False
    emit: bool = False


OPTIONS: tuple[LaunchOption, ...] = (
    LaunchOption(
        "n_gpu_layers",
        "layers",
        -1,
        "Layers kept on the GPU: -1 = all, 0 = processor only (no GPU is attached), auto = as many as fit.",
        flag=("--n-gpu-layers", "--gpu-layers"),
        minimum=-1,
        maximum=10_000,
    ),
    LaunchOption(
        "ctx_size",
        "int",
        4096,
        "Context window in tokens.",
        flag=("--ctx-size",),
        minimum=1,
        maximum=1 << 30,
        emit=True,
    ),
    LaunchOption(
        "threads",
        "int",
        None,
        "Processor threads, and the processor quota of the instance; blank = all cores.",
        flag=("--threads",),
        minimum=1,
        maximum=4096,
        nullable=True,
    ),
    LaunchOption(
        "memory_limit",
        "memory",
        None,
        "Most memory the instance may use, such as 32g or 8192m; blank = no limit of its own.",
        nullable=True,
    ),
    LaunchOption(
        "parallel",
        "int",
        None,
        "Requests the engine works on at the same time; blank = 1.",
        flag=("--parallel",),
        minimum=1,
        maximum=256,
        nullable=True,
    ),
    LaunchOption("extra_args", "text", "", "Further llama-server flags.", maximum=4096),
    LaunchOption("gpu_devices", "devices", "", "GPU indices such as 0,1, or all; blank = LLAMA_GPU_DEVICES."),
    LaunchOption(
        "idle_timeout_min",
        "float",
        0,
        "Minutes without a request after which the instance sleeps; 0 = never.",
        minimum=0,
        maximum=525_600,
        live=True,
    ),
    LaunchOption(
        "max_concurrent",
        "int",
        0,
        "Requests forwarded at the same time; 0 = as many as the engine works on.",
        minimum=0,
        maximum=100_000,
        live=True,
    ),
    LaunchOption(
        "max_queue_depth",
        "int",
        200,
        "Requests that may wait; more are answered 429.",
        minimum=0,
        maximum=100_000,
        live=True,
    ),
    LaunchOption(
        "share_queue", "bool", False, "Share one queue with the model's other instances.", live=True
    ),
    LaunchOption(
        "embedding_model",
        "bool",
        False,
        "Serve embeddings: not counted in LLAMAMAN_MAX_MODELS, never evicted.",
        flag=("--embeddings", "--embedding"),
    ),
    LaunchOption(
        "spec_enabled",
        "bool",
        False,
        "Speculative decoding with the model's own MTP layers.",
        flag=("--spec-type",),
    ),
    LaunchOption(
        "spec_draft_n_max",
        "int",
        2,
        "Tokens drafted per step; blank = llama.cpp's default.",
        flag=("--spec-draft-n-max", "--draft-max"),
        minimum=1,
        maximum=1024,
        nullable=True,
    ),
    LaunchOption(
        "proxy_sampling_override_enabled",
        "bool",
        False,
        "Force the sampling values below on every request.",
        live=True,
    ),
    LaunchOption(
        "proxy_sampling_temperature",
        "float",
        0.8,
        "Forced temperature.",
        minimum=0.0,
        maximum=2.0,
        live=True,
    ),
    LaunchOption("proxy_sampling_top_k", "int", 40, "Forced top-k.", minimum=0, maximum=1_000_000, live=True),
    LaunchOption(
        "proxy_sampling_top_p", "float", 0.95, "Forced top-p.", minimum=0.01, maximum=1.0, live=True
    ),
    LaunchOption(
        "proxy_sampling_presence_penalty",
        "float",
        0.0,
        "Forced presence penalty.",
        minimum=-2.0,
        maximum=2.0,
        live=True,
    ),
    LaunchOption(
        "proxy_sampling_repeat_penalty",
        "float",
        0.0,
        "Forced repeat penalty; 0 = left alone.",
        minimum=0.0,
        maximum=2.0,
        live=True,
    ),
    LaunchOption(
        "flash_attn",
        "choice",
        "auto",
        "Flash attention.",
        flag=("--flash-attn",),
        choices=("auto", "on", "off"),
        advanced=True,
    ),
    LaunchOption(
        "cache_type_k",
        "choice",
        None,
        "Type of the K cache; blank = f16.",
        flag=("--cache-type-k",),
        choices=CACHE_TYPES,
        advanced=True,
        nullable=True,
        emit=True,
    ),
    LaunchOption(
        "cache_type_v",
        "choice",
        None,
        "Type of the V cache; blank = f16. Quantised types need flash attention.",
        flag=("--cache-type-v",),
        choices=CACHE_TYPES,
        advanced=True,
        nullable=True,
        emit=True,
    ),
    LaunchOption(
        "n_cpu_moe",
        "int",
        None,
        "Layers whose expert weights stay in main memory.",
        flag=("--n-cpu-moe",),
        minimum=0,
        maximum=10_000,
        advanced=True,
        nullable=True,
        emit=True,
    ),
    LaunchOption(
        "split_mode",
        "choice",
        None,
        "How a model is split over several GPUs; blank = layer.",
        flag=("--split-mode",),
        choices=("none", "layer", "row", "tensor"),
        advanced=True,
        nullable=True,
        emit=True,
    ),
    LaunchOption(
        "tensor_split",
        "proportions",
        None,
        "Share of each GPU, such as 3,1.",
        flag=("--tensor-split",),
        advanced=True,
        nullable=True,
        emit=True,
    ),
    LaunchOption(
        "mmproj",
        "file",
        None,
        "Projector file for images and sound, below MODELS_DIR.",
        flag=("--mmproj",),
        advanced=True,
        nullable=True,
    ),
    LaunchOption(
        "load_mode",
        "choice",
        "auto",
        "How weights are brought into memory.",
        flag=("--load-mode",),
        choices=("auto", "none", "mmap", "mlock", "mmap+mlock", "dio"),
        advanced=True,
    ),
    LaunchOption(
        "cache_ram",
        "int",
        None,
        "MiB of main memory for cached prompts: -1 = no limit, 0 = none, blank = llama.cpp's default.",
        flag=("--cache-ram",),
        minimum=-1,
        maximum=1 << 30,
        advanced=True,
        nullable=True,
        emit=True,
    ),
    LaunchOption(
        "engine",
        "engine",
        None,
        "Engine or container image that runs the model; blank = the best one here.",
        advanced=True,
        nullable=True,
    ),
    LaunchOption("start_at_boot", "bool", False, "Start when LlamaMan starts.", live=True, advanced=True),
    LaunchOption("pinned", "bool", False, "Never evict this instance.", live=True, advanced=True),
    LaunchOption(
        "restart_policy",
        "choice",
        "on-failure",
        "What happens when the engine dies by itself; restarts come ever more slowly and end.",
        choices=("on-failure", "never"),
        live=True,
        advanced=True,
    ),
)

BY_NAME: dict[str, LaunchOption] = {option.name: option for option in OPTIONS}
LIVE: frozenset[str] = frozenset(option.name for option in OPTIONS if option.live)
