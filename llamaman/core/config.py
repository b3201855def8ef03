"""The environment, declared once. Read by whatever builds the kernel, by the CLI and by the documentation.

Each attribute of :class:`Config` is one variable of the environment. :meth:`Config.from_environ` returns a
complete, checked configuration or raises one :class:`ConfigError` that names every variable that is wrong.
A blank variable counts as unset. Values of secret variables never appear in an error or a ``repr``.
"""
# ruff: noqa: RUF009 - variable() returns a dataclasses.field, as dataclasses.field itself does

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from llamaman.core import config_values as v
from llamaman.core.config_checks import check_together
from llamaman.core.config_values import IPNetwork, Parser
from llamaman.core.config_variables import (
    Variable,
    declared_variables,
    read_variables,
    unknown_names,
    variable,
)
from llamaman.errors import ConfigError

_CORE, _WEB, _DOCKER, _ENGINE = (
    "Core",
    "Listening and browsers",
    "Containers and GPUs",
    "Engines without Docker",
)
_ACCESS, _CLUSTER, _PLUGINS, _CLI = (
    "First credentials",
    "Cluster",
    "Plugins and diagnosis",
    "Command-line client",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of one manager; sizes, times and units as each variable's help says."""

    node_name: str = variable(
        "LLAMAMAN_NODE_NAME",
        v.text(128),
        None,
        "Unique, stable name of this machine. Stored instances and per-node settings belong to it.",
        section=_CORE,
        shown="(required)",
        required=True,
    )
    models_dirs: tuple[Path, ...] = variable(
        "MODELS_DIR",
        v.FOLDERS,
        (Path("/models"),),
        "Folders scanned for GGUF files, separated by `:`; the first receives downloads.",
        section=_CORE,
    )
    data_dir: Path = variable(
        "DATA_DIR",
        v.FOLDER,
        Path("/data"),
        "Folder of everything that must survive a restart.",
        section=_CORE,
    )
    recordings_dir: Path = variable(
        "RECORDINGS_DIR",
        v.FOLDER,
        lambda known: known["data_dir"] / "request_log",
        "Folder of recorded requests; not used with DATABASE_URL.",
        section=_CORE,
        shown="DATA_DIR/request_log",
    )
    logs_dir: Path = variable(
        "LOGS_DIR",
        v.FOLDER,
        Path("/tmp/llama-logs"),  # noqa: S108 - the documented default; whoever creates it checks its owner
        "Folder of instance and download logs.",
        section=_CORE,
    )
    port_range_start: int = variable(
        "PORT_RANGE_START", v.PORT, 8000, "First public instance port.", section=_CORE
    )
    port_range_end: int = variable(
        "PORT_RANGE_END", v.PORT, 8020, "Last public instance port.", section=_CORE
    )
    internal_port_range_start: int = variable(
        "INTERNAL_PORT_RANGE_START",
        v.PORT,
        9000,
        "First port of engines behind the front door.",
        section=_CORE,
    )
    internal_port_range_end: int = variable(
        "INTERNAL_PORT_RANGE_END", v.PORT, 9020, "Last port of engines behind the front door.", section=_CORE
    )
    max_models: int = variable(
        "LLAMAMAN_MAX_MODELS",
        v.integer(0),
        0,
        "How many chat models may run at once; 0 = no limit.",
        section=_CORE,
    )
    idle_timeout_min: float = variable(
        "LLAMAMAN_IDLE_TIMEOUT",
        v.number(0, unit="minutes"),
        0.0,
        "Minutes without a request after which an instance started on demand goes to sleep; 0 = never.",
        section=_CORE,
    )
    health_check_timeout: float = variable(
        "HEALTH_CHECK_TIMEOUT",
        v.number(0, exclusive=True, unit="seconds"),
        3.0,
        "Seconds an instance may take to answer a health check.",
        section=_CORE,
    )
    model_load_timeout: float = variable(
        "MODEL_LOAD_TIMEOUT",
        v.number(0, exclusive=True, unit="seconds"),
        300.0,
        "Seconds a model may take to load.",
        section=_CORE,
    )
    request_timeout: float = variable(
        "REQUEST_TIMEOUT",
        v.number(0, exclusive=True, unit="seconds"),
        300.0,
        "Seconds a request may wait in the queue, and seconds of silence allowed to the engine.",
        section=_CORE,
    )
    drain_timeout: float = variable(
        "DRAIN_TIMEOUT",
        v.number(0, unit="seconds"),
        30.0,
        "Seconds running requests may take to finish before an instance is stopped or evicted.",
        section=_CORE,
    )
    secret_key: str | None = variable(
        "SECRET_KEY",
        v.text(4096),
        None,
        "Root of all derived keys; the same on all nodes of a cluster.",
        section=_CORE,
        shown="(a random file in DATA_DIR)",
        secret=True,
    )
    database_url: str | None = variable(
        "DATABASE_URL",
        v.DATABASE,
        None,
        "MariaDB/MySQL database; unset = JSON files.",
        section=_CORE,
        secret=True,
    )
    storage: str = variable(
        "LLAMAMAN_STORAGE",
        v.choice("auto", "json", "sql"),
        "auto",
        "Storage driver; `auto` is `sql` when DATABASE_URL is set, else `json`.",
        section=_CORE,
    )
    log_level: str = variable(
        "LLAMAMAN_LOG_LEVEL",
        v.choice("debug", "info", "warning", "error"),
        "info",
        "Least level logged.",
        section=_CORE,
    )
    hf_endpoint: str = variable(
        "HF_ENDPOINT",
        v.WEB_ADDRESS,
        "https://huggingface.co",
        "Where models are downloaded from.",
        section=_CORE,
    )

    host: str = variable(
        "LLAMAMAN_HOST", v.BIND_HOST, "0.0.0.0", "Address that the public ports listen on.", section=_WEB
    )
    port: int = variable(
        "LLAMAMAN_PORT", v.PORT, 5000, "Port of the dashboard and management API.", section=_WEB
    )
    proxy_port: int = variable(
        "LLAMAMAN_PROXY_PORT", v.PORT, 42069, "Port of the Ollama- and OpenAI-compatible API.", section=_WEB
    )
    trusted_proxies: tuple[IPNetwork, ...] = variable(
        "LLAMAMAN_TRUSTED_PROXIES",
        v.items(v.NETWORK),
        (),
        "Reverse proxies whose X-Forwarded-* headers count.",
        section=_WEB,
    )
    allowed_hosts: tuple[str, ...] = variable(
        "LLAMAMAN_ALLOWED_HOSTS",
        v.items(v.HOST_NAME),
        (),
        "Further host names of this service.",
        section=_WEB,
    )
    public_url: str | None = variable(
        "LLAMAMAN_PUBLIC_URL",
        v.WEB_ADDRESS,
        None,
        "Address of the dashboard as browsers see it.",
        section=_WEB,
    )
    cors_origins: tuple[str, ...] = variable(
        "LLAMAMAN_CORS_ORIGINS",
        v.items(v.ORIGIN),
        (),
        "Further browser origins that may call inference while require_auth is off.",
        section=_WEB,
    )

    runtime: str = variable(
        "LLAMAMAN_RUNTIME",
        v.choice("auto", "docker", "process"),
        "auto",
        "How engines run; `auto` uses Docker where its socket is, else processes.",
        section=_DOCKER,
    )
    docker_host: str | None = variable(
        "DOCKER_HOST",
        v.DOCKER_HOST,
        None,
        "Where Docker, or a Podman service, is reached. The context of the `docker` command plays no part.",
        section=_DOCKER,
        shown="(unix:///var/run/docker.sock, else docker.sock in XDG_RUNTIME_DIR)",
    )
    docker_tls_verify: bool = variable(
        "DOCKER_TLS_VERIFY",
        v.ANY_TEXT,
        False,
        "Use TLS to a DOCKER_HOST of tcp:// and check its certificate. As for Docker itself, every value means yes.",
        section=_DOCKER,
        shown="(unset)",
    )
    docker_cert_path: Path | None = variable(
        "DOCKER_CERT_PATH",
        v.FOLDER,
        None,
        "Folder of ca.pem, cert.pem and key.pem for that.",
        section=_DOCKER,
        shown="(~/.docker)",
    )
    host_models_dirs: tuple[Path, ...] = variable(
        "HOST_MODELS_DIR",
        v.FOLDERS,
        lambda known: known["models_dirs"],
        "MODELS_DIR as the Docker host sees it, folder by folder.",
        section=_DOCKER,
        shown="MODELS_DIR",
    )
    host_logs_dir: Path = variable(
        "HOST_LOGS_DIR",
        v.FOLDER,
        lambda known: known["logs_dir"],
        "LOGS_DIR as the Docker host sees it. Accepted and not needed: containers see no folder of logs.",
        section=_DOCKER,
        shown="LOGS_DIR",
    )
    llama_image: str | None = variable(
        "LLAMA_IMAGE",
        v.IMAGE,
        None,
        "llama.cpp server image of all instances.",
        section=_DOCKER,
        shown="(by GPU vendor)",
    )
    llama_network: str = variable(
        "LLAMA_NETWORK", v.DOCKER_NAME, "llamaman-net", "Docker network of the instances.", section=_DOCKER
    )
    llama_container_prefix: str = variable(
        "LLAMA_CONTAINER_PREFIX",
        v.DOCKER_NAME,
        "llamaman-",
        "Start of the containers' names.",
        section=_DOCKER,
    )
    in_docker: bool | None = variable(
        "LLAMAMAN_IN_DOCKER",
        v.BOOLEAN,
        None,
        "Whether LlamaMan itself runs in a container.",
        section=_DOCKER,
        shown="(detected)",
    )
    llama_host_addr: str | None = variable(
        "LLAMA_HOST_ADDR",
        v.BIND_HOST,
        None,
        "Publish containers' ports on loopback and reach them there, when LlamaMan does not run in a container.",
        section=_DOCKER,
        shown="(containers are reached by their own addresses)",
    )
    gpu_type: str | None = variable(
        "GPU_TYPE",
        v.choice("cuda", "rocm", "intel"),
        None,
        "GPU vendor.",
        section=_DOCKER,
        shown="(detected)",
    )
    llama_gpu_devices: str = variable(
        "LLAMA_GPU_DEVICES", v.GPU_DEVICES, "", "GPUs that instances may use.", section=_DOCKER, shown="(all)"
    )

    llama_server_bin: Path | None = variable(
        "LLAMA_SERVER_BIN",
        v.PROGRAM,
        None,
        "llama-server program of the process runtime.",
        section=_ENGINE,
        shown="(llama-server on PATH)",
    )
    llama_server_user: str | None = variable(
        "LLAMA_SERVER_USER",
        v.ACCOUNT,
        None,
        "Account that engines run under when we are root.",
        section=_ENGINE,
    )

    admin_user: str = variable(
        "LLAMAMAN_ADMIN_USER", v.text(128), "admin", "Name of the first user.", section=_ACCESS
    )
    admin_password: str | None = variable(
        "LLAMAMAN_ADMIN_PASSWORD",
        v.PASSWORD,
        None,
        "Password of the first user; used only while no user exists.",
        section=_ACCESS,
        secret=True,
    )
    bootstrap_api_key: str | None = variable(
        "LLAMAMAN_BOOTSTRAP_API_KEY",
        v.API_KEY,
        None,
        "First API key (inference); used only while no key exists.",
        section=_ACCESS,
        secret=True,
    )

    cluster_enabled: bool = variable(
        "CLUSTER_ENABLED", v.BOOLEAN, False, "Join the cluster that shares DATABASE_URL.", section=_CLUSTER
    )
    cluster_secret: str | None = variable(
        "CLUSTER_SECRET",
        v.text(4096),
        None,
        "Secret shared by all nodes, at least 32 characters.",
        section=_CLUSTER,
        secret=True,
    )
    cluster_advertise_url: str | None = variable(
        "CLUSTER_ADVERTISE_URL", v.WEB_ADDRESS, None, "How other nodes reach this one.", section=_CLUSTER
    )
    cluster_node_online_window_s: float = variable(
        "CLUSTER_NODE_ONLINE_WINDOW_S",
        v.number(0, exclusive=True, unit="seconds"),
        45.0,
        "Seconds of silence after which a node is shown offline.",
        section=_CLUSTER,
    )
    cluster_allow_raw_secret: bool = variable(
        "CLUSTER_ALLOW_RAW_SECRET",
        v.BOOLEAN,
        False,
        "Accept the cluster secret itself as a header over plain HTTP, as older nodes send it.",
        section=_CLUSTER,
    )

    plugins_disabled: frozenset[str] = variable(
        "LLAMAMAN_PLUGINS_DISABLED",
        v.PLUGIN_NAMES,
        frozenset(),
        "Plugins that are not loaded.",
        section=_PLUGINS,
        shown="(unset)",
    )
    plugins_only: frozenset[str] | None = variable(
        "LLAMAMAN_PLUGINS",
        v.PLUGIN_NAMES,
        None,
        "The only plugins that are loaded.",
        section=_PLUGINS,
        shown="(all installed)",
    )
    strict: bool = variable(
        "LLAMAMAN_STRICT", v.BOOLEAN, False, "A broken plugin stops the start.", section=_PLUGINS
    )
    trace_plugins: bool = variable(
        "LLAMAMAN_TRACE_PLUGINS", v.BOOLEAN, False, "Log every hook call.", section=_PLUGINS
    )

    llamaman_url: str | None = variable(
        "LLAMAMAN_URL",
        v.WEB_ADDRESS,
        None,
        "Manager that the command line talks to.",
        section=_CLI,
        shown="(the local admin socket)",
        cli=True,
    )
    llamaman_api_key: str | None = variable(
        "LLAMAMAN_API_KEY",
        v.text(512),
        None,
        "API key of the command line.",
        section=_CLI,
        secret=True,
        cli=True,
    )
    runtime_dir: Path = variable(
        "XDG_RUNTIME_DIR",
        Parser(lambda value: v.FOLDER.parse(value) / "llamaman", v.FOLDER.allowed),
        Path("/run/llamaman"),
        "The local admin socket lies in the folder `llamaman` below it.",
        section=_CLI,
        shown="/run",
        cli=True,
    )

    warnings: tuple[str, ...] = ()

    def warnings_without(self, known: Collection[str]) -> tuple[str, ...]:
        """The warnings, less those about variables that plugins have declared meanwhile."""
        return tuple(warning for warning in self.warnings if warning.split(" ", 1)[0] not in known)

    @property
    def local_url(self) -> str:
        """Where a browser on this machine finds the dashboard, unless the operator said better."""
        host = "localhost" if self.host in ("0.0.0.0", "::") else self.host
        return self.public_url or f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def models_dir(self) -> Path:
        """The folder that receives downloads."""
        return self.models_dirs[0]

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Config:
        """Read and check the whole environment.

        :raises ConfigError: one message with a line for every bad variable and every contradiction.
        """
        values, problems = read_variables(VARIABLES, environ)
        warnings = unknown_names(VARIABLES, environ)
        if not problems:
            more, noted = check_together(values)
            problems += more
            warnings += noted
        if problems:
            raise ConfigError("\n".join(problems))
        return cls(**values, warnings=tuple(warnings))


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What the command-line client needs; it runs on machines that have no node name."""

    llamaman_url: str | None
    llamaman_api_key: str | None = field(repr=False)
    runtime_dir: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> ClientConfig:
        """Read the variables marked ``cli``.

        :raises ConfigError: as :meth:`Config.from_environ`.
        """
        values, problems = read_variables(tuple(item for item in VARIABLES if item.cli), environ)
        if problems:
            raise ConfigError("\n".join(problems))
        return cls(**values)


VARIABLES: tuple[Variable, ...] = declared_variables(fields(Config))
