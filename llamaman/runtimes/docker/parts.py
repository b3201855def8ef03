"""What the Docker runtime is told by whoever puts LlamaMan together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llamaman.records import ContainerSpec, LaunchRequest, SpecPatch

#: What plugins add to a container: called once per launch.
AskPlugins = Callable[[LaunchRequest, ContainerSpec], SpecPatch]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the runtime is told.

    :ivar host: DOCKER_HOST, or None for this machine's socket.
    :ivar key: secret of this node that proofs are made with.
    :ivar host_addr: LLAMA_HOST_ADDR where it was set: unless we are their neighbour, containers are reached by
        ports published there.
    :ivar private: our own folders, of which no file is ever mounted.
    :ivar folders: (MODELS_DIR as we see it, as the Docker host sees it), where that was given.
    :ivar seccomp_profiles: those that an administrator allows plugins to ask for.
    :ivar state_dir: a folder of ours for what is found out once per image.
    """

    host: str | None
    environ: Mapping[str, str]
    node: str
    install: str
    key: bytes = field(repr=False)
    prefix: str
    network: str
    host_addr: str | None
    in_docker: bool | None
    folders: tuple[tuple[Path, Path], ...]
    private: tuple[Path, ...]
    logs_dir: Path
    state_dir: Path
    image: str
    images_allowed: Callable[[], Sequence[str]]
    seccomp_profiles: Callable[[], Sequence[str]]
    ask_plugins: AskPlugins
