"""How much memory a model takes, from its header and its launch options alone. Read by `library.py`.

Pure. Formulas are those of llama.cpp b11434: exact for the cache of the architectures it knows of, close for the
compute buffer. Where a header does not say enough, or its architecture keeps things that are not known here,
there is no estimate. Not counted: what a GPU driver takes for itself, and prompts cached in main memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from llamaman.core.launch import PROCESSOR_BATCH, slots
from llamaman.core.launch_options import BY_NAME
from llamaman.library.gguf import Header
from llamaman.library.gguf_worker import MAX_LAYERS

#: Bytes per element of a cache type: blocks of 32 with a scale, in some with an offset too.
CACHE_BYTES: Mapping[str, float] = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 1.0625,
    "q5_1": 0.75,
    "q5_0": 0.6875,
    "q4_1": 0.625,
    "q4_0": 0.5625,
    "iq4_nl": 0.5625,
}

#: Architectures that compute the whole input at once and cache nothing; all they are good for is embedding.
ENCODERS = frozenset(
    {
        "bert",
        "nomic-bert",
        "nomic-bert-moe",
        "jina-bert-v2",
        "jina-bert-v3",
        "neo-bert",
        "modern-bert",
        "t5encoder",
        "gemma-embedding",
        "eurobert",
    }
)
#: Architectures with a second cache of another kind.
_UNKNOWN_CACHE = frozenset({"t5", "deepseek4"})
#: architecture -> (period, the one full layer of a period is its first), where the header does not say which
#: layers look at a window only.
_PERIODS: Mapping[str, tuple[int, bool]] = {
    "gemma2": (2, False),
    "gpt-oss": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "llama4": (4, False),
    "cohere2": (4, False),
    "exaone4": (4, False),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "cohere2moe": (4, True),
    "smallthinker": (4, True),
    "laguna": (4, True),
}
_LLAMA4_WINDOW = 8192
_EXAONE4_LAYERS_WITH_WINDOWS = 64
#: One layer in so many has attention, the others a state, where the header does not say how many.
_INTERVALS: Mapping[str, int] = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}

_UBATCH, _BATCH = 512, 2048
#: Floats per token of a batch that layers hold at a time, in widths of the feed-forward part (measured).
_WIDTHS = 5
_F16, _F32 = 2, 4
#: More than any machine has: such a header lies.
_MOST = 1 << 48


@dataclass(frozen=True, slots=True)
class Run:
    """What of a launch decides how much memory it takes.

    :ivar unified: all slots share one cache of ``context`` tokens.
    :ivar batch: tokens computed at a time.
    :ivar uses_nextn: the layers for multi-token prediction are loaded.
    """

    context: int
    slots: int = 1
    unified: bool = True
    batch: int = _UBATCH
    cache_k: str = "f16"
    cache_v: str = "f16"
    flash_attention: bool = True
    swa_full: bool = False
    uses_nextn: bool = False


def run_of(options: Mapping[str, Any], extra: Sequence[str]) -> Run:
    """What a launch with these options will be; options that are absent have their defaults.

    :param extra: checked tokens of ``extra_args``.
    """
    given = {name: options.get(name, option.default) for name, option in BY_NAME.items()}
    batch = value_of(extra, "-b", "--batch-size")
    if batch is None:
        by_processor = given["n_gpu_layers"] == 0 and not given["embedding_model"]
        batch = str(PROCESSOR_BATCH if by_processor else _BATCH)
    ubatch = value_of(extra, "-ub", "--ubatch-size") or str(_UBATCH)
    attention = value_of(extra, "-fa", "--flash-attn") or given["flash_attn"]
    speculation = value_of(extra, "--spec-type") or ""
    return Run(
        context=given["ctx_size"],
        slots=slots(given),
        batch=min(int(batch), int(ubatch)),
        cache_k=given["cache_type_k"] or "f16",
        cache_v=given["cache_type_v"] or "f16",
        flash_attention=attention != "off",
        swa_full="--swa-full" in extra,
        uses_nextn=bool(given["spec_enabled"]) or "draft-mtp" in speculation.split(","),
    )


def draft_run(run: Run, extra: Sequence[str]) -> Run:
    """How a draft model runs beside the model."""
    return replace(
        run,
        cache_k=value_of(extra, "-ctkd", "--cache-type-k-draft", "--spec-draft-type-k") or "f16",
        cache_v=value_of(extra, "-ctvd", "--cache-type-v-draft", "--spec-draft-type-v") or "f16",
    )


def value_of(tokens: Sequence[str], *names: str) -> str | None:
    """The value behind a flag, as the engine reads it: the last one counts."""
    found = None
    for name, value in pairwise(tokens):
        if name in names:
            found = value
    return found


def estimate(header: Header, size: int, run: Run) -> int | None:
    """Bytes for weights, cache and buffers; None where the header does not say enough.

    :param size: of all files of the model.
    """
    cache, compute = cache_bytes(header, run), compute_bytes(header, run)
    if cache is None or compute is None:
        return None
    weights = size - header.header_bytes - (0 if run.uses_nextn else header.nextn_bytes)
    total = max(0, weights) + cache + compute
    return total if total < _MOST else None


def cache_bytes(header: Header, run: Run) -> int | None:
    """Bytes for keys, values and states of all slots."""
    if header.architecture in ENCODERS:
        return 0
    if header.architecture in _UNKNOWN_CACHE or "attention.indexer.key_length" in header.numbers:
        return None
    layers = _layers(header)
    if layers is None or run.cache_k not in CACHE_BYTES or run.cache_v not in CACHE_BYTES:
        return None
    window = _window(header)
    widest = max((layer.values for layer in layers), default=0)
    varying = not run.flash_attention and any(layer.values not in (0, widest) for layer in layers)
    streams = 1 if run.unified else run.slots
    full = _padded(run.context if run.unified else -(-run.context // run.slots))
    some = min(full, _padded(window * (run.slots if run.unified else 1) + run.batch))
    trunk = len(layers) - header.nextn_layers
    total = 0.0
    for number, layer in enumerate(layers):
        if number >= trunk and not run.uses_nextn:
            continue
        cells = some if layer.windowed and not run.swa_full else full
        values = widest if varying and layer.values else layer.values
        of_drafts = number >= trunk  # they are a context of their own, whose cache has the default type
        per_cell = layer.keys * CACHE_BYTES["f16" if of_drafts else run.cache_k]
        per_cell += values * CACHE_BYTES["f16" if of_drafts else run.cache_v]
        total += cells * streams * per_cell + layer.state * _F32 * run.slots
    return round(total)


def compute_bytes(header: Header, run: Run) -> int | None:
    """Bytes for what is computed with at a time, of which the mask of a long context is the larger part."""
    experts = _number(header, "expert_used_count", 0) * _number(header, "expert_feed_forward_length", 0)
    width = max(_most(header, "feed_forward_length"), experts, header.embedding_length or 0)
    if width == 0:
        return None
    cells = _padded(run.context if run.unified else -(-run.context // run.slots))
    total = run.batch * (_WIDTHS * width * _F32 + cells * _F16)
    if not run.flash_attention:  # every head's scores are written down
        total += run.batch * cells * _most(header, "attention.head_count") * _F32
    return total + run.slots * (header.vocab_size or 0) * _F32


# --- layers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    """Elements that one layer keeps: per token, and per slot (``state``)."""

    keys: int
    values: int
    state: int
    windowed: bool


def _layers(header: Header) -> list[_Layer] | None:
    count = header.block_count
    if count is None or count > MAX_LAYERS or header.nextn_layers > count:
        return None
    state = _state(header)
    heads = _per_layer(header, "attention.head_count", count)
    pairs = _per_layer(header, "attention.head_count_kv", count) or heads
    if pairs is None:  # no attention at all
        return [_Layer(0, 0, state, windowed=False)] * count if state else None
    widths = _widths(header, heads)
    if widths is None and any(pairs):
        return None
    keys, values, window_keys, window_values = widths or (0, 0, 0, 0)
    windowed = _windowed(header, count)
    recurrent = _recurrent(header, count)
    # Layers at the end may use the cache of an earlier one.
    own = count - header.nextn_layers - _number(header, "attention.shared_kv_layers", 0)
    guests = range(own, count - header.nextn_layers)
    per_layer = "attention.head_count_kv" in header.numbers and header.head_count_kv is None
    layers = []
    for number, pair in enumerate(pairs):
        attends = pair > 0 and number not in guests and not (recurrent and recurrent[number])
        keeps_state = not attends if recurrent or per_layer else True
        narrow = windowed[number]
        layers.append(
            _Layer(
                keys=pair * (window_keys if narrow else keys) if attends else 0,
                values=pair * (window_values if narrow else values) if attends else 0,
                state=state if keeps_state else 0,
                windowed=narrow,
            )
        )
    return layers


def _recurrent(header: Header, count: int) -> Sequence[bool]:
    """Which layers keep a state instead of attention, where that is said for each; empty where it is not."""
    listed = header.numbers.get("attention.recurrent_layers")
    if isinstance(listed, tuple) and len(listed) >= count:
        return [bool(flag) for flag in listed]
    interval = _number(header, "full_attention_interval", _INTERVALS.get(header.architecture or "", 0))
    return [(number + 1) % interval != 0 for number in range(count)] if interval else []


def _widths(header: Header, heads: Sequence[int] | None) -> tuple[int, int, int, int] | None:
    """Elements per head: keys, values, and both in layers with a window."""
    usual = header.embedding_length // heads[0] if header.embedding_length and heads and heads[0] else 0
    keys, values = (
        _number(header, "attention.key_length", usual),
        _number(header, "attention.value_length", usual),
    )
    if keys == 0:
        return None
    if "attention.key_length_mla" in header.numbers:  # one compressed row serves for keys and values
        return keys, 0, keys, 0
    window_keys = _number(header, "attention.key_length_swa", keys)
    return keys, values, window_keys, _number(header, "attention.value_length_swa", values)


def _windowed(header: Header, count: int) -> Sequence[bool]:
    """Which layers look at a window only."""
    if _window(header) == 0:
        return [False] * count
    pattern = header.numbers.get("attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        return [bool(flag) for flag in pattern[:count]] + [False] * (count - len(pattern))
    period, first = _PERIODS.get(header.architecture or "", (0, False))
    if isinstance(pattern, int):
        period = pattern
    full = 0 if first else period - 1
    return [period > 0 and number % period != full for number in range(count)]


def _window(header: Header) -> int:
    """Tokens that layers with a window look back; 0: no layer has one."""
    known = header.architecture in _PERIODS or "attention.sliding_window_pattern" in header.numbers
    if header.architecture == "exaone4" and header.block_count != _EXAONE4_LAYERS_WITH_WINDOWS:
        return 0  # its small models have the key and ignore it
    default = _LLAMA4_WINDOW if header.architecture == "llama4" else 0
    return _number(header, "attention.sliding_window", default) if known else 0


def _state(header: Header) -> int:
    """Elements that a recurrent layer keeps per slot; 0 for models without such layers."""
    embedding = header.embedding_length or 0
    kernel = _number(header, "ssm.conv_kernel", 0)
    inner, size = _number(header, "ssm.inner_size", 0), _number(header, "ssm.state_size", 0)
    if head := _number(header, "wkv.head_size", 0):
        return (_number(header, "token_shift_count", 2) + head) * embedding
    if window := _number(header, "shortconv.l_cache", 0):
        return embedding * (window - 1)
    if head := _number(header, "kda.head_dim", 0):
        heads = _most(header, "attention.head_count")
        return 3 * (kernel - 1 if kernel else 3) * heads * head + head * head * heads
    groups = _number(header, "ssm.group_count", 0)
    return max(0, kernel - 1) * (inner + 2 * groups * size) + size * inner


def _number(header: Header, key: str, default: int) -> int:
    value = header.numbers.get(key)
    return value if isinstance(value, int) else default


def _most(header: Header, key: str) -> int:
    value = header.numbers.get(key, 0)
    return value if isinstance(value, int) else max(value, default=0)


def _per_layer(header: Header, key: str, count: int) -> Sequence[int] | None:
    """One number per layer; None when the header has none, or too few."""
    value = header.numbers.get(key)
    if isinstance(value, int):
        return [value] * count
    return value[:count] if value is not None and len(value) >= count else None


def _padded(cells: int) -> int:
    return -(-cells // 256) * 256
