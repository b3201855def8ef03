"""The last look at a container: everything that is not known is refused by name."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaman.errors import LaunchError
from llamaman.records import Mount, SpecPatch
from llamaman.runtimes.docker.check import OPTIONAL, check_plan
from llamaman.runtimes.docker.container import Facts, build, checked

from .test_container import FACTS, GIB, GPU, IMAGE, MOUNT, PLAN

FULL: Facts = replace(
    FACTS,
    patch=replace(GPU, host_config={**GPU.host_config, "CpusetCpus": "0-3", "CpusetMems": "0"}),
    publish=("127.0.0.1", 9001),
)
SECCOMP = '{"defaultAction": "SCMP_ACT_ERRNO"}'


def accepted() -> dict[str, Any]:
    return build(PLAN, "llamaman-", FULL).body


def refusals(body: Any, **changes: Any) -> list[str]:
    allowed: dict[str, Any] = {
        "image": IMAGE,
        "files": [mount.source for mount in FULL.mounts],
        "network": "llamaman-net",
        "memory": 4 * GIB,
        "nano_cpus": 2_500_000_000,
        "init": True,
    }
    return check_plan(body, **(allowed | changes))


def test_what_we_build_ourselves_is_accepted_with_every_optional_field() -> None:
    body = accepted()
    assert refusals(body) == []
    assert set(OPTIONAL) <= set(body["HostConfig"])


def device(path: str, **changes: str) -> list[dict[str, str]]:
    return [{"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"} | changes]


def mounted(**changes: Any) -> list[dict[str, Any]]:
    first, second = accepted()["HostConfig"]["Mounts"]
    return [first | changes, second]


def published(address: str, port: str = "9001", name: str = "8080/tcp") -> dict[str, Any]:
    return {name: [{"HostIp": address, "HostPort": port}]}


#: field of HostConfig, value that a plugin might give it
FORBIDDEN: list[tuple[str, Any]] = [
    ("Privileged", True),
    ("Privileged", False),  # a field that must not be said at all cannot be said wrongly
    ("privileged", True),  # Docker reads names without regard to case
    ("memory", 0),
    ("CapAdd", ["SYS_ADMIN"]),
    ("CapDrop", []),
    ("CapDrop", ["ALL", "NET_RAW"]),
    ("SecurityOpt", []),
    ("SecurityOpt", ["no-new-privileges", "seccomp=unconfined"]),
    ("SecurityOpt", ["no-new-privileges", "apparmor=unconfined"]),
    ("SecurityOpt", ["no-new-privileges", "label=disable"]),
    ("SecurityOpt", ["no-new-privileges", "systempaths=unconfined"]),
    ("SecurityOpt", ["no-new-privileges:false"]),
    ("SecurityOpt", ["no-new-privileges", "no-new-privileges"]),
    *(
        (name, mode)
        for name in ("PidMode", "IpcMode", "UTSMode", "UsernsMode", "CgroupnsMode")
        for mode in ("host", "container:x")
    ),
    *(("NetworkMode", mode) for mode in ("host", "container:x", "none", "bridge", "default", "", "other", None)),
    ("ReadonlyRootfs", False),
    ("ReadonlyRootfs", 1),
    ("Tmpfs", {"/tmp": "rw"}),
    ("Tmpfs", {}),
    ("PidsLimit", 0),
    ("PidsLimit", -1),
    ("PidsLimit", 2048.0),
    ("Memory", 0),
    ("Memory", 5 * GIB),
    ("Memory", GIB),  # less is fine, but then MemorySwap would be more
    ("MemorySwap", -1),
    ("MemorySwap", 8 * GIB),
    ("NanoCpus", 0),
    ("NanoCpus", 8_000_000_000),
    ("Ulimits", []),
    ("OomScoreAdj", -500),
    ("OomKillDisable", True),
    ("Init", False),
    ("LogConfig", {"Type": "syslog", "Config": {"syslog-address": "udp://evil:514"}}),
    ("LogConfig", {"Type": "none", "Config": {}}),
    ("RestartPolicy", {"Name": "always"}),
    ("RestartPolicy", {"Name": "no", "MaximumRetryCount": 1}),
    *(
        ("Devices", device(path))
        for path in (
            "/dev/sda", "/dev/mem", "/dev/dri/../sda", "/dev/nvidia0/../sda", "/dev/dri/./card0", "/dev/kfd/../sda",
            "/dev/drivel", "/dev", "/", "/dev/fuse", "/dev/kfd2", "/dev/dri/", "dri", "/dev/dri\n", "/tmp/dev/dri",
        )
    ),
    ("Devices", device("/dev/dri", PathInContainer="/dev/sda")),
    ("Devices", device("/dev/dri", CgroupPermissions="rwm")),
    ("Devices", device("/dev/dri", Extra="x")),
    ("Devices", ["/dev/dri"]),
    ("DeviceCgroupRules", ["a *:* rwm"]),
    ("DeviceRequests", [{"Driver": "evil", "Count": 1, "Capabilities": [["gpu"]]}]),
    ("DeviceRequests", [{"Count": -2, "Capabilities": [["gpu"]]}]),
    ("DeviceRequests", [{"Count": -1}]),
    ("DeviceRequests", [{"Count": -1, "Capabilities": [["tpu"]]}]),
    ("DeviceRequests", [{"Count": -1, "DeviceIDs": ["0"], "Capabilities": [["gpu"]]}]),
    ("DeviceRequests", [{"Driver": "cdi", "DeviceIDs": ["evil.com/mount=all"]}]),
    ("DeviceRequests", [{"Driver": "cdi"}]),
    ("DeviceRequests", [{"DeviceIDs": ["/dev/sda"], "Capabilities": [["gpu"]]}]),
    ("DeviceRequests", [{"Count": 1, "Capabilities": [["gpu"]], "Options": {"a": "b"}}]),
    ("GroupAdd", ["docker"]),
    ("GroupAdd", ["-1"]),
    ("GroupAdd", ["4294967295"]),
    ("GroupAdd", [44]),
    ("Mounts", []),
    ("Mounts", mounted()[:1]),
    ("Mounts", mounted() * 2),
    ("Mounts", [*mounted(), *mounted(Source="/var/run/docker.sock", Target="/models/s")[:1]]),
    ("Mounts", mounted(ReadOnly=False)),
    ("Mounts", mounted(ReadOnly=1)),
    ("Mounts", mounted(Type="volume")),
    ("Mounts", mounted(Type="tmpfs")),
    ("Mounts", mounted(Source="/srv/models")),
    ("Mounts", mounted(Source="/srv/models/../models/tiny.gguf")),
    ("Mounts", mounted(Target="/etc/passwd")),
    ("Mounts", mounted(Target="/models/../etc/passwd")),
    ("Mounts", mounted(Target="/models/")),
    ("Mounts", mounted(BindOptions={"Propagation": "shared"})),
    ("Binds", ["/:/host"]),
    ("Volumes", {"/x": {}}),
    ("VolumesFrom", ["x"]),
    ("VolumeDriver", "x"),
    *(("PortBindings", published(address)) for address in ("0.0.0.0", "", "::", "192.168.0.1", "localhost")),
    ("PortBindings", published("127.0.0.1", "0")),
    ("PortBindings", published("127.0.0.1", "65536")),
    ("PortBindings", published("127.0.0.1", name="22/tcp")),
    ("PortBindings", {"8080/tcp": [*published("127.0.0.1")["8080/tcp"], *published("0.0.0.0")["8080/tcp"]]}),
    ("PortBindings", {}),
    ("PublishAllPorts", True),
    ("Runtime", "io.containerd.evil"),
    ("ShmSize", 0),
    ("ShmSize", 64 * GIB),
    ("CpusetCpus", "all"),
    ("CpusetMems", "../x"),
    *(
        (name, "x")
        for name in (
            "Links", "ExtraHosts", "Dns", "AutoRemove", "MaskedPaths", "ReadonlyPaths", "Sysctls", "StorageOpt",
            "CgroupParent", "Annotations", "Isolation", "KernelMemory", "CpuQuota", "ContainerIDFile", "",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), FORBIDDEN, ids=[f"{name}-{n}" for n, (name, _) in enumerate(FORBIDDEN)]
)
def test_a_plugin_that_patches_a_forbidden_field_gets_a_refusal_that_names_it(name: str, value: Any) -> None:
    host_config = {**FULL.patch.host_config, name: value}
    facts = replace(FULL, patch=replace(FULL.patch, host_config=host_config))
    found = refusals(build(PLAN, "x-", facts).body)
    assert any(text.startswith(f"HostConfig.{name or repr('')}") for text in found), found
    with pytest.raises(LaunchError, match=r"HostConfig\.") as caught:
        checked(PLAN, "x-", facts)
    assert PLAN.api_key not in caught.value.message
    assert "/srv/" not in caught.value.message


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD", "LD_LIBRARY_PATH", "GGML_BACKEND_PATH", "LLAMA_ARG_TOOLS", "LLAMA_ARG_STATIC_PATH", "AIP_MODE",
        "HF_TOKEN", "HF_ENDPOINT", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "CUDA_INJECTION64_PATH", "HSA_TOOLS_LIB",
        "VK_ICD_FILENAMES", "GGML_RPC", "PATH", "MODEL_ENDPOINT", "cuda_visible_devices", "LLAMA_CACHE",
        "OMP_NUM_THREADS",
    ],
)  # fmt: skip
def test_a_variable_that_is_not_on_the_list_is_refused_by_name_and_without_its_value(name: str) -> None:
    with pytest.raises(LaunchError, match=f"Env {name} is refused") as caught:
        checked(PLAN, "x-", replace(FACTS, patch=SpecPatch(env={name: "the-value"})))
    assert "the-value" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NVIDIA_VISIBLE_DEVICES", "all"), ("NVIDIA_DRIVER_CAPABILITIES", "compute,utility"),
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("HIP_VISIBLE_DEVICES", "0"), ("ROCR_VISIBLE_DEVICES", "0"),
        ("HSA_OVERRIDE_GFX_VERSION", "10.3.0"), ("HSA_OVERRIDE_GFX_VERSION_1", "11.0.0"),
        ("ONEAPI_DEVICE_SELECTOR", "level_zero:0"), ("ZES_ENABLE_SYSMAN", "1"),
        ("UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS", "1"), ("GGML_VK_VISIBLE_DEVICES", "0"),
        ("GGML_CUDA_ENABLE_UNIFIED_MEMORY", "1"),
    ],
)  # fmt: skip
def test_what_gpu_vendors_need_may_be_set(name: str, value: str) -> None:
    body = checked(PLAN, "x-", replace(FACTS, patch=SpecPatch(env={name: value}))).body
    assert f"{name}={value}" in body["Env"]


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        (SpecPatch(image="evil/image:latest"), "Image"),
        (SpecPatch(env={"HOME": "/models"}), "Env HOME"),
        (SpecPatch(devices=("/dev/dri/../sda",)), "HostConfig.Devices"),
        (SpecPatch(groups=("root",)), "HostConfig.GroupAdd"),
        (SpecPatch(device_requests=({"Driver": "cdi", "DeviceIDs": ["x"]},)), "HostConfig.DeviceRequests"),
        (SpecPatch(mounts=(Mount("/var/run/docker.sock", "/models/s"),)), "HostConfig.Mounts"),
        (SpecPatch(mounts=(Mount("/srv/models", "/models/all"),)), "HostConfig.Mounts"),
        (SpecPatch(mounts=(Mount(MOUNT.source, "/models/again", read_only=False),)), "HostConfig.Mounts"),
    ],
)
def test_every_field_of_a_patch_is_looked_at(patch: SpecPatch, field: str) -> None:
    with pytest.raises(LaunchError, match=f"{field}[ .].*refused"):
        checked(PLAN, "x-", replace(FACTS, patch=patch))


@pytest.mark.parametrize("path", ["/dev/dri", "/dev/dri/card0", "/dev/dri/by-path/pci-0000:01:00.0-render", "/dev/kfd",
                                  "/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm-tools", "/dev/dxg",
                                  "/dev/nvidia-caps/nvidia-cap1"])  # fmt: skip
def test_gpu_devices_are_accepted(path: str) -> None:
    checked(PLAN, "x-", replace(FACTS, patch=SpecPatch(devices=(path,))))


@pytest.mark.parametrize(
    "request_",
    [
        {"Driver": "", "Count": -1, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}},
        {"Count": 2, "Capabilities": [["gpu", "compute"], ["gpu", "utility"]]},
        {"Driver": "nvidia", "DeviceIDs": ["GPU-8d2f6a3e-1"], "Capabilities": [["gpu"]]},
        {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all", "nvidia.com/gpu=GPU-1"]},
    ],
)
def test_gpu_requests_are_accepted(request_: dict[str, Any]) -> None:
    checked(PLAN, "x-", replace(FACTS, patch=SpecPatch(device_requests=(request_,))))


def test_a_seccomp_profile_is_accepted_only_when_an_administrator_named_it() -> None:
    facts = replace(
        FACTS, patch=SpecPatch(host_config={"SecurityOpt": ["no-new-privileges", f"seccomp={SECCOMP}"]})
    )
    checked(PLAN, "x-", facts, seccomp_profiles=[SECCOMP])
    for others in ((), ("unconfined",)):
        with pytest.raises(LaunchError, match=r"HostConfig\.SecurityOpt seccomp="):
            checked(PLAN, "x-", facts, seccomp_profiles=others)


@pytest.mark.parametrize("name", ["host", "none", "bridge", "default", "container:x", ""])
def test_no_network_but_one_of_our_own_is_joined_even_if_it_is_the_configured_one(name: str) -> None:
    with pytest.raises(LaunchError, match=r"NetworkMode.*LLAMA_NETWORK"):
        checked(PLAN, "x-", replace(FACTS, network=name))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("User", user) for user in ("", "root", "0", "0:0", "1000", "1000:0", "0:1000", "nobody:nogroup", "01:1",
                                      "4294967295:1", "-1:1", None, 1000)),
        *(("Entrypoint", ["/bin/sh"]), ("WorkingDir", "/"), ("Volumes", {"/x": {}}), ("NetworkDisabled", True)),
        *(("Hostname", "x"), ("Tty", True), ("NetworkingConfig", {}), ("MacAddress", "x"), ("Shell", ["x"])),
        *(("Healthcheck", {"Test": ["CMD", "curl"]}), ("Healthcheck", {}), ("StopSignal", "SIGKILL")),
        *(("ExposedPorts", {"22/tcp": {}}), ("image", "x"), ("user", "0"), ("hostconfig", {"Privileged": True})),
        *(("Image", "evil"), ("Image", ""), ("Image", None), ("HostConfig", None), ("HostConfig", [])),
        *(("Labels", None), ("Labels", {}), ("Env", {}), ("Env", []), ("Cmd", None), ("Cmd", []), ("Cmd", "--model")),
    ],
)  # fmt: skip
def test_fields_that_no_patch_can_reach_are_looked_at_too(name: str, value: Any) -> None:
    assert any(text.startswith(name) for text in refusals(accepted() | {name: value}))


@pytest.mark.parametrize(
    ("index", "word"),
    [(1, "/etc/passwd"), (3, "::"), (5, "80"), (2, "--path"), (8, "--api-key"), (8, "--api_key"), (8, "--host"),
     (8, "-m"), (8, "--tools"), (8, "--slot-save-path"), (8, "--hf-repo"), (8, "--rpc"), (8, None)],
)  # fmt: skip
def test_the_command_line_listens_where_it_must_and_holds_no_refused_flag(index: int, word: Any) -> None:
    body = accepted()
    body["Cmd"][index] = word
    assert any(text.startswith("Cmd is refused") for text in refusals(body))


@pytest.mark.parametrize(
    ("entry", "name"),
    [("HOME=/tmp", "HOME"), ("LLAMA_API_KEY=", "LLAMA_API_KEY"), ("PATH", "PATH"), ("", "''"), (None, "''"),
     ("=x", "''"), ("CUDA_DEVICE_ORDER=a\nLD_PRELOAD=x", "CUDA_DEVICE_ORDER")],
)  # fmt: skip
def test_variables_are_given_once_and_whole(entry: Any, name: str) -> None:
    body = accepted()
    body["Env"].append(entry)
    assert any(text.startswith(f"Env {name}") for text in refusals(body))


# --- one change anywhere ------------------------------------------------------------------------------

Path_ = tuple[str | int, ...]


def paths(value: Any, at: Path_ = ()) -> list[Path_]:
    """The place of every value in a body."""
    found = [at] if at else []
    if isinstance(value, dict):
        for name, inner in value.items():
            found += paths(inner, (*at, name))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            found += paths(inner, (*at, index))
    return found


def at(body: Any, path: Path_) -> Any:
    for step in path:
        body = body[step]
    return body


def may_differ(path: Path_) -> bool:
    """The documented free fields: another value of the right kind may be accepted there."""
    return (
        (path[0] == "Cmd" and len(path) == 2 and path[1] not in (0, 1, 2, 3, 4, 5, 6))
        or path[0] in ("User", "Env")
        or (path[0] == "Labels" and path[-1] != "llamaman.managed")
        or path[:2] == ("HostConfig", "NanoCpus")
        or path[:2] in {("HostConfig", name) for name in OPTIONAL}
        or (path[:2] == ("HostConfig", "Mounts") and path[-1] == "Target")
    )


def may_be_missing(path: Path_) -> bool:
    return (
        (path[0] == "Cmd" and len(path) == 2 and int(path[1]) >= 7)
        or (
            path[0] == "Env"
            and len(path) == 2
            and not at(accepted(), path).startswith(("HOME=", "LLAMA_API_KEY="))
        )
        or (path[0] == "HostConfig" and len(path) > 1 and path[1] in OPTIONAL and path[1] != "PortBindings")
    )


PATHS = paths(accepted())
OBJECTS = [(), *(path for path in PATHS if isinstance(at(accepted(), path), dict))]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("path", [path for path in PATHS if not may_be_missing(path)], ids=str)
def test_nothing_that_must_be_there_can_be_taken_away(path: Path_) -> None:
    body = accepted()
    del at(body, path[:-1])[path[-1]]
    assert refusals(body)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(OBJECTS), st.text(max_size=12), JSON)
def test_no_unknown_field_can_be_added_anywhere(path: Path_, name: str, value: Any) -> None:
    body = accepted()
    place = at(body, path)
    if name not in place:
        place[name] = value
        # Docker's own client sends an empty Options with each request
        harmless = path[:2] == ("HostConfig", "DeviceRequests") and name == "Options" and value in (None, {})
        assert bool(refusals(body)) != harmless


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PATHS), JSON)
def test_no_value_can_be_changed_outside_the_free_fields(path: Path_, value: Any) -> None:
    body = accepted()
    before = at(body, path)
    if type(value) is not type(before) or value != before:
        at(body, path[:-1])[path[-1]] = value
        no_list = path[-1] == "DeviceIDs" and value is None  # as Docker's own client says it
        assert refusals(body) or (may_differ(path) and (type(value) is type(before) or no_list))


@given(JSON | st.builds(lambda inner: {"HostConfig": inner}, JSON))
def test_whatever_the_body_is_it_is_refused_without_an_exception(body: Any) -> None:
    assert refusals(body if isinstance(body, dict) else {"HostConfig": body})


def test_the_check_survives_what_is_no_json_at_all() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    body = copy.deepcopy(accepted())
    for name in body["HostConfig"]:
        for odd in (deep, {1: 2, "a": 3}, object(), {object()}, (1,), b"x", float("nan")):
            assert refusals({**body, "HostConfig": {**body["HostConfig"], name: odd}}), (name, odd)
