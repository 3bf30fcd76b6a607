"""Two hosts on this machine, as network namespaces, with a switch between them that can be cut off. Linux, as root."""

import contextlib
import ctypes
import os
import socket
import subprocess
from types import TracebackType

_CLONE_NEWUTS, _CLONE_NEWNET = 0x04000000, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class TwoHosts:
    """Two network namespaces behind a switch, which is a third. They are removed on leaving.

    Attributes:
        addresses: of the hosts.

    Raises:
        PermissionError: on entering, where this process may not make namespaces.
    """

    addresses = ("10.203.0.1", "10.203.0.2")

    def __init__(self) -> None:
        self._switch, self._hosts = f"vise{os.getpid()}s", [f"vise{os.getpid()}h{index}" for index in range(2)]

    def __enter__(self) -> "TwoHosts":
        try:
            for name in (self._switch, *self._hosts):
                _ip("netns", "add", name)
            _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "bridge", "up")
            for index, (host, address) in enumerate(zip(self._hosts, self.addresses, strict=True)):
                peer = "peer", "name", f"port{index}", "netns", self._switch
                _ip("link", "add", "port", "netns", host, "type", "veth", *peer)
                _ip("-n", self._switch, "link", "set", f"port{index}", "master", "bridge", "up")
                _ip("-n", host, "address", "add", f"{address}/24", "dev", "port")
                _ip("-n", host, "link", "set", "port", "up")
                _ip("-n", host, "link", "set", "lo", "up")
        except PermissionError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in (self._switch, *self._hosts):
            with contextlib.suppress(PermissionError):
                _ip("netns", "delete", name)

    def cut(self) -> None:
        """Let nothing through the switch: neither host hears of it."""
        _ip("-n", self._switch, "link", "set", "bridge", "down")

    def join(self) -> None:
        """Let everything through again."""
        _ip("-n", self._switch, "link", "set", "bridge", "up")

    def enter(self, index: int) -> None:
        """Move this process, which has one thread yet, to a host. Its address is also its name."""
        with open(f"/run/netns/{self._hosts[index]}") as namespace:
            if _libc.unshare(_CLONE_NEWUTS) or _libc.setns(namespace.fileno(), _CLONE_NEWNET):
                raise PermissionError(os.strerror(ctypes.get_errno()))
        socket.sethostname(self.addresses[index])


def _ip(*words: str) -> None:
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PermissionError("there is no command ip (iproute2)") from error
    if done.returncode:
        raise PermissionError(f"ip {' '.join(words)}: {done.stderr.strip()}")
