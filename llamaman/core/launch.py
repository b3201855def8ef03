"""From launch options to engine flags. Read by REST, presets, the supervisor and the runtimes.

The table is `launch_options.py`; this module validates against it, layers it (defaults < preset < explicit)
and turns a resolved set into argv tokens for the flags that one engine build knows. Everything is pure: what
the host, the model and the disk have to say comes in as arguments.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamaman.core import launch_values
from llamaman.core.config import Config
from llamaman.core.extra_args import ModelFile, parse_extra_args
from llamaman.core.launch_options import BY_NAME, LIVE, OPTIONS, LaunchOption
from llamaman.errors import InvalidField

__all__ = [
    "BY_NAME",
    "LIVE",
    "OPTIONS",
    "Flags",
    "LaunchOption",
    "ModelFacts",
    "defaults",
    "memory_limit_bytes",
    "request_context",
    "resolve",
    "schema",
    "slots",
    "to_flags",
    "validate",
    "validate_port",
]

#: Tokens of a prompt that are worked on at once where there is no GPU.
PROCESSOR_BATCH = 128

_QUANTISED = frozenset({"q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"})

#: load_mode -> the switches of builds from before ``--load-mode``, whose default was to map the file
_OLD_LOAD_MODES: dict[str, tuple[str, ...]] = {
    "none": ("--no-mmap",),
    "mmap": (),
    "mlock": ("--no-mmap", "--mlock"),
    "mmap+mlock": ("--mlock",),
    "dio": ("--direct-io",),
}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model's header says that bears on flags. None: the header does not say or could not be read.

    :ivar nextn_layers: layers for multi-token prediction; 0 = the model has none.
    :ivar context_length: the context it was trained with, in tokens.
    :ivar reranks: whether it scores documents instead of making embeddings.
    """

    nextn_layers: int | None = None
    context_length: int | None = None
    reranks: bool = False


@dataclass(frozen=True, slots=True)
class Flags:
    """Argv tokens for one launch.

    :ivar tokens: without binary, model, address, alias and keys, which only the runtime knows.
    :ivar notes: what was changed or cannot be had, in words for whoever launched it.
    """

    tokens: tuple[str, ...]
    notes: tuple[str, ...] = ()


def defaults() -> dict[str, Any]:
    """Every option at its default, in the table's order."""
    return {option.name: option.default for option in OPTIONS}


def validate(
    given: Mapping[str, object],
    *,
    partial: bool = False,
    allow_unlisted: bool = False,
    model_file: ModelFile | None = None,
) -> dict[str, Any]:
    """Check and normalise the given options; options that are not given stay out of the result.

    :param partial: the rest of the set is not known here, so contradictions are not looked for.
    :param allow_unlisted: see :func:`parse_extra_args`.
    :param model_file: resolves a path below MODELS_DIR; None leaves paths to :func:`to_flags`.
    :raises InvalidField: names the first unknown or wrong field.
    """
    result: dict[str, Any] = {}
    for name, value in given.items():
        option = BY_NAME.get(name)
        if option is None:
            close = difflib.get_close_matches(name, BY_NAME, n=1) if len(name) < 100 else []
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InvalidField(name[:100], f"{name[:100]} is not a launch option{hint}")
        result[name] = launch_values.read(option, value)
    if result.get("extra_args"):
        parse_extra_args(
            result["extra_args"], allow_unlisted=allow_unlisted, is_model_file=model_file or Path
        )
    if result.get("mmproj") and model_file is not None:
        _projector(result["mmproj"], model_file)
    if not partial:
        _check_together(resolve(result))
    return result


def resolve(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Every option: the table's defaults under the layers, the last layer on top.

    Layers are validated options; names that are none (a preset's ``note``) are left out.
    """
    result = defaults()
    for layer in layers:
        result.update({name: value for name, value in layer.items() if name in BY_NAME})
    return result


def validate_port(value: object, config: Config) -> int | None:
    """The public port of a launch; None stays None (the first free one).

    :raises InvalidField: not an integer, or outside the public pool.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidField("port", "port must be an integer")
    if not config.port_range_start <= value <= config.port_range_end:
        raise InvalidField(
            "port",
            f"port must be from {config.port_range_start} to {config.port_range_end} "
            "(PORT_RANGE_START, PORT_RANGE_END)",
        )
    return value


def slots(options: Mapping[str, Any]) -> int:
    """Requests the engine works on at the same time."""
    return options.get("parallel") or 1


def request_context(options: Mapping[str, Any], facts: ModelFacts) -> int:
    """Tokens that one request may use: the slots share one cache, and no model goes beyond its training."""
    wanted: int = options["ctx_size"]
    return wanted if facts.context_length is None else min(wanted, facts.context_length)


def memory_limit_bytes(options: Mapping[str, Any]) -> int | None:
    """The memory limit in bytes, or None for no limit of its own."""
    limit = options.get("memory_limit")
    return launch_values.memory_bytes(limit) if limit else None


def schema() -> list[dict[str, Any]]:
    """The table as plain data, for forms and documentation."""
    return [asdict(option) for option in OPTIONS]


def to_flags(
    options: Mapping[str, Any],
    *,
    known: frozenset[str] | None,
    facts: ModelFacts,
    model_file: ModelFile,
    cores: int | None = None,
    gpu: bool = True,
    allow_unlisted: bool = False,
    web_ui: bool = False,
) -> Flags:
    """The argv tokens of a resolved set of options.

    :param options: the result of :func:`resolve`.
    :param known: every flag spelling of the engine build; None = the newest.
    :param model_file: text -> the scanned file below MODELS_DIR as the engine will see it, or None.
    :param cores: processors of the host; more threads are clamped with a note. None: not known.
    :param gpu: whether the host has a GPU that the engine might use.
    :param web_ui: whether the engine serves its own web page; without it a runtime switches that off.
    :raises InvalidField: what this model or engine cannot do, or a contradiction.
    """
    _check_together(options)
    notes: list[str] = []
    extra = parse_extra_args(options["extra_args"], allow_unlisted=allow_unlisted, is_model_file=model_file)
    _extra_is_known(extra, known)
    tokens: list[str] = []
    for option in OPTIONS:
        if option.emit and options[option.name] is not None:
            tokens += (_spelling(option, known), str(options[option.name]))
    tokens += _layers(options, extra, known)
    tokens += _threads(options, cores, known, notes)
    tokens += _parallel(options, known, notes)
    if options["embedding_model"]:
        tokens += _embedding(facts, extra, known)
    if web_ui:
        tokens += next(([flag] for flag in ("--ui", "--webui") if flag in (known or ())), [])
    tokens += _speculation(options, facts, extra, known)
    if options["flash_attn"] != "auto":
        if {"-fa", "--flash-attn"} & set(extra):
            notes.append("flash_attn is overridden by extra_args")
        else:
            tokens += (_spelling(BY_NAME["flash_attn"], known), options["flash_attn"])
    tokens += _load_mode(options["load_mode"], known)
    tokens += _batch(options, extra, known, gpu=gpu)
    if options["mmproj"]:
        tokens += (_spelling(BY_NAME["mmproj"], known), str(_projector(options["mmproj"], model_file)))
    if facts.context_length is not None and options["ctx_size"] > facts.context_length:
        notes.append(
            f"ctx_size {options['ctx_size']} is more than the {facts.context_length} tokens the model was "
            "trained with: a request gets no more than those, and memory for the rest is wasted"
        )
    return Flags((*tokens, *extra), tuple(notes))


def _check_together(options: Mapping[str, Any]) -> None:
    if options["cache_type_v"] in _QUANTISED and options["flash_attn"] == "off":
        raise InvalidField(
            "cache_type_v", f"cache_type_v {options['cache_type_v']} needs flash attention; flash_attn is off"
        )
    if options["spec_enabled"] and options["embedding_model"]:
        raise InvalidField(
            "spec_enabled", "spec_enabled makes no sense for an embedding model; switch one of them off"
        )


def _embedding(facts: ModelFacts, extra: tuple[str, ...], known: frozenset[str] | None) -> tuple[str, ...]:
    """An engine refuses to rerank, and gives a reranker's embeddings as zeros, unless it is told what it runs."""
    if {"--rerank", "--reranking"} & set(extra):
        return ()
    if facts.reranks and (known is None or "--reranking" in known):
        return ("--reranking",)
    return (_spelling(BY_NAME["embedding_model"], known),)


def _spelling(option: LaunchOption, known: frozenset[str] | None) -> str:
    """How this build spells an option's flag."""
    found = option.flag[0] if known is None else next((name for name in option.flag if name in known), None)
    if found is None:
        raise InvalidField(
            option.name,
            f"{option.name}: this engine build does not know {option.flag[0]}; update it or leave it blank",
        )
    return found


def _extra_is_known(extra: tuple[str, ...], known: frozenset[str] | None) -> None:
    for token in extra:
        # values of flags never start with '-' and a letter, so this token is a flag
        if known is not None and token[:1] == "-" and token.lstrip("-")[:1].isalpha() and token not in known:
            raise InvalidField("extra_args", f"extra_args: this engine build does not know {token}")


def _layers(options: Mapping[str, Any], extra: tuple[str, ...], known: frozenset[str] | None) -> list[str]:
    given = options["n_gpu_layers"]
    tokens = [_spelling(BY_NAME["n_gpu_layers"], known), "all" if given == -1 else str(given)]
    if given == 0 and not {"-dev", "--device"} & set(extra) and (known is None or "--device" in known):
        # With no layer on it a GPU would still be opened for the cache and for large batches.
        tokens += ("--device", "none")
    return tokens


def _threads(
    options: Mapping[str, Any], cores: int | None, known: frozenset[str] | None, notes: list[str]
) -> list[str]:
    threads = options["threads"]
    if threads is None:
        return []
    if cores is not None and threads > cores:
        notes.append(f"threads lowered from {threads} to {cores}, the number of processors here")
        threads = cores
    return [_spelling(BY_NAME["threads"], known), str(threads)]


def _parallel(options: Mapping[str, Any], known: frozenset[str] | None, notes: list[str]) -> list[str]:
    """The engine's own default (several slots) is never used: the front door must know how many there are."""
    count = slots(options)
    tokens = [_spelling(BY_NAME["parallel"], known), str(count)]
    if count > 1 and (known is None or "--kv-unified" in known):
        tokens.append("--kv-unified")
    elif count > 1:
        notes.append(
            f"this engine build splits the context: each of the {count} slots gets a part of ctx_size"
        )
    return tokens


def _speculation(
    options: Mapping[str, Any], facts: ModelFacts, extra: tuple[str, ...], known: frozenset[str] | None
) -> list[str]:
    if not options["spec_enabled"]:
        return []
    if facts.nextn_layers == 0:
        raise InvalidField(
            "spec_enabled",
            "spec_enabled: this model has no MTP (nextn) layers; switch speculative decoding off or use a "
            "model built with them",
        )
    if "--spec-type" in extra:
        raise InvalidField("extra_args", "extra_args: --spec-type contradicts spec_enabled; use one of them")
    tokens = [_spelling(BY_NAME["spec_enabled"], known), "draft-mtp"]
    if options["spec_draft_n_max"] is not None and "--spec-draft-n-max" not in extra:
        tokens += (_spelling(BY_NAME["spec_draft_n_max"], known), str(options["spec_draft_n_max"]))
    return tokens


def _batch(
    options: Mapping[str, Any], extra: tuple[str, ...], known: frozenset[str] | None, *, gpu: bool
) -> list[str]:
    """A prompt can be left only between batches, and a processor takes ten seconds for one of 2,048 tokens.

    Prefill on a processor is not measurably faster in large batches (one thread, two runs each: 111 and 139
    tokens/s with 2,048, 121 and 123 with 128).
    An embedding model needs its whole input in one batch.
    """
    if (gpu and options["n_gpu_layers"] != 0) or options["embedding_model"]:
        return []
    if {"-b", "--batch-size"} & set(extra) or (known is not None and "--batch-size" not in known):
        return []
    return ["--batch-size", str(PROCESSOR_BATCH)]


def _load_mode(mode: str, known: frozenset[str] | None) -> list[str]:
    if mode == "auto":
        return []
    if known is None or "--load-mode" in known:
        return ["--load-mode", mode]
    switches = _OLD_LOAD_MODES[mode]
    if not known.issuperset(switches):
        raise InvalidField(
            "load_mode", f"load_mode: this engine build has no way to load with {mode}; use auto"
        )
    return list(switches)


def _projector(text: str, model_file: ModelFile) -> Path:
    found = model_file(text)
    if found is None:
        raise InvalidField("mmproj", "mmproj must be a .gguf file below MODELS_DIR")
    return found
