"""Models in Ollama's words: ``/api/tags``, ``/api/show`` and ``/api/ps``. Pure but for the local time zone.

Read by the dialect. What a running engine says counts before a preset, and that before the model's files; texts from
files go out as they are, in JSON. No answer holds a path of this machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from llamaman import LOADED, InstanceView, ModelDetails, ModelView, capabilities_of, context_of, plain_name

#: Seconds from now that stand for "never": the longest time that Go's clients can hold. They say "Forever".
FOREVER_S = ((1 << 63) - 1) / 1e9

_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
#: The words of Ollama's own list; its clients know no others.
_CAPABILITIES = frozenset({"completion", "embedding", "vision", "audio", "tools", "thinking", "insert"})
#: Keys of a header that have a place of their own in an answer.
_ELSEWHERE = frozenset({"general.name", "tokenizer.chat_template", "general.parameter_count"})
#: It shows people a model's base name, by which those of one family cannot be told apart.
_COPILOT = b"GitHubCopilotChat/"
#: Launch options as Ollama's parameters: always, and while a preset forces its sampling on requests.
_PARAMETERS = {"threads": "num_thread"}
_SAMPLING = {
    "proxy_sampling_temperature": "temperature",
    "proxy_sampling_top_k": "top_k",
    "proxy_sampling_top_p": "top_p",
    "proxy_sampling_presence_penalty": "presence_penalty",
    "proxy_sampling_repeat_penalty": "repeat_penalty",
}
_COLUMNS = 30

Object = dict[str, Any]


def full_name(name: str) -> str:
    """A model's name as lists have it: within the grammar of Ollama's names, and always with a tag."""
    plain = plain_name(name)
    return plain if ":" in plain else f"{plain}:latest"


def tags(models: Sequence[ModelView]) -> Object:
    """The answer of ``/api/tags``: the models that can run, newest first."""
    runnable = sorted((model for model in models if model.runnable), key=lambda m: (-m.modified, m.name))
    return {"models": [_tag(model) for model in runnable]}


def ps(models: Sequence[ModelView], instances: Sequence[InstanceView], now: float) -> Object:
    """The answer of ``/api/ps``: each loaded model once, the one that stays longest first.

    Several instances of a model add up; the context is what the smallest of them gives.

    :param now: epoch seconds.
    """
    loaded: dict[Any, list[InstanceView]] = {}
    for view in instances:
        if view.state in LOADED:
            loaded.setdefault(view.model_path, []).append(view)
    listed = [
        (max(_expires(view, now) for view in loaded[model.path]), model)
        for model in models
        if model.path in loaded
    ]
    listed.sort(key=lambda item: (-item[0], item[1].name))
    return {"models": [_running(model, loaded[model.path], expires) for expires, model in listed]}


def show(
    model: ModelView,
    *,
    verbose: bool,
    user_agent: bytes = b"",
    running: Sequence[InstanceView],
    preset: Mapping[str, Any] | None,
) -> Object:
    """The answer of ``/api/show``; members without a value are left out.

    :param verbose: changes nothing, since the lists that it asks for are not kept of a file.
    :param running: the instances of the model.
    """
    told = _details(model)
    context = context_of(model, running, preset) or model.context_length
    capabilities = _capabilities(model, running, preset)
    template = _template(told.template or "", capabilities)
    parameters = _parameters(context_of(model, running, preset), preset or {})
    texts = {
        "license": _text(told.metadata.get("general.license")),
        "modelfile": _modelfile(model, template, parameters),
        "parameters": "\n".join(f"{name:<{_COLUMNS}} {value}" for name, value in parameters),
        "template": template,
    }
    answer: Object = {name: text for name, text in texts.items() if text}
    answer["details"] = _family(model)
    answer["model_info"] = _model_info(model, told, context, copilot=user_agent.startswith(_COPILOT))
    if told.projector:
        answer["projector_info"] = {k: v for k, v in told.projector.items() if k not in _ELSEWHERE}
    return {**answer, "capabilities": capabilities, "modified_at": _time(model.modified)}


def parameter_size(count: int | None) -> str:
    """How many parameters, as Ollama writes it: ``8.0B``, ``7B``, ``268.10M``; "" where nobody knows."""
    if count is None:
        return ""
    for unit, letter, decimals in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if count >= unit:
            return f"{count // unit}{letter}" if count % unit == 0 else f"{count / unit:.{decimals}f}{letter}"
    return str(count)


# --- the parts of an answer -------------------------------------------------------------------------------


def _tag(model: ModelView) -> Object:
    told = _details(model)
    lengths = {"context_length": model.context_length, "embedding_length": told.embedding_length}
    return {
        **_names(model),
        "modified_at": _time(model.modified),
        "size": model.size,
        "digest": told.digest,
        "details": {**_family(model), **{name: length for name, length in lengths.items() if length}},
        "capabilities": _capabilities(model, (), None),
    }


def _running(model: ModelView, views: Sequence[InstanceView], expires: float) -> Object:
    sizes = [view.memory_estimate or model.size for view in views]
    on_gpus = [_on_gpus(view, size) for view, size in zip(views, sizes, strict=True)]
    contexts = [view.context_length for view in views if view.context_length]
    return {
        **_names(model),
        "size": sum(max(pair) for pair in zip(sizes, on_gpus, strict=True)),
        "digest": _details(model).digest,
        "details": _family(model),
        "expires_at": _time(expires),
        "size_vram": sum(on_gpus),
        "context_length": min(contexts, default=context_of(model, views, None) or model.context_length or 0),
    }


def _on_gpus(view: InstanceView, size: int) -> int:
    """Bytes on GPUs; where nobody measured them all or nothing, by the layers that were to go there."""
    if view.size_vram is not None:
        return view.size_vram
    return 0 if view.options.get("n_gpu_layers") == 0 else size


def _expires(view: InstanceView, now: float) -> float:
    """When an instance will leave, epoch seconds; one that is on its way out has a time that is over."""
    if view.status != "healthy" or view.state == "draining":
        return min(now, view.expires or now)
    return now + FOREVER_S if view.expires is None else view.expires


def _names(model: ModelView) -> Object:
    name = full_name(model.name)
    return {"name": name, "model": name}


def _details(model: ModelView) -> ModelDetails:
    """What the files say; of a model of which nothing is known, a digest."""
    if model.details is not None and model.details.digest:
        return model.details
    return ModelDetails(digest=hashlib.sha256(model.name.encode("utf-8", "surrogatepass")).hexdigest())


def _family(model: ModelView) -> Object:
    told = _details(model)
    family = told.architecture or ""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": parameter_size(told.parameters),
        "quantization_level": model.quant or "unknown",
    }


def _capabilities(
    model: ModelView, running: Sequence[InstanceView], preset: Mapping[str, Any] | None
) -> list[str]:
    return sorted(capabilities_of(model, running, preset) & _CAPABILITIES)


def _model_info(model: ModelView, told: ModelDetails, context: int | None, *, copilot: bool) -> Object:
    """The header's keys. Clients take the first one that ends in ``context_length``, so the model's own comes first."""
    family = told.architecture or ""
    ours: Object = {"general.architecture": family}
    if family:
        ours[f"{family}.context_length"] = context
        ours[f"{family}.embedding_length"] = told.embedding_length
    ours["general.parameter_count"] = told.parameters
    known = {name: value for name, value in ours.items() if value is not None}
    rest = {k: v for k, v in told.metadata.items() if k not in _ELSEWHERE and k not in ours}
    base = (
        full_name(model.name) if copilot else _text(rest.get("general.basename")) or told.name or model.name
    )
    return {**known, "general.basename": base, **{k: v for k, v in rest.items() if k != "general.basename"}}


def _parameters(context: int | None, preset: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a preset has of Ollama's parameters."""
    names = _PARAMETERS | (_SAMPLING if preset.get("proxy_sampling_override_enabled") else {})
    values = [("num_ctx", context)] + [(theirs, preset.get(ours)) for ours, theirs in names.items()]
    return [
        (name, f"{value:.10g}" if isinstance(value, float) else str(value))
        for name, value in values
        if value is not None
    ]


def _template(template: str, capabilities: Sequence[str]) -> str:
    """The chat template with the words by which clients tell what a model can do."""
    if "insert" in capabilities and ".Suffix" not in template:
        template += "{# .Suffix #}"
    if "tools" in capabilities and "tools" not in template:
        template += "{# tools #}"
    return template


def _modelfile(model: ModelView, template: str, parameters: Sequence[tuple[str, str]]) -> str:
    lines = [f"# Modelfile of {full_name(model.name)}, made by LlamaMan", f"FROM {full_name(model.name)}"]
    if template and '"""' not in template:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f"PARAMETER {name} {value}" for name, value in parameters]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _time(at: float) -> str:
    """RFC 3339 with the local offset; a file's time may be anything, and clients fail on the year 1."""
    at = max(0.0, min(at, _LATEST)) if math.isfinite(at) else _LATEST
    return datetime.fromtimestamp(at, UTC).astimezone().isoformat(timespec="microseconds")
