"""``--security``, first half: what the configuration and the machine open, judged without a manager."""

from __future__ import annotations

import grp
import os
import stat
import sys
from pathlib import Path
from urllib.parse import urlsplit

from llamaman.core.addresses import is_loopback_host
from llamaman.core.config import Config
from llamaman.core.docker_choice import SOCKET
from llamaman.core.in_docker import detect_in_docker
from llamaman.doctor.finding import Finding, fail, ok, skip, warn
from llamaman.runtimes import limits, sandbox
from llamaman.runtimes.engines import find_binary
from llamaman.runtimes.isolation import missing_isolation

#: A trusted network of more addresses than this is rather the internet than a proxy.
_PROXY_ADDRESSES = 1 << 16


def check_bind(config: Config) -> list[Finding]:
    """Who can reach the ports."""
    if is_loopback_host(config.host):
        return [ok("bind", f"the ports listen on {config.host}: only programs of this machine reach them")]
    contained = config.in_docker if config.in_docker is not None else detect_in_docker()
    if contained:
        what = f"the ports listen on {config.host} inside a container: which are published decides who reaches them"
        return [ok("bind", what)]
    where = "every address of this machine" if config.host in ("0.0.0.0", "::") else config.host
    cure = "set LLAMAMAN_HOST=127.0.0.1 and put a reverse proxy with TLS before it, or let a firewall decide"
    return [warn("bind", f"the ports listen on {where}, so other machines reach them", cure)]


def check_public_url(config: Config) -> list[Finding]:
    """Whether browsers reach us encrypted, and whether we can tell."""
    if config.public_url is None:
        if is_loopback_host(config.host):
            return [ok("tls", "other machines reach no port, so nothing crosses a network unencrypted")]
        what = "passwords, keys and answers cross the network unencrypted, unless a proxy before LlamaMan speaks TLS"
        return [
            warn(
                "tls",
                what,
                "put a reverse proxy with TLS before it and set LLAMAMAN_PUBLIC_URL to its address",
            )
        ]
    parts = urlsplit(config.public_url)
    if parts.scheme != "https" and not is_loopback_host(parts.hostname or ""):
        what = f"LLAMAMAN_PUBLIC_URL is {config.public_url}: passwords and keys cross the network unencrypted"
        return [
            warn(
                "tls", what, "give the reverse proxy a certificate, and LLAMAMAN_PUBLIC_URL an https address"
            )
        ]
    if parts.scheme == "https" and not config.trusted_proxies:
        what = (
            "LLAMAMAN_PUBLIC_URL is https, and no proxy is trusted: cookies lack Secure, and every client has the "
            "proxy's address"
        )
        return [warn("tls", what, "set LLAMAMAN_TRUSTED_PROXIES to the proxy's address")]
    return [ok("tls", f"browsers use {config.public_url}")]


def check_proxies(config: Config) -> list[Finding]:
    """Whose word about a client's address counts."""
    wide = [network for network in config.trusted_proxies if network.num_addresses > _PROXY_ADDRESSES]
    if wide:
        names = ", ".join(map(str, wide))
        what = f"LLAMAMAN_TRUSTED_PROXIES trusts {names}: whoever is in it can claim any address and pass the throttle"
        return [fail("proxies", what, "name the proxy's own address only")]
    names = ", ".join(map(str, config.trusted_proxies)) or "nobody"
    return [ok("proxies", f"X-Forwarded-* headers count from {names}")]


def check_docker(socket: Path | None = SOCKET, *, used: bool = False) -> list[Finding]:
    """Whether whoever takes over LlamaMan also has Docker, which is root on the host.

    :param socket: of the daemon; None: it is reached over a network.
    :param used: engines run in its containers.
    """
    if used:
        return [_docker_in_use(socket)]
    network = skip("network", "engines do not run in containers")
    socket = SOCKET if socket is None else socket
    try:
        status = socket.stat()
    except OSError:
        return [ok("docker", "there is no Docker socket here"), network]
    if not stat.S_ISSOCK(status.st_mode) or not os.access(socket, os.R_OK | os.W_OK):
        return [ok("docker", f"the Docker socket {socket} is closed to this account"), network]
    what = f"this account may use the Docker socket {socket} {_how(status)}, which is {_power(status)}"
    cure = "engines run as processes and need no Docker: take the socket or the group away from this account"
    return [warn("docker", what, cure), network]


def _docker_in_use(socket: Path | None) -> Finding:
    cure = (
        "treat LlamaMan's account and its administrators as root there; put a proxy before the socket that checks the "
        "body of 'create', or use rootless Docker"
    )
    if socket is None:
        return warn(
            "docker",
            "engines run in containers of another machine: whoever takes over LlamaMan is root there",
            cure,
        )
    try:
        status = socket.stat()
    except OSError:
        return ok("docker", f"the Docker socket {socket} cannot be used, so nobody becomes root by it")
    what = (
        f"LlamaMan uses the Docker socket {socket} {_how(status)} to run engines: whoever takes over LlamaMan is "
        f"{_power(status)}"
    )
    return warn("docker", what, cure)


def _how(status: os.stat_result) -> str:
    if os.geteuid() == 0:
        return "as root"
    return "as its owner" if status.st_uid == os.geteuid() else f"through the group {_group(status.st_gid)}"


def _power(status: os.stat_result) -> str:
    """Whoever has a daemon's socket may do what the daemon's account may; a rootless one has another owner."""
    return "root on the host" if status.st_uid == 0 else f"uid {status.st_uid} on the host"


def check_cluster(config: Config) -> list[Finding]:
    """Whether the cluster's secret crosses the network."""
    if config.cluster_allow_raw_secret:
        what = "CLUSTER_ALLOW_RAW_SECRET: the cluster's secret itself is accepted over plain HTTP"
        return [warn("cluster-secret", what, "upgrade the older nodes, then unset CLUSTER_ALLOW_RAW_SECRET")]
    return [ok("cluster-secret", "the cluster's secret is never accepted as a header over plain HTTP")]


def check_isolation(config: Config, *, contained: bool = False) -> list[Finding]:
    """What separates an engine, which reads files from strangers, from this machine.

    :param contained: engines run in containers.
    """
    if contained:
        what = (
            "engines run in containers: read-only, without capabilities and new privileges, under an account of their "
            "own, with the files of their model alone"
        )
        return [ok("isolation", what)]
    why_not = sandbox.why_not(find_binary(config.llama_server_bin) or Path(sys.executable))
    found = [
        warn("isolation", f"{note[:1].upper()}{note[1:]}", _isolation_cure(note))
        for note in _notes(config, why_not)
    ]
    if why_not is None:
        what = f"engines run in a sandbox of files and network (Landlock {sandbox.version()}), without new privileges"
        found.insert(0, ok("isolation", what))
    return found


def _notes(config: Config, why_not: str | None) -> tuple[str, ...]:
    return missing_isolation(config.llama_server_user, why_not, limits.enforceable())


def _isolation_cure(note: str) -> str:
    if "LLAMA_SERVER_USER to" in note:
        return "set LLAMA_SERVER_USER"
    if "LLAMA_SERVER_USER" in note:
        return "unset LLAMA_SERVER_USER"
    if "own user" in note:
        return (
            "accept it, or start LlamaMan as root with LLAMA_SERVER_USER set to an account made for engines"
        )
    if "no Landlock" in note:
        return "use a kernel with Landlock (5.13 or newer), and models from sources you trust until then"
    if "memory ceiling" in note:
        return (
            "give LlamaMan control groups (root, or a delegated slice of systemd), or run engines with Docker"
        )
    return "use models from sources you trust"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
