"""The rest of the world, as a network interface of this machine: what is sent there is seen, and nothing answers."""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import socket
import struct
from types import TracebackType

import pytest

# linux/if_tun.h, linux/sockios.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFFLAGS, _IFF_UP = 0x8916, 0x891C, 0x8914, 1


class Outside:
    """``with Outside() as outside``: ``outside.address`` is somewhere behind this machine."""

    def __init__(self) -> None:
        name = f"lmt-{secrets.token_hex(4)}".encode()
        block = 4 * secrets.randbelow(64)  # of four addresses, among those that documentation uses
        ours, self.address = f"198.51.100.{block + 1}", f"198.51.100.{block + 2}"
        try:
            self._tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self._tun, _TUNSETIFF, struct.pack("16sH14x", name, _IFF_TUN | _IFF_NO_PI))
        except OSError as error:
            pytest.skip(f"only root with /dev/net/tun can stand outside a container's network: {error}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for request, value in ((_SIOCSIFADDR, ours), (_SIOCSIFNETMASK, "255.255.255.252")):
                given = struct.pack("16sHH4s8x", name, socket.AF_INET, 0, socket.inet_aton(value))
                fcntl.ioctl(control, request, given)
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", name, _IFF_UP))

    def __enter__(self) -> Outside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._tun)  # the interface goes with it

    def packets(self) -> int:
        """How many packets for :attr:`address` came since the last call."""
        count = 0
        while select.select([self._tun], [], [], 0)[0]:
            packet = os.read(self._tun, 65536)
            count += packet[0] >> 4 == 4 and packet[16:20] == socket.inet_aton(self.address)
        return count
