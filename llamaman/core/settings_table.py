"""The kernel's own settings. Declared by the kernel at boot; names, defaults and shapes are those of the REST API.

Some are declared here although a plugin or a later part acts on them: they belong to the documented body of
``/api/settings`` and must be accepted and kept on every installation.
"""

from __future__ import annotations

from llamaman.core.setting import Setting

_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
#: A repository, with a registry's host or without, and a tag with wildcards or a digest; the runtime reads it closer.
IMAGE_PATTERN = (
    rf"(?:[A-Za-z0-9.-]+(?::[0-9]{{1,5}})?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_.*?-]{1,128}|@sha256:[0-9a-f]{64})"
)

CORE_SETTINGS: tuple[Setting, ...] = (
    Setting("require_auth", "bool", True, "Inference and model lists need an API key."),
    Setting(
        "admin_ui_enforce_max_models",
        "bool",
        False,
        "A launch by hand evicts the least recently used model when LLAMAMAN_MAX_MODELS is reached, "
        "instead of asking.",
        scope="node",
    ),
    Setting(
        "allow_ollama_api_override_admin",
        "bool",
        False,
        "The Ollama API may evict models that were launched by hand.",
        scope="node",
    ),
    Setting(
        "allow_openai_api_evict_managed",
        "bool",
        False,
        "The OpenAI and Anthropic APIs may evict models that were started on demand.",
        scope="node",
    ),
    Setting(
        "inference.cold_starts_per_minute",
        "int",
        6,
        "How many models each API key without the manage scope may start or wake within a minute; 0 = no limit. "
        "One more waits for its turn, or is told when that is. Requests for loaded models do not count.",
        minimum=0,
        maximum=10_000,
    ),
    Setting(
        "restart_for_larger_context",
        "bool",
        False,
        "A request for more context (num_ctx) than an idle model has restarts it with more.",
    ),
    Setting(
        "media.fetch_urls",
        "bool",
        False,
        "Images, audio and video that a request names by an https URL are fetched, from public hosts only, instead of "
        "refused.",
    ),
    Setting(
        "media.hosts",
        "list",
        (),
        "When not empty, the only hosts that media are fetched from. Behind an HTTP proxy (HTTPS_PROXY), where "
        "addresses cannot be checked, they have to be listed.",
        pattern=r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*",
        form="a host name such as images.example.org",
    ),
    Setting(
        "preload",
        "list",
        (),
        "Models that are loaded when LlamaMan starts, in this order, as far as LLAMAMAN_MAX_MODELS allows. "
        "Pin a model in its preset to keep it loaded.",
        scope="node",
        pattern=r"[^\x00-\x1f\x7f]{1,128}",
        form="the name of a model, as /v1/models lists it",
    ),
    Setting(
        "launch.allow_unlisted_args",
        "bool",
        False,
        "Extra arguments may hold flags that LlamaMan does not know; owned and refused ones stay refused.",
    ),
    Setting(
        "instances.web_ui",
        "bool",
        False,
        "Instances serve llama.cpp's own web page on their ports, from their next start on.",
    ),
    Setting(
        "instances.frozen_after_s",
        "float",
        120,
        "Seconds after which an engine that is working on a request, and of which nothing is seen or heard, is ended "
        "and started again: no token, no progress, no answer from its loop (`/slots`), no line in its log, no read "
        "from disk and no two threads at work. 0 = never. Whatever a single thread works on has to fit into it: a "
        "batch of a prompt (128 tokens on a processor, 2,048 on a GPU), a picture, an input of an embedding model. So "
        "raise it for large models on a single processor.",
        minimum=0,
        maximum=86_400,
    ),
    Setting(
        "images.allowed",
        "list",
        ("ghcr.io/ggml-org/llama.cpp:*",),
        "Container images that launches may use and LlamaMan may pull, besides LLAMA_IMAGE, which is always allowed. "
        "`*` and `?` stand for any characters of a tag; an image's code sees the model and the GPU.",
        pattern=IMAGE_PATTERN,
        form="a repository with a tag, in which * and ? are wildcards, or with a digest, such as "
        "ghcr.io/ggml-org/llama.cpp:server-*",
    ),
    Setting(
        "containers.seccomp_profiles",
        "list",
        (),
        "System call filters that a plugin may ask for instead of Docker's own; some AMD set-ups need `unconfined`.",
        pattern=r"unconfined|builtin",
        form="unconfined or builtin",
    ),
    Setting("auto_retry_failed_downloads", "bool", False, "Try failed downloads again."),
    Setting(
        "retry_count_per_failed_download",
        "int",
        3,
        "How often a download is tried again.",
        minimum=1,
        maximum=100,
    ),
    Setting(
        "global_speed_limit_mbps",
        "float",
        0.0,
        "Speed of all downloads together, in megabits per second; 0 = no limit.",
        minimum=0,
        maximum=1_000_000,
    ),
    Setting(
        "recording_mode",
        "choice",
        "off",
        "Whether requests and answers are recorded.",
        choices=("off", "per_request", "per_conversation"),
    ),
    Setting(
        "recording_retention_days",
        "int",
        30,
        "Days records are kept; 0 = for ever.",
        minimum=0,
        maximum=36_500,
    ),
    Setting("cleanup.downloads_enabled", "bool", False, "Forget finished downloads after a while."),
    Setting(
        "cleanup.downloads_max_age_hours",
        "float",
        24,
        "Age at which they are forgotten.",
        minimum=1,
        maximum=87_600,
    ),
    Setting("cleanup.downloads_last_run_at", "time", None, "When that was last done.", editable=False),
    Setting("cleanup.instances_enabled", "bool", False, "Forget stopped and failed instances after a while."),
    Setting(
        "cleanup.instances_max_age_hours",
        "float",
        24,
        "Age at which they are forgotten.",
        minimum=1,
        maximum=87_600,
    ),
    Setting("cleanup.instances_last_run_at", "time", None, "When that was last done.", editable=False),
    Setting(
        "cleanup.stale_records_enabled",
        "bool",
        False,
        "Look for instances whose engine is gone, at intervals.",
    ),
    Setting(
        "cleanup.stale_records_interval_min",
        "float",
        5,
        "Minutes between two looks.",
        minimum=1,
        maximum=10_080,
    ),
    Setting("cleanup.stale_records_last_run_at", "time", None, "When that was last done.", editable=False),
)
