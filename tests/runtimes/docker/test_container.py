"""The body of a container, from a plan: what is in it, what plugins may add, and the limits."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamaman.errors import LaunchError
from llamaman.records import Engine, LaunchPlan, Mount, SpecPatch
from llamaman.runtimes.docker.account import Account
from llamaman.runtimes.docker.container import Facts, build, checked, effective_limits, spec_of
from llamaman.runtimes.docker.labels import labels, proven

GIB = 1 << 30
IMAGE = "ghcr.io/ggml-org/llama.cpp:server"
IMAGE_ID = "sha256:" + "ab" * 32
MOUNT = Mount("/srv/models/tiny.gguf", "/models/tiny.gguf")
PLAN = LaunchPlan(
    instance_id="0123456789abcdef",
    node="n1",
    install="i1",
    generation=3,
    engine=Engine("server", "image", IMAGE),
    model_path=Path("/data/models/tiny.gguf"),
    alias="tiny",
    options={"n_gpu_layers": -1},
    flags=("--ctx-size", "2048", "--mmproj", "/data/models/eye.gguf"),
    env={"CUDA_VISIBLE_DEVICES": "1"},
    host="127.0.0.1",
    port=0,
    log_path=Path("/logs/tiny.log"),
    config_hash="c0ffee",
    api_key="secret-of-this-start",
    cpus=2.5,
    memory_bytes=4 * GIB,
)
FACTS = Facts(
    cpus=8,
    memory_total=64 * GIB,
    image_id=IMAGE_ID,
    network="llamaman-net",
    publish=None,
    init=True,
    key=b"key-of-this-node",
    account=Account(65534, 65534, (50,)),
    mounts=(MOUNT, Mount("/srv/models/eye.gguf", "/models/eye.gguf")),
    flags=("--ctx-size", "2048", "--mmproj", "/models/eye.gguf"),
    known_flags=frozenset({"--no-webui", "--metrics", "--log-colors"}),
)
GPU = SpecPatch(
    env={"NVIDIA_VISIBLE_DEVICES": "GPU-1", "CUDA_VISIBLE_DEVICES": "0"},
    devices=("/dev/dri/renderD128",),
    groups=("44", "50"),
    device_requests=({"Driver": "nvidia", "DeviceIDs": ["GPU-1"], "Capabilities": [["gpu"]]},),
    host_config={"ShmSize": GIB, "Runtime": "nvidia"},
)


def env(body: dict[str, Any]) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in body["Env"])


def test_the_whole_body_of_a_container() -> None:
    container = build(PLAN, "llamaman-", FACTS)
    assert container.name == "llamaman-01234567"
    assert container.notes == ()
    assert container.body == {
        "Image": IMAGE,
        "Cmd": [
            *("--model", "/models/tiny.gguf", "--host", "0.0.0.0", "--port", "8080", "--alias", "tiny"),
            *("--ctx-size", "2048", "--mmproj", "/models/eye.gguf"),
            *("--no-webui", "--log-colors", "off", "--metrics"),
        ],
        "User": "65534:65534",
        "Env": ["HOME=/tmp", "CUDA_VISIBLE_DEVICES=1", "LLAMA_API_KEY=secret-of-this-start"],
        "Labels": labels(PLAN, IMAGE_ID, b"key-of-this-node"),
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "HostConfig": {
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": "rw,nosuid,nodev,noexec,size=268435456,mode=1777"},
            "PidsLimit": 2048,
            "Memory": 4 * GIB,
            "MemorySwap": 4 * GIB,
            "NanoCpus": 2_500_000_000,
            "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
            "OomScoreAdj": 500,
            "Dns": ["127.0.0.1"],
            "Init": True,
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
            "RestartPolicy": {"Name": "no"},
            "NetworkMode": "llamaman-net",
            "GroupAdd": ["50"],
            "Mounts": [
                {
                    "Type": "bind",
                    "Source": f"/srv/models/{name}",
                    "Target": f"/models/{name}",
                    "ReadOnly": True,
                }
                for name in ("tiny.gguf", "eye.gguf")
            ],
        },
    }
    assert json.loads(json.dumps(container.body)) == container.body
    assert checked(PLAN, "llamaman-", FACTS) == container


def test_the_containers_labels_prove_it_is_ours() -> None:
    marks = proven(build(PLAN, "x-", FACTS).body["Labels"], IMAGE_ID, FACTS.key)
    assert marks is not None
    assert (marks.instance_id, marks.generation) == (PLAN.instance_id, 3)


def test_no_path_of_the_host_and_no_key_is_on_the_command_line_or_in_a_repr() -> None:
    container = build(PLAN, "llamaman-", FACTS)
    line = " ".join(container.body["Cmd"])
    assert "/srv" not in line
    assert "/data" not in line
    for text in (line, repr(container), repr(FACTS), json.dumps(container.body["Labels"])):
        assert PLAN.api_key not in text
        assert "key-of-this-node" not in text


def test_a_port_is_published_on_this_machine_alone_and_only_when_asked_for() -> None:
    body = checked(PLAN, "x-", replace(FACTS, publish=("127.0.0.1", 9001))).body
    assert body["ExposedPorts"] == {"8080/tcp": {}}
    assert body["HostConfig"]["PortBindings"] == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "9001"}]}
    with pytest.raises(LaunchError, match=r"HostConfig\.PortBindings.*HostIp 0\.0\.0\.0"):
        checked(PLAN, "x-", replace(FACTS, publish=("0.0.0.0", 9001)))


def test_what_gpu_plugins_add_is_in_the_container() -> None:
    body = checked(PLAN, "x-", replace(FACTS, patch=GPU)).body
    host = body["HostConfig"]
    assert env(body)["CUDA_VISIBLE_DEVICES"] == "0"  # inside, the numbers start again
    assert env(body)["NVIDIA_VISIBLE_DEVICES"] == "GPU-1"
    assert host["Devices"] == [
        {
            "PathOnHost": "/dev/dri/renderD128",
            "PathInContainer": "/dev/dri/renderD128",
            "CgroupPermissions": "rw",
        }
    ]
    assert host["DeviceRequests"] == [dict(GPU.device_requests[0])]
    assert host["GroupAdd"] == ["50", "44"]
    assert (host["ShmSize"], host["Runtime"]) == (GIB, "nvidia")


def test_without_layers_on_a_gpu_no_gpu_comes_in_whatever_plugins_say() -> None:
    plan = replace(PLAN, options={"n_gpu_layers": 0}, env={})
    by_name = replace(
        GPU,
        host_config={
            **GPU.host_config,
            "Devices": [{"PathOnHost": "/dev/dri"}],
            "DeviceRequests": [{"Count": -1}],
            "DeviceCgroupRules": ["c 226:* rwm"],
            "GroupAdd": ["44"],
        },
    )
    for patch in (GPU, by_name, SpecPatch()):
        body = checked(plan, "x-", replace(FACTS, patch=patch)).body
        assert not {"Devices", "DeviceRequests", "DeviceCgroupRules", "Runtime"} & set(body["HostConfig"])
        assert body["HostConfig"]["GroupAdd"] == ["50"]  # the one by which the model is read
        assert env(body)["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_an_image_that_a_plugin_names_is_refused_unless_it_is_the_launch_s_own() -> None:
    assert checked(PLAN, "x-", replace(FACTS, patch=SpecPatch(image=IMAGE))).body["Image"] == IMAGE
    patch = SpecPatch(image=IMAGE + "-cuda")
    with pytest.raises(LaunchError, match=r"Image is refused.*server-cuda"):
        checked(PLAN, "x-", replace(FACTS, patch=patch))


def test_a_plugin_cannot_set_the_engines_key() -> None:
    with pytest.raises(LaunchError, match="LLAMA_API_KEY"):
        build(PLAN, "x-", replace(FACTS, patch=SpecPatch(env={"LLAMA_API_KEY": "evil"})))


def test_an_engine_that_is_no_image_is_none_of_this_runtimes() -> None:
    with pytest.raises(LaunchError, match="kind binary"):
        build(replace(PLAN, engine=Engine("llama-server", "binary", "/usr/bin/x")), "x-", FACTS)


def test_a_machine_without_an_init_program_is_told_so() -> None:
    assert checked(PLAN, "x-", replace(FACTS, init=False)).body["HostConfig"]["Init"] is False


def test_one_container_does_not_share_its_walls_with_the_next() -> None:
    ulimits: list[Any] = [{"Name": "core", "Soft": 0, "Hard": 0}]
    facts = replace(FACTS, patch=replace(GPU, host_config={"Ulimits": ulimits}))
    before = copy.deepcopy(build(PLAN, "x-", facts).body)

    def spoil(value: Any) -> None:
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            spoil(inner)
        if isinstance(value, (dict, list)):
            value.clear()

    spoil(build(PLAN, "x-", facts).body)
    assert build(PLAN, "x-", facts).body == before


@pytest.mark.parametrize(
    ("wanted", "total", "given"),
    [
        (None, 64 * GIB, 64 * GIB - 64 * GIB // 10),
        (None, 8 * GIB, 6 * GIB),
        (None, 2 * GIB, GIB),
        (4 * GIB, 8 * GIB, 4 * GIB),
        (7 * GIB, 8 * GIB, 6 * GIB),
    ],
)
def test_memory_always_has_a_limit_that_leaves_the_machine_some(
    wanted: int | None, total: int, given: int
) -> None:
    plan, facts = replace(PLAN, memory_bytes=wanted), replace(FACTS, memory_total=total)
    host = checked(plan, "x-", facts).body["HostConfig"]
    assert (host["Memory"], host["MemorySwap"]) == (given, given)
    lowered = wanted is not None and wanted > given
    assert bool(build(plan, "x-", facts).notes) == lowered


@pytest.mark.parametrize(
    ("wanted", "cpus", "nano"), [(None, 8, 0), (3.0, 8, 3 * 10**9), (8.0, 2, 2 * 10**9), (3.0, 0, 3 * 10**9)]
)
def test_processors_are_limited_to_those_there_are(wanted: float | None, cpus: int, nano: int) -> None:
    plan, facts = replace(PLAN, cpus=wanted), replace(FACTS, cpus=cpus)
    assert checked(plan, "x-", facts).body["HostConfig"]["NanoCpus"] == nano


def test_what_was_lowered_is_said_with_both_numbers() -> None:
    limits = effective_limits(replace(PLAN, cpus=16.0, memory_bytes=32 * GIB), cpus=2, memory_total=8 * GIB)
    assert (limits.memory_bytes, limits.cpus) == (6 * GIB, 2.0)
    assert limits.notes == (
        "memory_limit lowered from 32.0 GiB to 6.0 GiB, the most that an engine may have of this machine's 8.0 GiB",
        "processors lowered from 16 to 2, the number of processors there",
    )


def test_without_knowing_the_machines_memory_nothing_is_started() -> None:
    with pytest.raises(LaunchError, match="docker info"):
        build(PLAN, "x-", replace(FACTS, memory_total=0))


def test_hooks_see_the_container_without_its_key() -> None:
    spec = spec_of(PLAN, mounts=FACTS.mounts, flags=FACTS.flags, account=FACTS.account)
    assert spec.image == IMAGE
    assert spec.argv[:2] == ("--model", "/models/tiny.gguf")
    assert spec.env == {"CUDA_VISIBLE_DEVICES": "1", "HOME": "/tmp"}
    assert (spec.mounts, spec.groups, spec.devices) == (FACTS.mounts, ("50",), ())
    assert PLAN.api_key not in repr(spec)
