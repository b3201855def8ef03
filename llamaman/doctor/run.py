"""All checks, in the order in which an administrator reads them. One broken check does not hide the others."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence

from llamaman.core.config import Config
from llamaman.core.docker_choice import docker_socket
from llamaman.doctor import access, docker, engine, environment, exposure, folders, machine, ports
from llamaman.doctor.finding import Finding, fail, skip
from llamaman.doctor.live import Live

log = logging.getLogger("llamaman.doctor")

Check = tuple[str, Callable[[], Sequence[Finding]]]


def diagnose(
    config: Config,
    live: Live | None = None,
    *,
    security: bool = False,
    environ: Mapping[str, str] | None = None,
) -> tuple[Finding, ...]:
    """Every check of an installation. Takes seconds: engines are started, files flushed.

    :param live: what the manager knows, when it is the caller.
    :param security: also who can reach and do what.
    :param environ: that ``config`` was read from; None: this process's.
    """
    serving = live is not None
    engine_ports = live.engine_ports if live else frozenset()
    environ = os.environ if environ is None else environ
    contained = docker.runs_in_containers(config, environ)
    engines: list[Check] = [
        ("engine", lambda: engine.check_engine(config)),
        ("limits", engine.check_limits),
    ]
    if contained:
        engines = [("docker", lambda: docker.check_docker(config, environ, live))]
    checks: list[Check] = [
        *engines,
        (
            "ports",
            lambda: (
                ports.check_ports_in_use(config, engine_ports) if serving else ports.check_ports_to_be(config)
            ),
        ),
        ("data-dir", lambda: folders.check_folders(config, serving=serving)),
        ("space", lambda: folders.check_space(config)),
        ("modes", lambda: folders.check_modes(config)),
        ("admin-socket", lambda: machine.check_admin_socket(config, serving=serving)),
        ("clock", lambda: machine.check_clock(config)),
        ("memory", machine.check_memory),
        ("account", lambda: machine.check_account(config)),
    ]
    if serving:
        checks.insert(0, ("environment", lambda: environment.check_warnings(config.warnings)))
    if security:
        checks += [
            ("bind", lambda: exposure.check_bind(config)),
            ("tls", lambda: exposure.check_public_url(config)),
            ("proxies", lambda: exposure.check_proxies(config)),
            ("access", lambda: access.check_access(config, live)),
            ("docker", lambda: exposure.check_docker(docker_socket(config, environ), used=contained)),
            ("isolation", lambda: exposure.check_isolation(config, contained=contained)),
            ("cluster-secret", lambda: exposure.check_cluster(config)),
        ]
    return tuple(finding for name, check in checks for finding in _run(name, check))


def diagnose_environment(environ: Mapping[str, str], *, security: bool = False) -> tuple[Finding, ...]:
    """The checks where no manager answers: of the environment, and with it of this machine."""
    found, config = environment.check_environment(environ)
    if config is None:
        return (*found, skip("everything-else", "the environment makes no configuration"))
    return (*found, *diagnose(config, security=security, environ=environ))


def _run(name: str, check: Callable[[], Sequence[Finding]]) -> Sequence[Finding]:
    try:
        return check()
    except Exception as error:
        log.exception("the check '%s' failed", name)
        what = f"the check itself failed: {type(error).__name__}: {error}"
        return [fail(name, what, "please report this with what 'llamaman doctor --json' prints")]
