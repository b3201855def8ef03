"""The environment: every variable is read, checked and documented; all mistakes are told at once."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Any

import pytest

from llamaman.core.config import VARIABLES, ClientConfig, Config
from llamaman.core.config_reference import reference
from llamaman.core.in_docker import detect_in_docker
from llamaman.core.redact import redact
from llamaman.errors import ConfigError

BASE = {"LLAMAMAN_NODE_NAME": "srv1"}
LONG_KEY = "llm-" + "k" * 40

#: variable, a good value that is not the default, what it becomes, a bad value
CASES: list[tuple[str, str, Any, str]] = [
    ("LLAMAMAN_NODE_NAME", "srv2", "srv2", "a\x07b"),
    ("MODELS_DIR", "/a:/b", (Path("/a"), Path("/b")), ":"),
    ("DATA_DIR", "/elsewhere", Path("/elsewhere"), "/a\x07"),
    ("RECORDINGS_DIR", "/rec", Path("/rec"), "/a\x07"),
    ("LOGS_DIR", "/logs", Path("/logs"), "/a\x07"),
    ("HOST_MODELS_DIR", "/host/models", (Path("/host/models"),), ":"),
    ("HOST_LOGS_DIR", "/host/logs", Path("/host/logs"), "/a\x07"),
    ("PORT_RANGE_START", "8001", 8001, "0"),
    ("PORT_RANGE_END", "8030", 8030, "70000"),
    ("INTERNAL_PORT_RANGE_START", "9001", 9001, "x"),
    ("INTERNAL_PORT_RANGE_END", "9100", 9100, "9020.5"),
    ("LLAMAMAN_PROXY_PORT", "11434", 11434, "-1"),
    ("LLAMAMAN_PORT", "5001", 5001, "http"),
    ("LLAMAMAN_HOST", "127.0.0.1", "127.0.0.1", "not a host"),
    ("LLAMAMAN_TRUSTED_PROXIES", "10.0.0.1", (ipaddress.ip_network("10.0.0.1/32"),), "proxy.lan"),
    ("LLAMAMAN_ALLOWED_HOSTS", "Nas.example.org, b", ("nas.example.org", "b"), "http://nas"),
    ("LLAMAMAN_PUBLIC_URL", "https://Llm.example.org/", "https://llm.example.org", "llm.example.org"),
    ("LLAMAMAN_CORS_ORIGINS", "https://chat.example.org", ("https://chat.example.org",), "https://a/b"),
    ("LLAMAMAN_MAX_MODELS", "3", 3, "-1"),
    ("LLAMAMAN_IDLE_TIMEOUT", "2.5", 2.5, "nan"),
    ("SECRET_KEY", "s" * 40, "s" * 40, "a\x07b"),
    ("DATABASE_URL", "mysql+pymysql://u:p@h/db", "mysql+pymysql://u:p@h/db", "hunter2-not-a-url"),
    ("LLAMAMAN_STORAGE", "JSON", "json", "mongo"),
    ("HEALTH_CHECK_TIMEOUT", "1", 1.0, "0"),
    ("MODEL_LOAD_TIMEOUT", "900", 900.0, "inf"),
    ("REQUEST_TIMEOUT", "60", 60.0, "soon"),
    ("DRAIN_TIMEOUT", "5", 5.0, "-5"),
    ("DOCKER_HOST", "TCP://Box.lan:2376", "tcp://box.lan:2376", "/var/run/docker.sock"),
    ("DOCKER_TLS_VERIFY", "1", True, "a\x07"),
    ("DOCKER_CERT_PATH", "/certs", Path("/certs"), "/a\x07"),
    ("LLAMA_IMAGE", "ghcr.io/ggml-org/llama.cpp:server", "ghcr.io/ggml-org/llama.cpp:server", "a b"),
    ("LLAMA_NETWORK", "net1", "net1", "-net"),
    ("LLAMA_CONTAINER_PREFIX", "lm-", "lm-", "lm/"),
    ("LLAMAMAN_IN_DOCKER", "off", False, "maybe"),
    ("LLAMA_HOST_ADDR", "192.168.1.2", "192.168.1.2", "http://x"),
    ("GPU_TYPE", "ROCM", "rocm", "amd"),
    ("LLAMA_GPU_DEVICES", "0, 1,1", "0,1", "0;1"),
    ("LLAMAMAN_RUNTIME", "process", "process", "podman"),
    ("LLAMA_SERVER_BIN", "/bin/sh", Path("/bin/sh"), "/no/such/llama-server"),
    ("LLAMA_SERVER_USER", "root", "root", "no-such-account"),
    ("LLAMAMAN_ADMIN_USER", "ada", "ada", "a\x07"),
    ("LLAMAMAN_ADMIN_PASSWORD", "correct horse", "correct horse", "short"),
    ("LLAMAMAN_BOOTSTRAP_API_KEY", LONG_KEY, LONG_KEY, "llm-tooshort"),
    ("CLUSTER_ENABLED", "yes", True, "2"),
    ("CLUSTER_SECRET", "c" * 40, "c" * 40, "a\x07b"),
    ("CLUSTER_ADVERTISE_URL", "http://srv1:5000", "http://srv1:5000", "http://u:p@srv1:5000"),
    ("CLUSTER_NODE_ONLINE_WINDOW_S", "90", 90.0, "0"),
    ("CLUSTER_ALLOW_RAW_SECRET", "1", True, "si"),
    ("LLAMAMAN_PLUGINS_DISABLED", "a,b", frozenset({"a", "b"}), "A-b"),
    ("LLAMAMAN_PLUGINS", "store_json", frozenset({"store_json"}), "../x"),
    ("LLAMAMAN_STRICT", "true", True, "strict"),
    ("LLAMAMAN_TRACE_PLUGINS", "on", True, "all"),
    ("LLAMAMAN_LOG_LEVEL", "debug", "debug", "loud"),
    ("HF_ENDPOINT", "http://mirror.lan:8080/hf/", "http://mirror.lan:8080/hf", "ftp://mirror"),
    ("LLAMAMAN_URL", "http://srv1:5000", "http://srv1:5000", "srv1:5000"),
    ("LLAMAMAN_API_KEY", "llm-x", "llm-x", "a\x07b"),
    ("XDG_RUNTIME_DIR", "/run/user/7", Path("/run/user/7/llamaman"), "/a\x07"),
]

#: What else must be set for a value to be a whole configuration.
COMPANIONS = {
    "CLUSTER_ENABLED": {"CLUSTER_SECRET": "c" * 40, "DATABASE_URL": "mysql://h/d"},
    "CLUSTER_ALLOW_RAW_SECRET": {"SECRET_KEY": "s" * 40},
}


def test_every_variable_has_a_case() -> None:
    assert {case[0] for case in CASES} == {item.env for item in VARIABLES}


@pytest.mark.parametrize(("env", "good", "parsed", "bad"), CASES, ids=[case[0] for case in CASES])
def test_a_value_reaches_its_attribute_and_a_bad_one_is_refused_by_name(
    env: str, good: str, parsed: Any, bad: str
) -> None:
    item = next(item for item in VARIABLES if item.env == env)
    companions = BASE | COMPANIONS.get(env, {})
    config = Config.from_environ(companions | {env: good})
    assert getattr(config, item.attribute) == parsed
    without = {name: value for name, value in companions.items() if name != env} | BASE
    assert getattr(Config.from_environ(without), item.attribute) != parsed

    with pytest.raises(ConfigError) as caught:
        Config.from_environ(companions | {env: bad})
    message = caught.value.message
    assert env in message
    assert item.parser.allowed in message
    shown = redact(repr(bad))  # a password in an address is not repeated either
    assert (bad in message or shown in message) is not item.secret


def test_a_blank_variable_counts_as_unset() -> None:
    blank = {item.env: "  " for item in VARIABLES} | BASE
    assert Config.from_environ(blank) == Config.from_environ(BASE)


def test_all_bad_variables_are_named_in_one_error() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_environ(
            {"LLAMAMAN_PORT": "x", "GPU_TYPE": "amd", "MODELS_DIR": ":", "HOST_LOGS_DIR": "\x07"}
        )
    lines = caught.value.message.splitlines()
    for name in ("LLAMAMAN_NODE_NAME", "LLAMAMAN_PORT", "GPU_TYPE", "MODELS_DIR", "HOST_LOGS_DIR"):
        assert any(line.startswith(name) for line in lines), name
    assert caught.value.exit_status == 78


def test_a_missing_node_name_is_refused_with_a_line_to_paste() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_environ({})
    host = socket.gethostname().split(".")[0]
    assert f"export LLAMAMAN_NODE_NAME={host}" in caught.value.message


@pytest.mark.parametrize("word", ["true", "1", "YES", "on"])
def test_words_for_yes(word: str) -> None:
    assert Config.from_environ(BASE | {"LLAMAMAN_STRICT": word}).strict is True


@pytest.mark.parametrize("word", ["false", "0", "No", "off"])
def test_words_for_no(word: str) -> None:
    assert Config.from_environ(BASE | {"LLAMAMAN_IN_DOCKER": word}).in_docker is False


def test_defaults_follow_the_variables_they_are_derived_from() -> None:
    config = Config.from_environ(BASE | {"MODELS_DIR": "/m:/n", "DATA_DIR": "/d", "LOGS_DIR": "/l"})
    assert config.models_dir == Path("/m")
    assert config.host_models_dirs == (Path("/m"), Path("/n"))
    assert config.recordings_dir == Path("/d/request_log")
    assert config.host_logs_dir == Path("/l")


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"PORT_RANGE_START": "8030"}, ["PORT_RANGE_START=8030", "PORT_RANGE_END=8020"]),
        (
            {"INTERNAL_PORT_RANGE_END": "8999"},
            ["INTERNAL_PORT_RANGE_START=9000", "INTERNAL_PORT_RANGE_END=8999"],
        ),
        ({"PORT_RANGE_END": "9005"}, ["PORT_RANGE", "INTERNAL_PORT_RANGE", "9000 to 9005"]),
        ({"LLAMAMAN_PORT": "8010"}, ["LLAMAMAN_PORT=8010", "PORT_RANGE_START"]),
        ({"LLAMAMAN_PROXY_PORT": "9010"}, ["LLAMAMAN_PROXY_PORT=9010", "INTERNAL_PORT_RANGE_START"]),
        ({"LLAMAMAN_PROXY_PORT": "5000"}, ["LLAMAMAN_PORT", "LLAMAMAN_PROXY_PORT", "5000"]),
        ({"HOST_MODELS_DIR": "/a:/b"}, ["HOST_MODELS_DIR", "MODELS_DIR"]),
        ({"LLAMAMAN_STORAGE": "sql"}, ["LLAMAMAN_STORAGE", "DATABASE_URL"]),
        (
            {"CLUSTER_ENABLED": "1", "CLUSTER_SECRET": "short", "DATABASE_URL": "mysql://h/d"},
            ["CLUSTER_SECRET"],
        ),
        ({"CLUSTER_ENABLED": "1", "CLUSTER_SECRET": "c" * 40}, ["CLUSTER_ENABLED", "DATABASE_URL"]),
        ({"CLUSTER_ALLOW_RAW_SECRET": "1"}, ["CLUSTER_ALLOW_RAW_SECRET", "SECRET_KEY"]),
        (
            {"CLUSTER_ALLOW_RAW_SECRET": "1", "SECRET_KEY": "c" * 40, "CLUSTER_SECRET": "c" * 40},
            ["CLUSTER_ALLOW_RAW_SECRET", "SECRET_KEY"],
        ),
    ],
)
def test_contradictions_are_refused(environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_environ(BASE | environ)
    for word in words:
        assert word in caught.value.message


def test_a_cluster_without_a_secret_is_switched_off_with_a_warning() -> None:
    config = Config.from_environ(BASE | {"CLUSTER_ENABLED": "true"})
    assert config.cluster_enabled is False
    assert any("CLUSTER_SECRET" in warning for warning in config.warnings)


def test_a_misspelt_variable_is_noticed() -> None:
    config = Config.from_environ(BASE | {"LLAMAMAN_MAX_MODEL": "2"})
    assert any("LLAMAMAN_MAX_MODEL " in w and "LLAMAMAN_MAX_MODELS" in w for w in config.warnings)


class TestSecretFiles:
    def test_a_file_gives_the_value(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_text(LONG_KEY + "\n")
        config = Config.from_environ(BASE | {"LLAMAMAN_BOOTSTRAP_API_KEY_FILE": str(path)})
        assert config.bootstrap_api_key == LONG_KEY

    def test_value_and_file_together_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_text(LONG_KEY)
        with pytest.raises(ConfigError, match="LLAMAMAN_BOOTSTRAP_API_KEY_FILE are both set"):
            Config.from_environ(
                BASE | {"LLAMAMAN_BOOTSTRAP_API_KEY": LONG_KEY, "LLAMAMAN_BOOTSTRAP_API_KEY_FILE": str(path)}
            )

    @pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"bad-key-value"])
    def test_a_bad_file_is_named_and_its_content_is_not_shown(
        self, tmp_path: Path, content: bytes | None
    ) -> None:
        path = tmp_path / "key"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            Config.from_environ(BASE | {"LLAMAMAN_BOOTSTRAP_API_KEY_FILE": str(path)})
        assert "LLAMAMAN_BOOTSTRAP_API_KEY" in caught.value.message
        assert "bad-key-value" not in caught.value.message


def test_repr_shows_no_secret() -> None:
    secrets = {item.env: "s3cr3t" * 10 for item in VARIABLES if item.secret}
    secrets |= {"LLAMAMAN_BOOTSTRAP_API_KEY": LONG_KEY, "DATABASE_URL": "mysql://u:s3cr3t@h/d"}
    text = repr(Config.from_environ(BASE | secrets)) + repr(ClientConfig.from_environ(secrets))
    assert "s3cr3t" not in text
    assert LONG_KEY not in text


def test_the_client_needs_no_node_name() -> None:
    client = ClientConfig.from_environ({"LLAMAMAN_URL": "http://a:1", "LLAMAMAN_API_KEY": "k"})
    assert (client.llamaman_url, client.llamaman_api_key) == ("http://a:1", "k")
    assert client.runtime_dir == Path("/run/llamaman")


def test_the_documentation_is_the_table() -> None:
    page = Path(__file__).parents[2] / "docs/configuration.md"
    assert page.read_text() == reference(), (
        "run: python -m llamaman.core.config_reference > docs/configuration.md"
    )


class TestInDocker:
    def test_an_empty_root_shows_no_container(self, tmp_path: Path) -> None:
        assert detect_in_docker(tmp_path) is False

    @pytest.mark.parametrize("marker", [".dockerenv", "run/.containerenv"])
    def test_a_marker_file_shows_one(self, tmp_path: Path, marker: str) -> None:
        (tmp_path / marker).parent.mkdir(exist_ok=True)
        (tmp_path / marker).touch()
        assert detect_in_docker(tmp_path) is True

    @pytest.mark.parametrize(
        ("path", "content"),
        [
            ("proc/1/cgroup", "12:pids:/docker/0123abcd\n"),
            ("proc/1/cgroup", "0::/kubepods/besteffort/pod1\n"),
            (
                "proc/self/mountinfo",
                "9 8 8:1 /var/lib/docker/containers/ab/hostname /etc/hostname rw - ext4 x rw\n",
            ),
        ],
    )
    def test_the_kernel_shows_one(self, tmp_path: Path, path: str, content: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(content)
        assert detect_in_docker(tmp_path) is True


# --- where Docker is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("unix:///run/user/1000/podman/podman.sock", "unix:///run/user/1000/podman/podman.sock"),
        ("UNIX:///Run/Docker.sock", "unix:///Run/Docker.sock"),
        ("tcp://[::1]:2375", "tcp://[::1]:2375"),
        ("http://proxy:2375/docker/", "http://proxy:2375/docker"),
        ("https://Box:2376", "https://box:2376"),
        ("ssh://ada@box.lan", "ssh://ada@box.lan"),
    ],
)
def test_docker_host_may_be_a_socket_or_an_address(given: str, parsed: str) -> None:
    assert Config.from_environ(BASE | {"DOCKER_HOST": given}).docker_host == parsed


@pytest.mark.parametrize(
    "given",
    [
        "npipe:////./pipe/docker_engine",
        "unix://var/run/docker.sock",
        "unix:///run/",
        "unix://",
        "tcp://box",
        "tcp://box:99999",
        "tcp://u:p@box:2375",
        "tcp://box:2375?x=1",
        "fd://",
        "box:2375",
        "ssh://",
        "unix:///a b",
    ],
)
def test_another_docker_host_is_refused_with_the_forms_that_are_not(given: str) -> None:
    with pytest.raises(ConfigError, match=r"DOCKER_HOST: .* it must be unix:///path.*npipe:// is of Windows"):
        Config.from_environ(BASE | {"DOCKER_HOST": given})


@pytest.mark.parametrize("value", ["1", "true", "0", "false"])
def test_every_value_of_docker_tls_verify_means_yes_as_it_does_for_docker(value: str) -> None:
    assert Config.from_environ(BASE | {"DOCKER_TLS_VERIFY": value}).docker_tls_verify
