"""The service manager that has started this process: what it hands over, what it wants to hear.

The protocol is a datagram of `NAME=value` lines, and descriptors from 3 up; systemd promises to
keep both (sd_notify(3), sd_listen_fds(3)). `sdnotify` knows neither descriptors nor the watchdog's
variables, `systemd-python` needs a compiler: this is shorter than what would go around either.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import MutableMapping
from pathlib import Path

from mingled.errors import DaemonError
from mingled.wakes import due_s

FIRST_FD = 3
"""sd_listen_fds(3), SD_LISTEN_FDS_START."""

STATUS_CHARS_MAX = 200
"""`systemctl status` shows it in one line."""

log = logging.getLogger(__name__)


def take_socket(environ: MutableMapping[str, str] = os.environ) -> socket.socket | None:
    """The listening Unix socket of our `.socket` unit, ours from now on; None: there is none.

    What says so is taken out of `environ`: a child must not take it for its own. Raises
    `DaemonError` for anything but one such socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal() or count == "0":
        return None
    if count != "1":
        raise DaemonError(
            f"systemd hands over {count} sockets on {socket.gethostname()}, want one; keep one "
            "ListenStream= in mingled.socket"
        )
    try:
        sock = socket.socket(fileno=FIRST_FD)
    except OSError as error:
        raise _no_listener(error.strerror or str(error)) from None
    os.set_inheritable(FIRST_FD, False)
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM or not listens:
        sock.close()
        raise _no_listener("it is no listening Unix stream socket")
    return sock


def _no_listener(reason: str) -> DaemonError:
    return DaemonError(
        f"descriptor {FIRST_FD}, which systemd hands over on {socket.gethostname()}: {reason}; "
        "mingled.socket needs ListenStream= with a path"
    )


def path_of(sock: socket.socket) -> Path:
    """Where clients reach it. Raises `DaemonError` for one without a path."""
    name = sock.getsockname()
    if not isinstance(name, str) or not name:
        raise _no_listener("it has no path")
    return Path(name)


class Manager:
    """What the service manager hears of us. Says nothing where none listens."""

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        """Takes the variables of the protocol out of `environ` (the process's own by default):
        children must not speak for us."""
        found = os.environ if environ is None else environ
        self._address = found.pop("NOTIFY_SOCKET", "")
        pid, every_usec = found.pop("WATCHDOG_PID", ""), found.pop("WATCHDOG_USEC", "")
        self._said = ""
        self._beat_every_s: float | None = None  #: None: nobody counts
        ours = pid in ("", str(os.getpid()))
        if self._address and ours and every_usec.isdecimal() and int(every_usec) > 0:
            self._beat_every_s = int(every_usec) / 2e6  # half of what is allowed

    def ready(self) -> None:
        """Clients can connect; or: the configuration has been read again."""
        self._notify("READY=1")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` is to follow."""
        self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._notify("STOPPING=1")

    def beat(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say from now on that we live, from the very loop whose standstill is to be noticed."""
        if self._beat_every_s is not None:
            self._notify("WATCHDOG=1")
            loop.call_at(due_s(loop.time(), self._beat_every_s), self.beat, loop)

    def status(self, text: str) -> None:
        """For `systemctl status`; said only when it has changed."""
        line = " ".join(text.split())[:STATUS_CHARS_MAX]
        if line != self._said:
            self._said = line
            self._notify(f"STATUS={line}")

    def _notify(self, *lines: str) -> None:
        if not self._address:
            return
        # "@" stands for the zero byte of an abstract socket.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            # A manager that reads nothing must not hold up the loop, nor end it.
            with contextlib.suppress(OSError):
                log.debug("the service manager was not told %s: %s", lines[0], error)
