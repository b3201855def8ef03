"""What a Docker daemon says of itself and its machine, judged: limits, restarts, rootless, Desktop, Podman, GPUs. Pure.

Read by `docker.py`. ``info`` and ``version`` are the daemon's own answers, in its field names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from llamaman.core.config import Config
from llamaman.doctor.docker_daemon import CHECK, describe
from llamaman.doctor.finding import Finding, ok, warn
from llamaman.runtimes.docker.daemon import Json
from llamaman.runtimes.docker.engine_facts import has_init, is_desktop, is_podman, is_rootless
from llamaman.runtimes.docker.sayings import NO_PASSTHROUGH

LIMITS: Final = "container-limits"
GPU: Final = "container-gpu"
Kind = Literal["docker", "rootless", "desktop", "podman"]

#: Podman ignores requests for GPUs before this version, without a word.
_PODMAN_WITH_GPUS = (5, 4)
_CGROUP_V1 = "start the host's kernel with cgroup_enable=memory swapaccount=1, and update-grub"


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit, the field of ``info`` that tells of it, and what it means where it is missing."""

    field: str
    missing: str


_ENFORCED: Final = (
    _Limit("MemoryLimit", "a model may take all memory of the machine, whatever its Memory Limit says"),
    _Limit("SwapLimit", "a model that reaches its Memory Limit may take as much again in swap"),
    _Limit("CpuCfsQuota", "a model may use every processor, whatever its CPU Threads say"),
    _Limit("PidsLimit", "what breaks into a model may start processes until the machine stands still"),
)


def kind_of(version: Json, info: Json) -> Kind:
    """Which of the daemons that behave differently this is."""
    if is_podman(version):
        return "podman"
    if is_desktop(info):
        return "desktop"
    return "rootless" if is_rootless(info) else "docker"


def check_kind(version: Json, info: Json, account: str) -> list[Finding]:
    """What an administrator should know of the daemons that differ.

    :param account: under which we run, for the commands.
    """
    found = []
    kind = kind_of(version, info)
    if kind == "desktop":
        what = "this is Docker Desktop: containers run in a virtual machine, without Metal or GPUs of AMD and Intel"
        found.append(
            warn(
                CHECK,
                what,
                "use a Linux host for GPUs, and share MODELS_DIR (Settings > Resources > File sharing)",
            )
        )
    if kind == "podman" and _number(version) < _PODMAN_WITH_GPUS:
        what = f"{describe(version)} ignores requests for GPUs without a word, so models would run on the processor"
        found.append(warn(CHECK, what, "update Podman to 5.4 or newer, or set GPU Layers to 0"))
    if is_rootless(info):
        what = (
            "the daemon is rootless: it ends with the last session of its account unless that lingers, GPUs need CDI, "
            "and the host's groups video and render do not count in containers"
        )
        found.append(
            warn(CHECK, what, f"loginctl enable-linger {account}; for GPUs: nvidia-ctk cdi generate")
        )
    return found


def check_restart(version: Json, info: Json) -> list[Finding]:
    """Whether an update of the daemon ends the models."""
    if kind_of(version, info) in ("podman", "desktop") or "LiveRestoreEnabled" not in info:
        return []  # Podman's containers do not depend on its service; Desktop has no such switch
    if info["LiveRestoreEnabled"]:
        return [ok(CHECK, "models go on while Docker is updated or restarted (live-restore)")]
    what = "an update or restart of Docker ends all models, since live-restore is off; LlamaMan starts them again"
    cure = 'put {"live-restore": true} into /etc/docker/daemon.json, then: systemctl reload docker'
    if str((info.get("Swarm") or {}).get("LocalNodeState", "inactive")) not in ("inactive", ""):
        cure = (
            "accept it: a member of a swarm cannot have live-restore; or leave the swarm (docker swarm leave)"
        )
    return [warn(CHECK, what, cure)]


def check_limits(version: Json, info: Json) -> list[Finding]:
    """Whether the limits of a launch would hold, and whether engines get an init process."""
    missing = [limit for limit in _ENFORCED if info.get(limit.field) is False]
    unknown = [limit.field for limit in _ENFORCED if limit.field not in info]
    found = [
        warn(LIMITS, f"Docker cannot enforce {limit.field} here: {limit.missing}", _limits_cure(info))
        for limit in missing
    ]
    if not missing and not unknown:
        group = f"cgroup v{info.get('CgroupVersion') or '1'}"
        found.append(ok(LIMITS, f"limits of memory, swap, processors and processes are enforced ({group})"))
    if unknown:
        what = f"{describe(version)} does not say whether it enforces {', '.join(unknown)}"
        found.append(
            warn(
                LIMITS,
                what,
                "launch a model with a Memory Limit, and look at 'docker inspect' and its cgroup",
            )
        )
    if not has_init(version, info):
        what = "docker-init is missing, so containers run without an init process, which ends leftovers of an engine"
        found.append(
            warn(
                LIMITS,
                what,
                "install docker-init on the Docker host (its package is docker-ce, moby-engine or tini)",
            )
        )
    return found


def check_gpu(config: Config, info: Json, image: str, exists: Callable[[str], bool]) -> list[Finding]:
    """Whether an NVIDIA card that is wanted can get into a container.

    :param exists: whether a path is there, on the machine that we see.
    """
    wanted = config.gpu_type == "cuda" or (config.gpu_type is None and image.endswith("server-cuda"))
    if not wanted and not (config.gpu_type is None and exists("/dev/nvidiactl")):
        return []
    devices = [
        str(each.get("ID", "")) for each in info.get("DiscoveredDevices") or () if isinstance(each, dict)
    ]
    if "nvidia" in (info.get("Runtimes") or {}) or any(name.startswith("nvidia.com/gpu") for name in devices):
        return [ok(GPU, "Docker can hand NVIDIA GPUs to containers")]
    what = "Docker knows neither the NVIDIA runtime nor a CDI device of it, so a launch with GPU layers fails"
    return [warn(GPU, what, NO_PASSTHROUGH)]


def _limits_cure(info: Json) -> str:
    if is_rootless(info):
        return (
            "let systemd delegate the controllers to the daemon's account: Delegate=cpu cpuset io memory pids in "
            "/etc/systemd/system/user@.service.d/delegate.conf"
        )
    if str(info.get("CgroupVersion", "1")) == "2":
        return "enable the controllers for Docker's cgroup: cat /sys/fs/cgroup/cgroup.controllers names those there are"
    return _CGROUP_V1


def _number(version: Json) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", str(version.get("Version", "")))
    return tuple(map(int, found.groups())) if found else (0, 0)
