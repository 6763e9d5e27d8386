"""Names to addresses, without blocking the loop and never for longer than a few seconds.

`getaddrinfo` cannot be cancelled, and waits half a minute for a DNS server that never answers. So
each look-up has a daemon thread of its own: those of a thread pool would hold up the interpreter's
end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

LOOKUP_S = 5.0
"""A DNS server that has not answered by then does not answer."""

CACHED_S = 3.0
"""Several jobs that ask for the same peers cost one look-up; new pods are seen soon."""

ADDRESSES_MAX = 256
"""Behind one name: a Kubernetes headless service of more pods finds its leader among these, too."""

NAMES_MAX = 256
"""Remembered, and looked up at once; each that is being looked up costs a thread."""

RESOLV_CONF = Path("/etc/resolv.conf")

Lookup = Callable[[str], tuple[str, ...]]
"""Blocks; raises `socket.gaierror` or another `OSError`."""


class Resolved(msgspec.Struct, frozen=True):
    """Addresses, or why there are none: a clause to follow a name."""

    addresses: tuple[str, ...]
    trouble: str = ""


class Resolver:
    """Of one event loop."""

    def __init__(self, lookup: Lookup | None = None, *, timeout_s: float = LOOKUP_S) -> None:
        self._lookup = lookup or _look_up
        self._timeout_s = timeout_s
        self._pending: dict[str, asyncio.Future[Resolved]] = {}
        self._known: dict[str, tuple[float, Resolved]] = {}  #: found, and until when it holds

    async def resolve(self, name: str) -> Resolved:
        """Raises nothing. An address stands for itself."""
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return Resolved((name,))
        loop = asyncio.get_running_loop()
        until_s, known = self._known.get(name, (0.0, Resolved(())))
        if loop.time() < until_s:
            return known
        pending = self._pending.get(name)
        if pending is None:
            if len(self._pending) >= NAMES_MAX:
                return Resolved((), "is not looked up: too many look-ups already wait for DNS")
            pending = self._start(name)
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await asyncio.shield(pending)
        except TimeoutError:
            return Resolved((), _no_answer(self._timeout_s))
        if found.addresses:
            self._known.pop(name, None)
            self._known[name] = (loop.time() + CACHED_S, found)
            while len(self._known) > NAMES_MAX:
                del self._known[next(iter(self._known))]
        return found

    def _start(self, name: str) -> asyncio.Future[Resolved]:
        loop = asyncio.get_running_loop()
        pending: asyncio.Future[Resolved] = loop.create_future()
        self._pending[name] = pending

        def finish(found: Resolved) -> None:
            del self._pending[name]
            pending.set_result(found)

        def work() -> None:
            found = self._found(name)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(finish, found)

        try:
            threading.Thread(target=work, name=f"look up {name}", daemon=True).start()
        except RuntimeError:  # a limit of processes, which counts threads
            finish(Resolved((), "is not looked up: this machine lets us start no more threads"))
        return pending

    def _found(self, name: str) -> Resolved:
        try:
            addresses = self._lookup(name)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                return Resolved((), f"cannot be looked up: {_servers()} cannot answer now")
            return Resolved((), f"does not resolve: {_servers()} knows no such name")
        except UnicodeError:  # the idna codec's own words are for nobody
            return Resolved((), "does not resolve: it is no host name")
        except OSError as error:
            return Resolved((), f"does not resolve: {error}")
        if not addresses:
            return Resolved((), f"does not resolve: {_servers()} knows no address of that name")
        return Resolved(tuple(dict.fromkeys(addresses))[:ADDRESSES_MAX])


def _look_up(name: str) -> tuple[str, ...]:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    return tuple(str(sockaddr[0]) for *_, sockaddr in found)


def name_servers(conf: Path | None = None) -> tuple[str, ...]:
    """Addresses of the DNS servers that this machine asks."""
    try:
        lines = (conf or RESOLV_CONF).read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    words = (line.split() for line in lines)
    found = tuple(w[1][:64] for w in words if len(w) > 1 and w[0] == "nameserver")
    return found[:3] or ("127.0.0.1",)  # what libc does


def _servers() -> str:
    servers = name_servers()
    return f"the DNS server{'s' * (len(servers) > 1)} {', '.join(servers)}"


def _no_answer(within_s: float) -> str:
    do = "do" if len(name_servers()) > 1 else "does"
    return f"cannot be looked up: {_servers()} {do} not answer within {within_s:g} s"
