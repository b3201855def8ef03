"""The process runtime: engines as child processes, found and kept after a restart of the manager.

Implements :class:`llamaman.runtime.Runtime` and :class:`llamaman.runtime.MeasuresEngines` for two engines, a
llama-server binary and the embedded one.
Every engine runs in a session of its own, with a clean environment that carries our marks, and outlives the
manager unless it is stopped. All methods may block, and may be called from any thread but the event loop's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llamaman.errors import LaunchError
from llamaman.records import Address, Engine, Exit, Handle, LaunchPlan, ResourceUse
from llamaman.runtimes import embedded, limits, logfiles, procfs, sandbox
from llamaman.runtimes.ceiling import memory_ceiling
from llamaman.runtimes.engines import Probes, embedded_version, find_binary
from llamaman.runtimes.exits import ExitPoller, Identity
from llamaman.runtimes.isolation import missing_isolation
from llamaman.runtimes.openmp import engine_environment
from llamaman.runtimes.own_flags import own_flags
from llamaman.runtimes.process_usage import ProcessUsage
from llamaman.runtimes.sandbox import Sandbox
from llamaman.runtimes.spawn import User, find_user, spawn
from llamaman.runtimes.start_line import start_line

_INSTANCE, _NODE, _INSTALL = "LLAMAMAN_INSTANCE_ID", "LLAMAMAN_NODE", "LLAMAMAN_INSTALL"
_GENERATION, _ADDRESS = "LLAMAMAN_GENERATION", "LLAMAMAN_ADDRESS"
_AFTER_KILL_S = 10.0

#: llama-server b11434 waits on SIGTERM for as long as a client of an open answer stays; a second one ends it.
_INSIST_AFTER_S = 2.0

_log = logging.getLogger(__name__)


class ProcessRuntime:
    """Runs engines as processes of this machine.

    :param binary: the configured llama-server; None means the one on PATH, if any.
    :param embedded: offer the embedded engine when its package is installed.
    :param state_dir: a folder of ours for what is found out once per engine build; created with mode 0700.
    :param user: the account engines run as when we are root.
    """

    name = "process"

    def __init__(
        self, *, binary: Path | None, embedded: bool, state_dir: Path, user: str | None = None
    ) -> None:
        self._binary = binary
        self._embedded = embedded
        self._state_dir = state_dir
        self._user_name = user
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._home = state_dir / "home"
        self._home.mkdir(mode=0o755, exist_ok=True)
        self._probes = Probes(state_dir, self._clean_environment())
        self._exits = ExitPoller()
        self._usage = ProcessUsage()

    # --- what can run here -----------------------------------------------------------------------

    def engines(self) -> Sequence[Engine]:
        """The engines that can run here now, best first: the binary, then the embedded one."""
        found: list[Engine] = []
        binary = find_binary(self._binary)
        if binary is not None:
            with contextlib.suppress(OSError):  # removed this instant
                found.append(self._probes.engine(binary)[0])
        version = embedded_version() if self._embedded else None
        if version is not None:
            found.append(
                Engine("embedded", "embedded", str(embedded.CHILD), f"xllamacpp {version}", embedded.FLAGS)
            )
        return found

    def notes(self) -> tuple[str, ...]:
        """What an administrator should know of the engines here, in sentences; empty when all is well."""
        notes = []
        binary = find_binary(self._binary)
        if self._binary is not None and binary is None:
            notes.append(f"LLAMA_SERVER_BIN names {self._binary}, which is not an executable file")
        if binary is not None:
            reason = self._probes.engine(binary)[1]
            if reason:
                notes.append(
                    f"the flags of {binary.name} are unknown, so launches use the newest ones: {reason}"
                )
        return tuple(notes)

    def isolation(self) -> tuple[str, ...]:
        """What separates engines from this machine less than a container would, in words for the card."""
        program = find_binary(self._binary) or Path(sys.executable)
        return missing_isolation(self._user_name, sandbox.why_not(program), self.limits_enforced())

    def limits_enforced(self) -> frozenset[str]:
        """Which of ``memory`` and ``cpus`` a plan can really limit here."""
        return limits.enforceable()

    # --- one engine ------------------------------------------------------------------------------

    def start(self, plan: LaunchPlan) -> Handle:
        """Start the engine and return at once.

        :raises LaunchError: nothing is left running.
        """
        _check_model(plan.model_path)
        argv = self._argv(plan)
        env = self._environment(plan)
        user = self._user()
        limits.sweep()
        group = limits.group_name(plan.instance_id, plan.generation)
        output = logfiles.open_log(plan.log_path)
        try:
            os.write(output, start_line(plan))
            spawned = spawn(
                argv, env=env, output=output, user=user, sandbox=self._sandbox(plan, Path(argv[0]))
            )
        except OSError as error:
            raise LaunchError(
                f"the engine '{plan.engine.name}' could not be started: {error.strerror or error}; "
                + _start_hint(plan.engine.kind, self._user_name),
                detail=str(error),
            ) from error
        finally:
            os.close(output)
        pid = spawned.child.pid
        ceiling = memory_ceiling(limits.memory_total())
        most = min(plan.memory_bytes or ceiling, ceiling)
        limits.apply(group, pid, memory_bytes=most, cpus=plan.cpus)
        self._exits.adopt_child(spawned.child, spawned.started, lambda exit_: _complete(exit_, group))
        return Handle(plan.instance_id, plan.generation, pid, spawned.started, _address(plan))

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        """SIGTERM to its process group, again after 2 s, SIGKILL after ``grace_s``; returns when it has ended.

        :raises LaunchError: it is stuck in the kernel and survives even SIGKILL.
        """
        identity = _identity(handle)
        if identity is None:
            return Exit(None, None, time.time())
        ended: list[Exit] = []
        event = threading.Event()

        def on_end(exit_: Exit) -> None:
            ended.append(exit_)
            event.set()

        cancel = self._exits.watch(identity, on_end)
        try:
            if not event.is_set():
                self._exits.signal(identity, signal.SIGTERM)
            if not event.wait(min(grace_s, _INSIST_AFTER_S)) and grace_s > _INSIST_AFTER_S:
                self._exits.signal(identity, signal.SIGTERM)
                event.wait(grace_s - _INSIST_AFTER_S)
            if not event.is_set():
                _log.info("engine %s did not end within %.1f s, killing it", handle.instance_id, grace_s)
                self._exits.signal(identity, signal.SIGKILL)
                if not event.wait(_AFTER_KILL_S):
                    raise LaunchError(
                        f"the engine of instance {handle.instance_id} does not end even when killed; "
                        "its device driver or disk is stuck, and a restart of the machine may be needed",
                        detail=f"pid {handle.pid}",
                    )
                ended[0] = replace(ended[0], oom=False)
        finally:
            cancel()
        limits.remove(_group(handle))
        return ended[0]

    def watch(self, handle: Handle, on_exit: Callable[[Exit], None]) -> Callable[[], None]:
        """Call ``on_exit`` once when the engine ends (at once if it has); returns a function that cancels."""
        identity = _identity(handle)
        if identity is None:
            on_exit(Exit(None, None, time.time()))
            return lambda: None
        return self._exits.watch(identity, lambda exit_: on_exit(_with_cause(exit_, handle)))

    def inspect(self, handle: Handle) -> Exit | None:
        """None while it runs."""
        identity = _identity(handle)
        if identity is None:
            return Exit(None, None, time.time())
        exit_ = self._exits.ended(identity)
        return None if exit_ is None else _with_cause(exit_, handle)

    def usage(self, handle: Handle) -> ResourceUse | None:
        """What it and its children use; a share of the processors is known from the second call on."""
        identity = _identity(handle)
        return None if identity is None else self._usage.usage(identity, _group(handle))

    def anonymous_bytes(self, handle: Handle) -> int | None:
        """Memory of it and its children that is no file's."""
        identity = _identity(handle)
        return None if identity is None else self._usage.anonymous_bytes(identity)

    def find(self, node: str, install: str) -> Sequence[Handle]:
        """The engines that a manager of this node and installation left running, by the marks they carry.

        Only processes of our own accounts that lead a session and run a program which this runtime starts.
        """
        accounts = {os.geteuid()}
        if self._user_name:
            with contextlib.suppress(LaunchError):
                accounts.add(find_user(self._user_name).uid)
        found = []
        for pid in procfs.pids():
            process = procfs.read(pid)
            if process is None or not process.alive or process.session != pid:
                continue
            if procfs.owner(pid) not in accounts:
                continue
            handle = _marked(process, procfs.environ(pid), node, install)
            if handle is not None and self._is_ours(pid):
                found.append(handle)
        return found

    def close(self) -> None:
        """Stop watching. The engines go on, to be found by the next manager."""
        self._exits.close()

    # --- helpers ---------------------------------------------------------------------------------

    def _user(self) -> User | None:
        if self._user_name is None or os.geteuid() != 0:
            return None
        return find_user(self._user_name)

    def _sandbox(self, plan: LaunchPlan, program: Path) -> Sandbox | None:
        if sandbox.why_not(program) is not None:
            return None
        code: tuple[Path, ...] = ()
        if plan.engine.kind == "embedded":
            code = (Path(sys.prefix), Path(sys.base_prefix), embedded.CHILD)
        return sandbox.for_plan(plan, program, private=self._state_dir, code=code)

    def _is_ours(self, pid: int) -> bool:
        program = procfs.executable(pid)
        line = procfs.command_line(pid)
        if program == os.path.realpath(sys.executable) and str(embedded.CHILD) in line:
            return True
        known = set(self._probes.known_binaries())
        binary = find_binary(self._binary)
        if binary is not None:
            known.add(os.path.realpath(binary))
        # A script that ends in exec leaves another program in its process, and that is all we can know of it.
        return program in known or any(sandbox.is_script(Path(path)) for path in known)

    def _argv(self, plan: LaunchPlan) -> list[str]:
        engine = plan.engine
        if engine.kind == "embedded":
            refused = embedded.refusals(plan)
            if refused:
                raise LaunchError("; ".join(refused))
            return [sys.executable, "-I", str(embedded.CHILD)]
        if engine.kind != "binary":
            raise LaunchError(
                f"the process runtime cannot run the engine '{engine.name}' of kind {engine.kind}"
            )
        binary = Path(engine.path)
        if not binary.is_file():
            raise LaunchError(
                f"the llama-server program '{binary.name}' is not there any more; "
                "set LLAMA_SERVER_BIN to one that is",
                detail=str(binary),
            )
        if not os.access(binary, os.X_OK):
            raise LaunchError(
                f"the llama-server program '{binary.name}' may not be executed; run chmod +x on it",
                detail=str(binary),
            )
        argv = [str(binary), "--model", str(plan.model_path), "--host", plan.host, "--port", str(plan.port)]
        argv += ["--alias", plan.alias, *plan.flags]
        return argv + own_flags(engine.flags or frozenset(), plan.flags)

    def _environment(self, plan: LaunchPlan) -> dict[str, str]:
        env = self._clean_environment()
        env.update(plan.env)
        env["LLAMA_API_KEY"] = plan.api_key
        env[_INSTANCE] = plan.instance_id
        env[_NODE] = plan.node
        env[_INSTALL] = plan.install
        env[_GENERATION] = str(plan.generation)
        env[_ADDRESS] = plan.host if plan.host.startswith("/") else f"{plan.host}:{plan.port}"
        if plan.engine.kind == "embedded":
            env[embedded.VARIABLE] = embedded.parameters(plan)
            env.update(engine_environment())
        return env

    def _clean_environment(self) -> dict[str, str]:
        """Nothing of ours: a variable or a user's llama.cpp settings would silently change the launch."""
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self._home),
            # Below a file nothing can exist, so no settings file is ever read, whoever may write to HOME.
            "XDG_CONFIG_HOME": "/dev/null",
            "LANG": "C.UTF-8",
        }


def _start_hint(kind: str, user: str | None) -> str:
    if kind == "embedded":
        who = f"the account '{user}' (LLAMA_SERVER_USER)" if user else "this account"
        return f"check that {who} may execute {sys.executable}"
    return "check that LLAMA_SERVER_BIN is a llama-server built for this machine"


def _check_model(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise LaunchError(
            f"the model file '{path.name}' cannot be found ({error.strerror}); "
            "scan the model folders again or check MODELS_DIR",
            detail=str(path),
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise LaunchError(f"the model '{path.name}' is not a file", detail=str(path))
    if not os.access(path, os.R_OK):
        raise LaunchError(
            f"the model file '{path.name}' may not be read; give LlamaMan's user the right to read it",
            detail=str(path),
        )


def _address(plan: LaunchPlan) -> Address:
    return Address(path=plan.host) if plan.host.startswith("/") else Address(host=plan.host, port=plan.port)


def _identity(handle: Handle) -> Identity | None:
    if handle.pid is None or handle.started is None:
        return None
    return handle.pid, handle.started


def _group(handle: Handle) -> str:
    return limits.group_name(handle.instance_id, handle.generation)


def _complete(exit_: Exit, group: str) -> Exit:
    """Add what the control group knows, and remove it."""
    oom = limits.killed_for_memory(group) if exit_.signal == signal.SIGKILL else None
    limits.remove(group)
    return replace(exit_, oom=oom)


def _with_cause(exit_: Exit, handle: Handle) -> Exit:
    """How an engine that was never our child ended is unknown, but for what its control group remembers."""
    if exit_.code is None and exit_.signal is None and exit_.oom is None:
        return replace(exit_, oom=limits.killed_for_memory(_group(handle)))
    return exit_


def _marked(process: procfs.Process, environ: Mapping[str, str], node: str, install: str) -> Handle | None:
    """The handle that the marks in an environment describe, if they are of this node and installation."""
    if environ.get(_NODE) != node or environ.get(_INSTALL) != install:
        return None
    instance_id, generation = environ.get(_INSTANCE), environ.get(_GENERATION, "")
    where = environ.get(_ADDRESS, "")
    host, _, port = where.rpartition(":")
    if not instance_id or not generation.isdigit():
        return None
    if where.startswith("/"):
        address = Address(path=where)
    elif port.isdigit():
        address = Address(host=host, port=int(port))
    else:
        return None
    return Handle(instance_id, int(generation), process.pid, process.started, address)
