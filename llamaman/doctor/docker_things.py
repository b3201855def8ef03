"""The things on a Docker daemon that launches need, judged: network, image, and containers that are left over. Pure.

Read by `docker.py`. Networks, images and containers are the daemon's own descriptions, in its field names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from llamaman.core.config import Config
from llamaman.doctor.finding import Finding, fail, ok, warn
from llamaman.runtimes.docker import labels
from llamaman.runtimes.docker.daemon import Json
from llamaman.runtimes.docker.image_names import OFFICIAL
from llamaman.runtimes.docker.network import Reach
from llamaman.runtimes.docker.sayings import PULL_IMAGE

NETWORK: Final = "network"
IMAGE: Final = "image"
CONTAINERS: Final = "containers"

#: The documented answer, word for word.
LEFT_OVER: Final = (
    "LlamaMan stops and removes containers when instances are stopped. If containers are orphaned after a crash, run "
    "docker ps --filter name=llamaman- to find and remove them manually, or restart LlamaMan (orphan adoption runs on "
    "startup)."
)
#: What that answer does not say: it finds neither what has ended nor what LLAMA_CONTAINER_PREFIX renamed.
BY_LABEL: Final = f"docker ps -a --filter label={labels.MANAGED}=1 finds them under any name, ended ones too."

_PREDEFINED: Final = frozenset({"bridge", "host", "none"})
_SHOWN: Final = 5
#: What the kernel calls a processor -> what images call it.
_PROCESSORS: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def check_network(
    config: Config, networks: Sequence[Json], *, reach: Reach, own: Json | None, running: int
) -> list[Finding]:
    """The network of the engines.

    :param networks: those of exactly the configured name.
    :param reach: how engines are reached; published ports do not work on an internal network.
    :param own: our own container, None on the host.
    :param running: how many containers of ours run.
    """
    name = config.llama_network
    if name in _PREDEFINED:
        what = f"LLAMA_NETWORK is '{name}', one of Docker's own networks, which others share and which has no names"
        return [fail(NETWORK, what, "unset LLAMA_NETWORK, or name a network for LlamaMan alone")]
    if len(networks) > 1:
        ids = ", ".join(str(each.get("Id", "?"))[:12] for each in networks)
        what = f"there are {len(networks)} networks named {name} ({ids}), and containers could be on either"
        return [
            warn(
                NETWORK,
                what,
                "docker network rm ID for each that no container uses; a launch tries that, too",
            )
        ]
    if not networks:
        how = (
            "an ordinary network: engines can reach the internet" if reach == "port" else "without a way out"
        )
        return [ok(NETWORK, f"the network {name} does not exist yet; the first launch makes it, {how}")]
    found = [_openness(name, networks[0], by_port=reach == "port")]
    return found + _attachment(name, own, running) if reach == "neighbour" and own is not None else found


def check_image(ref: str, image: Json | None, info: Json, *, chosen: bool) -> list[Finding]:
    """The image of launches that name none.

    :param chosen: by LLAMA_IMAGE.
    """
    found = []
    if "server-sycl" in ref and ref.startswith(OFFICIAL):
        what = f"there is no image {ref}: llama.cpp calls the one for Intel Arc server-intel"
        return [
            fail(IMAGE, what, f"set LLAMA_IMAGE={OFFICIAL}:server-intel, or unset it and set GPU_TYPE=intel")
        ]
    if image is None:
        what = f"the image {ref} is not on the Docker host, so the first launch pulls it and waits for that"
        return [
            warn(
                IMAGE,
                what,
                f"{PULL_IMAGE} (For Intel Arc the tag is server-intel by now.) Here: docker pull {ref}",
            )
        ]
    machine = str(info.get("Architecture", ""))
    wanted, made_for = _PROCESSORS.get(machine, machine), str(image.get("Architecture", ""))
    if wanted and made_for and wanted != made_for:
        what = f"the image {ref} was made for {made_for}, and the Docker host is {wanted}"
        found.append(
            fail(
                IMAGE, what, f"docker pull --platform linux/{wanted} {ref}, or set LLAMA_IMAGE to another one"
            )
        )
    entry = (image.get("Config") or {}).get("Entrypoint") or ()
    if not found and not any("llama" in str(word) or "server" in str(word) for word in entry):
        what = f"the image {ref} starts {' '.join(map(str, entry))[:80] or 'nothing'} of its own, not a llama-server"
        found.append(
            warn(
                IMAGE,
                what,
                f"use a tag of {OFFICIAL} that begins with 'server'",
            )
        )
    where = "LLAMA_IMAGE" if chosen else "the image of launches that name none"
    return found or [ok(IMAGE, f"{ref} is there ({where}, {str(image.get('Id', ''))[7:19]})")]


def check_vendor(config: Config, ref: str) -> list[Finding]:
    """Whether LLAMA_IMAGE and GPU_TYPE say the same."""
    tag = ref.rpartition(":")[2]
    named = next((vendor for vendor in ("cuda", "rocm", "intel") if vendor in tag), None)
    if config.gpu_type is None or named is None or named == config.gpu_type:
        return []
    what = f"LLAMA_IMAGE is for {named} and GPU_TYPE says {config.gpu_type}: models would run on the processor alone"
    return [warn(IMAGE, what, "unset LLAMA_IMAGE, or set GPU_TYPE to match it")]


def check_containers(
    node: str, containers: Sequence[Json], ours: Collection[str] | None, install: str | None
) -> list[Finding]:
    """Containers that say they are LlamaMan's: whose they are, and whether any is left over.

    :param containers: those that carry the label.
    :param ours: ids of the containers that the manager knows as its own; None where no manager answers.
    :param install: of this DATA_DIR; None where it is not known.
    """
    here = [
        each
        for each in containers
        if _label(each, labels.NODE) == node and install in (None, _label(each, labels.INSTALL))
    ]
    elsewhere = [each for each in containers if each not in here]
    found = []
    if elsewhere:
        what = (
            f"{len(elsewhere)} containers of other LlamaMan installations are left alone: {_names(elsewhere)}"
        )
        found.append(ok(CONTAINERS, what))
    if ours is None:
        return found + _without_manager(here)
    foreign = [each for each in here if each.get("Id") not in ours]
    if foreign:
        what = (
            f"{len(foreign)} containers carry the labels of this node and belong to no instance: {_names(foreign)}. "
            "Without a proof that LlamaMan made them they are never routed to, stopped or removed"
        )
        found.append(warn(CONTAINERS, what, f"{BY_LABEL} Remove with docker rm -f what you do not know"))
    return found or [ok(CONTAINERS, f"each of {len(here)} containers with our labels is an instance's")]


def _without_manager(here: Sequence[Json]) -> list[Finding]:
    if not here:
        return [ok(CONTAINERS, "no container of this node is left over")]
    what = f"no manager answers, and {len(here)} containers carry the labels of this node: {_names(here)}"
    return [warn(CONTAINERS, what, f"{LEFT_OVER} {BY_LABEL}")]


def _openness(name: str, network: Json, *, by_port: bool) -> Finding:
    if network.get("Internal"):
        if not by_port:
            return ok(NETWORK, f"engines on the network {name} reach nothing outside it")
        what = f"the network {name} is internal, and published ports, by which engines are reached here, are dead on it"
        return fail(NETWORK, what, f"docker network rm {name} while no model runs; LlamaMan makes it anew")
    what = f"{name} is an ordinary network: engines can reach the internet"
    if by_port:
        return warn(
            NETWORK,
            what,
            "run LlamaMan in a container beside them, which needs no published ports; or accept it",
        )
    return warn(
        NETWORK,
        what,
        f"docker network rm {name} while no model runs; LlamaMan makes it anew, without a way out",
    )


def _attachment(name: str, own: Json, running: int) -> list[Finding]:
    if name in ((own.get("NetworkSettings") or {}).get("Networks") or {}):
        return [ok(NETWORK, f"LlamaMan's own container is attached to {name}")]
    if not running:
        return [ok(NETWORK, f"LlamaMan's own container is attached to {name} with the next launch")]
    what = f"LlamaMan's own container is not attached to {name}, so it does not reach the models that run"
    return [
        fail(
            NETWORK, what, f"docker network connect {name} {str(own.get('Id', ''))[:12]}, or restart LlamaMan"
        )
    ]


def _label(container: Json, name: str) -> str | None:
    value = (container.get("Labels") or {}).get(name)
    return value if isinstance(value, str) else None


def _names(containers: Sequence[Json]) -> str:
    names = [labels.name_of(each)[:80] for each in containers]
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
