"""TCP ports of ours, on all addresses of both families, and ports that say a word."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

PAUSE_S = 1.0
"""With no descriptor left a listener stays readable for ever: it is looked at again after this."""

ACCEPTED_AT_ONCE = 1024
"""Then others get their turn, however many still knock."""

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER for a close with RST instead of FIN: neither side keeps a TIME_WAIT on the port."""

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def ephemeral_ports() -> range:
    """Ports that the kernel hands out to anybody: never picked for rank 0."""
    try:
        low, high = _RANGE.read_text().split()
        return range(int(low), int(high) + 1)
    except (OSError, ValueError):
        return range(32_768, 61_000)


def on_all_addresses(port: int, set_up: Callable[[socket.socket], None]) -> socket.socket:
    """A socket bound to `port` on every address, of both families where the system has IPv6.
    `set_up` is called with it before it is bound. Raises `OSError`."""
    for family, host in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            set_up(sock)
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            if family == socket.AF_INET or error.errno == errno.EADDRINUSE:
                raise
        else:
            return sock
    raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))


def listen(port: int, *, beside: bool = False) -> socket.socket:
    """A listening socket, not blocking, on `port` (0: one of the kernel's choice). `beside`: also
    where one of ours, or a connection that has just ended, has the port. Raises `OSError`."""

    def set_up(sock: socket.socket) -> None:
        sock.setblocking(False)
        if beside:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    sock = on_all_addresses(port, set_up)
    try:
        sock.listen(ACCEPTED_AT_ONCE)
    except OSError:
        sock.close()
        raise
    return sock


class Speaker:
    """A listening port that says a word to whoever connects, from now on until closed."""

    def __init__(self, sock: socket.socket, word: str) -> None:
        self._sock = sock
        self._word = word.encode() + b"\n"
        self._loop = asyncio.get_running_loop()
        self.port: int = sock.getsockname()[1]
        self._listen()

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            # RST for whoever still knocks: a client of the store must try again, not wait.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._sock.close()

    def _listen(self) -> None:
        if self._sock.fileno() >= 0:  # closed during a pause
            self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _address = self._sock.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._loop.remove_reader(self._sock)
                    self._loop.call_later(PAUSE_S, self._listen)
                return
            with connection, contextlib.suppress(OSError):
                # Fits in any empty send buffer. The reader answers with RST, so that no TIME_WAIT
                # is left on the port.
                connection.send(self._word)
