"""A Docker daemon of a test's own, that may be stopped, killed and started again. Read by tests of what then happens.

Guarantees that no other daemon of the machine is touched (own containerd, folders, socket, bridge and addresses, no
firewall rules), and that at the end no process, mount, network interface or file of it is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

_START_S = 60.0
_STOP_S = 60.0  # it gives its containers some seconds of grace
_PROGRAMS = ("dockerd", "containerd", "runc")


def why_not() -> str | None:
    """Why none can be run here, for a skip; None when it can."""
    if os.geteuid() != 0:
        return "only root can run a Docker daemon of its own"
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    return f"install {', '.join(missing)} (Debian: docker.io) to run this test" if missing else None


class PrivateDaemon:
    """Use it as a context manager; it runs inside the ``with`` block, and between :meth:`start` and an end."""

    def __init__(self, *arguments: str) -> None:
        """
        :param arguments: further arguments of dockerd.
        """
        self._arguments = arguments
        # Sockets have short names: not below pytest's folders.
        self.folder = Path(tempfile.mkdtemp(prefix="dockerd-"))
        self.socket = self.folder / "docker.sock"
        self._containerd_socket = self.folder / "containerd" / "containerd.sock"
        self.bridge = f"dkr-{secrets.token_hex(4)}"
        self._dockerd: subprocess.Popen[bytes] | None = None
        self._containerd: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """As in DOCKER_HOST."""
        return f"unix://{self.socket}"

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._dockerd is not None and self._dockerd.poll() is None

    def log(self) -> str:
        """What both have said."""
        return "\n".join(
            path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")) if path.is_file()
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert not self.is_alive, "it runs"
        if not Path("/sys/class/net", self.bridge).exists():
            _add_bridge(self.bridge, f"10.{64 + secrets.randbelow(128)}.{secrets.randbelow(256)}.1")
        below = self.folder / "containerd"
        below.mkdir(exist_ok=True)
        config = below / "config.toml"
        config.write_text(
            "version = 2\n"
            f'root = "{below / "root"}"\nstate = "{below / "state"}"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\n  address = "{self._containerd_socket}"\n'
        )
        self._containerd = self._run("containerd", "--config", str(config))
        self._wait(self._containerd, self._containerd_socket.is_socket)
        self._dockerd = self._run(
            "dockerd",
            *("--containerd", str(self._containerd_socket)),
            *("--data-root", str(self.folder / "data")),
            *("--exec-root", str(self.folder / "exec")),
            *("--pidfile", str(self.folder / "docker.pid")),
            *("--host", self.host),
            # dockerd 20.10 removes docker0, whoever made it, with `--bridge=none`, and at its second start with
            # `--default-address-pool`. The firewall is one for all: it would take the other daemon's rules away.
            *("--bridge", self.bridge, "--iptables=false", "--ip-masq=false"),
            *self._arguments,
        )
        self._wait(self._dockerd, self._answers)

    def stop(self) -> None:
        """End it in order; its containers end, too."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill both at once; containers go on."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        for process in (self._dockerd, self._containerd):
            if process is not None and process.poll() is None:
                process.send_signal(how)
                process.wait(_STOP_S)
        self._dockerd = self._containerd = None

    def __enter__(self) -> PrivateDaemon:
        try:
            self.start()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self.is_alive:  # only a daemon can take its containers and networks apart
                self.start()
            self._empty()
            self.stop()
        finally:
            self._discard()

    def _empty(self) -> None:
        import docker

        client = docker.DockerClient(base_url=self.host)
        try:
            for container in client.api.containers(all=True):
                client.api.remove_container(container["Id"], force=True, v=True)
            for network in client.api.networks(filters={"type": "custom"}):
                client.api.remove_network(network["Id"])
        finally:
            client.close()

    def _discard(self) -> None:
        """What is left when it ended, or could not be ended in order."""
        self._end(signal.SIGKILL)
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for mount in self._mounts():
            subprocess.run(["umount", "--lazy", mount], check=False, stderr=subprocess.DEVNULL)
        if Path("/sys/class/net", self.bridge).exists():
            _remove_bridge(self.bridge)
        shutil.rmtree(self.folder)

    def _left(self) -> Iterator[int]:
        """Processes that watch over containers, and those containers' own: they outlive a killed daemon."""
        children: dict[int, list[int]] = {}
        shims: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):  # it has just ended
                continue
            children.setdefault(parent, []).append(int(entry.name))
            if str(self._containerd_socket).encode() in arguments:
                shims.append(int(entry.name))
        waiting = shims
        while waiting:
            pid = waiting.pop()
            yield pid
            waiting.extend(children.get(pid, ()))

    def _mounts(self) -> list[str]:
        """Mount points below our folder, the innermost first."""
        with open("/proc/self/mountinfo", encoding="utf-8") as lines:
            points = [line.split(" ")[4] for line in lines]
        return sorted((point for point in points if Path(point).is_relative_to(self.folder)), reverse=True)

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command[0]}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _answers(self) -> bool:
        import docker
        import docker.errors

        try:
            client = docker.APIClient(base_url=self.host, version="auto", timeout=5)
        except docker.errors.DockerException:
            return False
        client.close()
        return True

    def _wait(self, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_S
        while not ready():
            assert process.poll() is None, f"it ended at once:\n{self.log()[-3000:]}"
            assert time.monotonic() < deadline, f"it does not answer:\n{self.log()[-3000:]}"
            time.sleep(0.02)


# --- a bridge, as linux/sockios.h has it; the program `ip` is not everywhere ----------------------------

_SIOCSIFADDR, _SIOCSIFNETMASK = 0x8916, 0x891C
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCBRADDBR, _SIOCBRDELBR = 0x89A0, 0x89A1
_IFF_UP = 1


def _add_bridge(name: str, address: str) -> None:
    """Make a bridge with this IPv4 address, in a network of 24 bits."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCBRADDBR, name.encode() + b"\0")
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.0")):
            given = struct.pack("16sHH4s8x", name.encode(), socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(control, request, given)
        _set_up(control, name, up=True)


def _remove_bridge(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _set_up(control, name, up=False)
        fcntl.ioctl(control, _SIOCBRDELBR, name.encode() + b"\0")


def _set_up(control: socket.socket, name: str, *, up: bool) -> None:
    asked = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
    flags = struct.unpack("16sH14x", asked)[1]
    flags = flags | _IFF_UP if up else flags & ~_IFF_UP
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", name.encode(), flags))
