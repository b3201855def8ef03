"""What stands between an engine in a container and the machine: the same walls around every one.

For :mod:`.container`, which builds them, and :mod:`.check`, which refuses a container that lacks one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Where every engine listens in its container; the image's own port, which is nobody else's there.
PORT: Final = 8080

#: What every container has, exactly so. Docker's own names; sizes in bytes.
WALLS: Final[Mapping[str, Any]] = {
    # The image's own asks port 8080 from inside every 30 s and calls a slow load unhealthy.
    "Healthcheck": {"Test": ["NONE"]},
    "StopSignal": "SIGTERM",
}
HOST_WALLS: Final[Mapping[str, Any]] = {
    "CapDrop": ["ALL"],
    "ReadonlyRootfs": True,
    "Tmpfs": {"/tmp": f"rw,nosuid,nodev,noexec,size={256 << 20},mode=1777"},  # noqa: S108 - the container's own
    # A real server holds about one task per open connection besides its own dozen.
    "PidsLimit": 2048,
    "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
    "OomScoreAdj": 500,
    # An engine looks up no names. Docker's own resolver would ask the host's for it, out of an internal network.
    "Dns": ["127.0.0.1"],
    "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}},
    "RestartPolicy": {"Name": "no"},
}
NO_NEW_PRIVILEGES: Final = "no-new-privileges"

#: Why, for fields that somebody could want.
WHY_NOT: Final[Mapping[str, str]] = {
    "Privileged": "it takes all of the container's walls down",
    "CapAdd": "an engine needs no capability of the kernel",
    "PidMode": "an engine must not see the processes of others",
    "IpcMode": "an engine must not share memory with others",
    "UTSMode": "an engine must not rename the machine",
    "UsernsMode": "an engine must not share the machine's user ids",
    "CgroupnsMode": "an engine must not see the machine's control groups",
    "Binds": "files are mounted by Mounts, which makes no folder where one is missing",
    "Volumes": "an engine keeps nothing",
    "VolumesFrom": "an engine must not see the files of other containers",
    "VolumeDriver": "an engine keeps nothing",
    "Entrypoint": "the image's own server is run and nothing else",
    "DeviceCgroupRules": "devices are given one by one, by Devices",
    "PublishAllPorts": "an engine is reached through LlamaMan alone",
    "Links": "an engine must not reach other containers",
    "ExtraHosts": "an engine must not reach other machines",
    "Dns": "an engine must not reach other machines",
    "OomKillDisable": "an engine that takes all memory must be ended",
    "AutoRemove": "LlamaMan removes the container after it has read how it ended",
    "MaskedPaths": "an engine must not see what Docker hides",
    "ReadonlyPaths": "an engine must not change what Docker protects",
    "Sysctls": "an engine must not change the kernel's settings",
    "StorageOpt": "an engine keeps nothing",
    "CgroupParent": "limits must stay where LlamaMan finds them",
}
