"""From an instance's options to a launch plan. Blocking: runs on the start pool, never on the loop.

The preset is resolved anew for every start, so that a saved preset takes effect with the next wake.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaman.core import launch, runtime_choice
from llamaman.core.extra_args import ModelFile
from llamaman.core.instance import Instance
from llamaman.errors import LaunchError
from llamaman.records import Engine, LaunchPlan
from llamaman.runtime import Runtime

ENGINE_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where planning looks things up. Everything may block.

    :ivar gpu_present: whether an engine may use a GPU.
    :ivar memory_estimate: bytes that a model takes with these options, None when that is not known.
    :ivar projector: the projector that belongs to a model, for launches that name none.
    :ivar web_ui: whether engines serve their own web page (setting ``instances.web_ui``).
    """

    node: str
    install: str
    gpu_devices: str
    model_facts: Callable[[Path], launch.ModelFacts]
    model_file: ModelFile
    preset: Callable[[Path], Mapping[str, Any] | None]
    runtimes: Callable[[], Sequence[Runtime]]
    instance_key: Callable[[str, int], str]
    allow_unlisted: Callable[[], bool]
    gpu_present: Callable[[Engine], bool]
    memory_estimate: Callable[[Path, Mapping[str, Any]], int | None]
    projector: Callable[[Path], Path | None] = lambda path: None
    web_ui: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class Resolved:
    """Options after defaults, preset and explicit values, with the engine that will run them."""

    options: dict[str, Any]
    runtime: Runtime
    engine: Engine
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    config_hash: str
    uses_gpu: bool


def resolve(model_path: Path, overrides: Mapping[str, Any], sources: Sources) -> Resolved:
    """Decide everything about a launch but its address.

    :raises InvalidField: an option that this model or engine cannot have.
    :raises LaunchError: there is no engine here, or no file.
    :raises RuntimeLost: whether there is an engine cannot be known now.
    """
    options = launch.resolve(sources.preset(model_path) or {}, overrides)
    if not options["mmproj"] and (projector := sources.projector(model_path)):
        options["mmproj"] = str(projector)
    runtime, engine = runtime_choice.choose(options.get("engine"), sources.runtimes())
    flags = launch.to_flags(
        options,
        known=engine.flags,
        facts=sources.model_facts(model_path),
        model_file=sources.model_file,
        cores=os.cpu_count(),
        gpu=(gpu := sources.gpu_present(engine)),
        allow_unlisted=sources.allow_unlisted(),
        web_ui=sources.web_ui(),
    )
    return Resolved(
        options=options,
        runtime=runtime,
        engine=engine,
        flags=flags.tokens,
        notes=flags.notes,
        config_hash=_hash(model_path, options, engine),
        uses_gpu=gpu and options["n_gpu_layers"] != 0,
    )


def plan(instance: Instance, generation: int, resolved: Resolved, port: int, sources: Sources) -> LaunchPlan:
    """The plan of one generation of an instance. ``port`` is 0 where the runtime needs none."""
    threads = resolved.options["threads"]
    return LaunchPlan(
        instance_id=instance.id,
        node=sources.node,
        install=sources.install,
        generation=generation,
        engine=resolved.engine,
        model_path=instance.model_path,
        alias=instance.model.replace(",", "_"),
        options=resolved.options,
        flags=resolved.flags,
        env=_gpu_environment(resolved.engine, resolved.options, sources.gpu_devices),
        host=ENGINE_HOST,
        port=port,
        log_path=instance.log_path,
        config_hash=resolved.config_hash,
        api_key=sources.instance_key(instance.id, generation),
        cpus=float(threads) if threads else None,
        memory_bytes=launch.memory_limit_bytes(resolved.options),
        memory_estimate=sources.memory_estimate(instance.model_path, resolved.options),
    )


def _gpu_environment(engine: Engine, options: Mapping[str, Any], default: str) -> dict[str, str]:
    if engine.kind == "image":  # what is not attached is not there
        return {}
    devices = options.get("gpu_devices") or default
    if devices in ("", "all") or options["n_gpu_layers"] == 0:
        return {}
    return {"CUDA_VISIBLE_DEVICES": devices, "HIP_VISIBLE_DEVICES": devices}


def _hash(model_path: Path, options: Mapping[str, Any], engine: Engine) -> str:
    """Changes with anything that could make a launch that kept failing succeed."""
    try:
        status = os.stat(model_path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise LaunchError(f"the model's file cannot be read: {reason}", detail=str(model_path)) from None
    build = [engine.name, engine.path, engine.build, engine.digest]
    facts = [str(model_path), status.st_size, status.st_mtime_ns, *build]
    text = json.dumps([facts, options], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
