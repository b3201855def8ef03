"""From options to a plan: which engine, which options win, and what makes a configuration a new one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamaman.core import launch, planner
from llamaman.errors import InvalidField, LaunchError
from llamaman.records import Engine, Exit, Handle, LaunchPlan

from .some_instance import some_instance

BINARY = Engine("llama-server", "binary", "/usr/bin/llama-server", "b1", None)
EMBEDDED = Engine("embedded", "embedded", "xllamacpp", "b2", None)


class Offers:
    """A runtime with these engines; it starts nothing."""

    name = "process"

    def __init__(self, *engines: Engine) -> None:
        self._engines = engines

    def engines(self) -> Sequence[Engine]:
        return self._engines

    def start(self, plan: LaunchPlan) -> Handle:
        raise NotImplementedError

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        raise NotImplementedError

    def watch(self, handle: Handle, on_exit: Any) -> Any:
        raise NotImplementedError

    def inspect(self, handle: Handle) -> Exit | None:
        raise NotImplementedError

    def find(self, node: str, install: str) -> Sequence[Handle]:
        return ()


def sources(
    *engines: Engine,
    preset: Mapping[str, Any] | None = None,
    gpu_devices: str = "",
    facts: launch.ModelFacts | None = None,
) -> planner.Sources:
    return planner.Sources(
        node="n1",
        install="i1",
        gpu_devices=gpu_devices,
        model_facts=lambda path: facts or launch.ModelFacts(),
        model_file=lambda name: None,
        preset=lambda path: preset,
        runtimes=lambda: [Offers(*engines)],
        instance_key=lambda instance_id, generation: f"{instance_id}-{generation}",
        allow_unlisted=lambda: False,
        gpu_present=lambda engine: True,
        memory_estimate=lambda path, options: None,
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    return path


def test_the_projector_that_belongs_to_a_model_is_loaded_unless_another_is_named(model: Path) -> None:
    own = model.with_name("mmproj-m.gguf")
    known = replace(
        sources(BINARY), projector=lambda path: own, model_file=lambda name: Path(name) if name else None
    )
    assert planner.resolve(model, {}, known).options["mmproj"] == str(own)
    other = planner.resolve(model, {"mmproj": "other.gguf"}, known)
    assert other.options["mmproj"] == "other.gguf"
    assert planner.resolve(model, {}, sources(BINARY)).options["mmproj"] is None


@pytest.mark.parametrize(
    ("layers", "present", "uses"), [(-1, True, True), (0, True, False), (-1, False, False)]
)
def test_whether_a_launch_uses_a_gpu_is_known(model: Path, layers: int, present: bool, uses: bool) -> None:
    given = replace(sources(BINARY), gpu_present=lambda engine: present)
    assert planner.resolve(model, {"n_gpu_layers": layers}, given).uses_gpu is uses


def test_explicit_options_win_over_the_preset_and_that_over_defaults(model: Path) -> None:
    preset = {"ctx_size": 2048, "parallel": 3, "note": "mine"}
    resolved = planner.resolve(model, {"parallel": 2}, sources(BINARY, preset=preset))
    assert (resolved.options["ctx_size"], resolved.options["parallel"]) == (2048, 2)
    assert set(resolved.options) == set(launch.defaults())
    assert "--parallel" in resolved.flags


def test_the_first_engine_is_taken_unless_one_is_named(model: Path) -> None:
    given = sources(BINARY, EMBEDDED)
    assert planner.resolve(model, {}, given).engine is BINARY
    assert planner.resolve(model, {"engine": "embedded"}, given).engine is EMBEDDED
    assert (
        planner.resolve(model, {}, sources(BINARY, EMBEDDED, preset={"engine": "embedded"})).engine
        is EMBEDDED
    )


def test_an_engine_that_is_not_here_is_a_refusal_that_lists_those_that_are(model: Path) -> None:
    with pytest.raises(InvalidField, match=r"'vllm'.*llama-server, embedded") as error:
        planner.resolve(model, {"engine": "vllm"}, sources(BINARY, EMBEDDED))
    assert error.value.field == "engine"


@pytest.mark.parametrize("on", [True, False])
def test_an_engine_serves_its_own_page_while_the_setting_is_on(model: Path, on: bool) -> None:
    build = replace(
        BINARY, flags=frozenset({"--ui", "--no-ui", "--n-gpu-layers", "--ctx-size", "--parallel"})
    )
    given = replace(sources(build), web_ui=lambda: on)
    assert ("--ui" in planner.resolve(model, {}, given).flags) is on


def test_without_any_engine_the_error_says_what_to_install(model: Path) -> None:
    with pytest.raises(LaunchError, match=r"LLAMA_SERVER_BIN.*llamaman\[embedded\]"):
        planner.resolve(model, {}, sources())


def test_a_file_that_is_gone_is_said_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(LaunchError) as error:
        planner.resolve(tmp_path / "gone.gguf", {}, sources(BINARY))
    assert str(tmp_path) not in error.value.message
    assert str(tmp_path) in (error.value.detail or "")


def test_what_a_model_cannot_do_is_refused_before_the_launch(model: Path) -> None:
    facts = launch.ModelFacts(nextn_layers=0)
    with pytest.raises(InvalidField):
        planner.resolve(model, {"spec_enabled": True}, sources(BINARY, facts=facts))


def test_the_same_configuration_has_the_same_hash(model: Path) -> None:
    assert (
        planner.resolve(model, {"ctx_size": 1024}, sources(BINARY)).config_hash
        == planner.resolve(model, {}, sources(BINARY, preset={"ctx_size": 1024})).config_hash
    )


def test_whatever_may_make_a_failing_launch_succeed_changes_the_hash(model: Path) -> None:
    given = sources(BINARY)
    before = planner.resolve(model, {}, given).config_hash
    seen = {before, planner.resolve(model, {"ctx_size": 1024}, given).config_hash}
    seen.add(planner.resolve(model, {}, sources(replace(BINARY, build="b9"))).config_hash)
    seen.add(planner.resolve(model, {}, sources(replace(BINARY, path="/opt/llama-server"))).config_hash)
    seen.add(planner.resolve(model, {}, sources(replace(BINARY, digest="sha256:1"))).config_hash)
    seen.add(planner.resolve(model, {}, sources(EMBEDDED)).config_hash)
    os.utime(model, ns=(1, 1))
    seen.add(planner.resolve(model, {}, given).config_hash)
    model.write_bytes(b"GGUF and more")
    os.utime(model, ns=(1, 1))
    seen.add(planner.resolve(model, {}, given).config_hash)
    assert len(seen) == 8


def plan(model: Path, options: Mapping[str, Any], **given: Any) -> LaunchPlan:
    found = sources(BINARY, **given)
    resolved = planner.resolve(model, options, found)
    return planner.plan(some_instance("i7", model="a,b", model_path=model), 3, resolved, 18001, found)


def test_a_plan_needs_no_further_look_up(model: Path) -> None:
    made = plan(model, {"threads": 2, "memory_limit": "2g"})
    assert (made.instance_id, made.node, made.install, made.generation) == ("i7", "n1", "i1", 3)
    assert (made.host, made.port, made.api_key) == ("127.0.0.1", 18001, "i7-3")
    assert (made.cpus, made.memory_bytes) == (2.0, 2 << 30)
    assert made.alias == "a_b"  # llama-server splits aliases at commas
    assert made.config_hash
    assert "i7-3" not in repr(made)
    assert "i7-3" not in " ".join(made.flags)


def test_no_limit_is_none(model: Path) -> None:
    made = plan(model, {})
    assert (made.cpus, made.memory_bytes) == (None, None)


@pytest.mark.parametrize(
    ("options", "default", "devices"),
    [
        ({}, "", None),
        ({}, "0,1", "0,1"),
        ({"gpu_devices": "1"}, "0,1", "1"),
        ({"gpu_devices": "1", "n_gpu_layers": 0}, "0", None),
    ],
)
def test_an_engine_sees_the_devices_it_was_given(
    model: Path, options: Mapping[str, Any], default: str, devices: str | None
) -> None:
    env = plan(model, options, gpu_devices=default).env
    assert set(env.values()) == ({devices} if devices else set())
    assert ("CUDA_VISIBLE_DEVICES" in env) == (devices is not None)


def test_an_image_is_not_told_of_devices_since_those_it_may_use_are_attached(model: Path) -> None:
    image = Engine("docker", "image", "example.org/llama:server-cuda", digest="sha256:1")
    found = sources(image, gpu_devices="0,1")
    resolved = planner.resolve(model, {"gpu_devices": "1"}, found)
    made = planner.plan(some_instance("i7", model_path=model), 1, resolved, 0, found)
    assert (made.env, made.port, made.engine.digest) == ({}, 0, "sha256:1")


def test_whether_there_is_a_gpu_is_asked_of_the_engine_that_was_chosen(model: Path) -> None:
    asked: list[Engine] = []
    found = replace(sources(BINARY, EMBEDDED), gpu_present=lambda engine: bool(asked.append(engine)))
    planner.resolve(model, {"engine": "embedded"}, found)
    assert asked == [EMBEDDED]


def test_a_plan_says_how_much_memory_is_expected(model: Path) -> None:
    found = replace(sources(BINARY), memory_estimate=lambda path, options: options["ctx_size"] * 10)
    resolved = planner.resolve(model, {"ctx_size": 1024}, found)
    assert planner.plan(some_instance(model_path=model), 1, resolved, 1, found).memory_estimate == 10240
    assert plan(model, {}).memory_estimate is None
