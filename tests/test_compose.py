"""docker-compose.yml and the Dockerfile say what the configuration says, and open nothing by accident.

Read from the files themselves; that the image works is tested where a Docker engine is.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from llamaman.core.config import VARIABLES, Config
from llamaman.core.settings_table import CORE_SETTINGS
from llamaman.runtimes.docker import sayings as s

ROOT = Path(__file__).parent.parent
SOCKET = "/var/run/docker.sock"
#: The variables that the specification's compose file sets, shown where they are not needed.
SHOWN = {"LLAMAMAN_NODE_NAME", "LLAMAMAN_MAX_MODELS", "LLAMA_IMAGE", "HOST_MODELS_DIR", "HOST_LOGS_DIR"}


@cache
def text(name: str) -> str:
    """A file of the root."""
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def compose() -> dict[str, Any]:
    """The parsed compose file."""
    return dict(yaml.safe_load(text("docker-compose.yml")))


def manager() -> dict[str, Any]:
    """The manager's service."""
    return dict(compose()["services"]["llamaman"])


def with_defaults(value: object) -> str:
    """A value as compose fills it in where the caller's environment is empty."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))


def environment(*, comments: bool) -> dict[str, str]:
    """The manager's environment; with ``comments`` also what stands there behind a comment sign."""
    if not comments:
        return {name: with_defaults(value) for name, value in manager()["environment"].items()}
    block = text("docker-compose.yml").split("    environment:\n", 1)[1].split("    volumes:\n", 1)[0]
    lines = re.findall(r"^ +(?:# )?([A-Z][A-Z0-9_]+): *(.+)$", block, re.MULTILINE)
    return {name: with_defaults(value).strip('"') for name, value in lines}


def default() -> Config:
    """The configuration of a manager where nothing but its name is set."""
    return Config.from_environ({"LLAMAMAN_NODE_NAME": "n"})


def ports_by_default() -> set[str]:
    """What the manager listens on for others, as a compose file writes it."""
    config = default()
    return {str(config.port), str(config.proxy_port), f"{config.port_range_start}-{config.port_range_end}"}


def dockerfile_environment() -> dict[str, str]:
    """What the image sets."""
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", text("Dockerfile"), re.MULTILINE)
    return dict(re.findall(r"(\w+)=(\S+)", block))


# --- what the compose file says --------------------------------------------------------------------------


def test_it_publishes_the_managers_own_ports_and_no_others() -> None:
    published = [tuple(str(each).split(":")) for each in manager()["ports"]]
    assert {host for host, _ in published} == ports_by_default()
    assert all(host == inside for host, inside in published), (
        "the addresses that the manager shows must be true"
    )


def test_its_environment_is_allowed_and_does_what_it_says() -> None:
    config = Config.from_environ(environment(comments=False))
    assert not config.warnings
    assert config.node_name == "srv1"
    assert config.max_models == 1


def test_it_shows_the_other_variables_one_may_need() -> None:
    shown = environment(comments=True)
    assert set(shown) == SHOWN
    assert set(shown) <= {variable.env for variable in VARIABLES}
    Config.from_environ(shown)


def test_it_mounts_the_folders_where_the_manager_looks_for_them_and_the_socket() -> None:
    config = default()
    targets = dict(str(each).split(":")[::-1] for each in manager()["volumes"])
    assert targets == {
        str(config.models_dir): "./models",
        str(config.data_dir): "./data",
        str(config.logs_dir): "./logs",
        SOCKET: SOCKET,
    }


def test_it_starts_on_hosts_without_a_gpu() -> None:
    """A mounted /sys/class/drm stops a container from starting where the host has none; so do device lists."""
    assert "/sys" not in text("docker-compose.yml")
    assert not {"devices", "deploy", "gpus", "runtime", "privileged"} & set(manager())
    uncommented = re.sub(r"^    # (?=deploy:|  )", "    ", text("docker-compose.yml"), flags=re.MULTILINE)
    (gpu,) = yaml.safe_load(uncommented)["services"]["llamaman"]["deploy"]["resources"]["reservations"][
        "devices"
    ]
    assert gpu["driver"] == "nvidia"


def test_it_leaves_the_engines_network_to_the_manager() -> None:
    """One that compose makes would have a way out, and others would be attached to it."""
    names = {*compose()["networks"], *(each["name"] for each in compose()["networks"].values() if each)}
    assert default().llama_network not in names
    assert "network_mode" not in manager()


def test_open_webui_is_asked_for_by_name_and_meets_the_manager_alone() -> None:
    service = compose()["services"]["open-webui"]
    assert service["profiles"] == ["webui"]
    assert set(service["networks"]) & set(manager()["networks"])
    assert default().llama_network not in service["networks"]
    assert service["environment"]["OPENAI_API_BASE_URLS"] == f"http://llamaman:{default().proxy_port}/v1"
    assert "docker.sock" not in str(service)


def test_a_stopped_manager_gets_the_time_it_needs() -> None:
    assert manager()["stop_grace_period"] == "1m"
    assert manager()["restart"] == "unless-stopped"


# --- what the Dockerfile says ----------------------------------------------------------------------------


def test_the_image_says_what_the_configuration_says() -> None:
    config, said = default(), dockerfile_environment()
    assert said.pop("PATH").startswith("/opt/llamaman/bin:")
    assert said == {
        "PYTHONUNBUFFERED": "1",
        "LLAMAMAN_IN_DOCKER": "true",
        "MODELS_DIR": str(config.models_dir),
        "DATA_DIR": str(config.data_dir),
        "LOGS_DIR": str(config.logs_dir),
    }


def test_the_image_exposes_the_ports_of_the_manager() -> None:
    (exposed,) = re.findall(r"^EXPOSE (.*)$", text("Dockerfile"), re.MULTILINE)
    assert set(exposed.split()) == ports_by_default()


@pytest.mark.parametrize("word", ["--mount", "COPY --link", "<<", "# syntax="])
def test_the_image_builds_without_buildkit(word: str) -> None:
    assert word not in text("Dockerfile")


def test_the_build_sees_neither_models_nor_data_nor_the_repository() -> None:
    lines = [line for line in text(".dockerignore").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "everything is left out that is not named"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert allowed == {"LICENSE", "README.md", "llamaman", "plugins", "pyproject.toml", "wheels"}


# --- what the guide says ---------------------------------------------------------------------------------


def test_the_guide_speaks_of_variables_and_settings_that_exist() -> None:
    named = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)[`=]", text("docs/docker.md")))
    known = {variable.env for variable in VARIABLES} | {"OPEN_WEBUI_API_KEY"}
    known |= set(re.findall(r"^ARG (\w+)", text("Dockerfile"), re.MULTILINE))
    assert named
    assert named <= known
    settings = set(re.findall(r"setting\s+`([a-z_]+\.?[a-z_]+)`", text("docs/docker.md")))
    assert settings
    assert settings <= {each.name for each in CORE_SETTINGS}


def test_the_guide_has_the_cures_that_the_program_prints() -> None:
    guide = text("docs/docker.md")
    cures = (s.PULL_IMAGE, s.MOUNT_SOCKET, s.CUDA, s.ROCM, s.INTEL, s.NO_PASSTHROUGH, s.PORT_CONFLICT)
    assert [each for each in cures if f"| {each} |" not in guide] == []
