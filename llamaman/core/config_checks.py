"""What must hold between environment variables. Read by `config.py` only."""

from __future__ import annotations

from typing import Any


def check_together(values: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Check parsed values against each other -> (problems, warnings).

    One value is corrected: a cluster without a secret is no cluster, so ``cluster_enabled`` becomes False
    with a warning.
    """
    problems = _ports(values)
    if len(values["host_models_dirs"]) != len(values["models_dirs"]):
        problems.append(
            f"HOST_MODELS_DIR names {len(values['host_models_dirs'])} folder(s) and MODELS_DIR "
            f"{len(values['models_dirs'])}; give the host's path of each, in the same order"
        )
    if values["storage"] == "sql" and values["database_url"] is None:
        problems.append("LLAMAMAN_STORAGE=sql needs DATABASE_URL")
    secret_problems, warnings = _secrets(values)
    return problems + secret_problems, warnings


def _ports(values: dict[str, Any]) -> list[str]:
    problems = []
    pools: list[tuple[str, range]] = []
    for prefix, name in (("", "PORT_RANGE"), ("internal_", "INTERNAL_PORT_RANGE")):
        start, end = values[f"{prefix}port_range_start"], values[f"{prefix}port_range_end"]
        if start > end:
            problems.append(f"{name}_START={start} is greater than {name}_END={end}")
        pools.append((name, range(start, end + 1)))
    (public, public_ports), (internal, internal_ports) = pools
    low, high = max(public_ports.start, internal_ports.start), min(public_ports.stop, internal_ports.stop)
    if low < high:
        problems.append(f"{public} and {internal} share the ports {low} to {high - 1}; move one of them")
    listeners = {"LLAMAMAN_PORT": values["port"], "LLAMAMAN_PROXY_PORT": values["proxy_port"]}
    if values["port"] == values["proxy_port"]:
        problems.append(
            f"LLAMAMAN_PORT and LLAMAMAN_PROXY_PORT are both {values['port']}; change one of them"
        )
    problems.extend(
        f"{name}={port} lies inside {pool}_START..END ({ports.start}..{ports.stop - 1}); move one of them"
        for name, port in listeners.items()
        for pool, ports in pools
        if port in ports
    )
    return problems


def _secrets(values: dict[str, Any]) -> tuple[list[str], list[str]]:
    problems, warnings = [], []
    key, secret = values["secret_key"], values["cluster_secret"]
    if key is not None and len(key) < 32:
        warnings.append("SECRET_KEY is shorter than 32 characters; use a long random value")
    if values["cluster_enabled"] and not secret:
        warnings.append("CLUSTER_ENABLED is ignored because CLUSTER_SECRET is not set")
        values["cluster_enabled"] = False
    if values["cluster_enabled"] and len(secret) < 32:
        problems.append(
            "CLUSTER_SECRET is shorter than 32 characters; use a long random value, the same on every node"
        )
    if values["cluster_enabled"] and values["database_url"] is None:
        problems.append(
            "CLUSTER_ENABLED needs DATABASE_URL: the nodes find each other through a shared database"
        )
    if values["cluster_allow_raw_secret"] and (key is None or key == secret):
        problems.append("CLUSTER_ALLOW_RAW_SECRET needs a SECRET_KEY that is not CLUSTER_SECRET")
    return problems, warnings
