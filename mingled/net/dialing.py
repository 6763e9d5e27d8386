"""TCP on a network that loses packets: what the kernel's own patience is too slow for."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from mingled.core.events import Address
from mingled.core.reach import is_link_local_v6, parsed, subnet_of
from mingled.net import ioctls
from mingled.net.interfaces import interface_of
from mingled.net.listening import RESET

TCP_THIN_LINEAR_TIMEOUTS = 16
"""Linux: a stream with few packets in flight is repeated at even intervals (from 0.2 s) for six
times, instead of 0.2, 0.4, 0.8, ... 12.8 s. At 30% loss half of all tries fail."""

TCP_RTO_MAX_MS = 44
"""Linux 6.15: the longest pause between two tries; 120 s otherwise."""

RTO_MAX_MS = 1_000
"""The least that the kernel takes."""

TCP_RTO_MIN_US = 45
"""Linux 6.12: the shortest pause before a packet that nobody has acknowledged is repeated; 200,000
otherwise."""

RTO_MIN_US = 50_000
"""No peer of ours is farther than a LAN, and a needless repetition costs one small packet."""

STAGGER_S = 0.25
"""RFC 8305, Connection Attempt Delay: the next source is tried this long after the one before."""

AT_ONCE_BELIEVED = 2

DISCARD_PORT = 9

T = TypeVar("T")


async def connect(
    address: str, port: int, sources: Sequence[Address] = (), *, quick_ack: bool = True
) -> socket.socket:
    """A TCP connection to an address (a link-local one with its scope), from one of `sources` and
    over its interface where any are given. Raises `OSError`, also where none is of the address's
    family."""
    if not sources:
        return await _connect(address, port, None, quick_ack)
    first, *others = sources_for(address, sources)
    if not others:
        return await _connect(address, port, first, quick_ack)
    return await _first_of(
        [functools.partial(_connect, address, port, s, quick_ack) for s in (first, *others)]
    )


async def _connect(
    address: str, port: int, source: Address | None, quick_ack: bool
) -> socket.socket:
    host, _, scope = address.partition("%")
    six = ":" in host
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if not quick_ack:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        if source is not None:
            _keep_to(sock, source.interface)
            sock.bind(_place(source.address, 0, source.interface))
        place = _place(host, port, scope)
        await asyncio.get_running_loop().sock_connect(sock, place)
    except BaseException:
        sock.close()
        raise
    return sock


def _place(host: str, port: int, scope: str) -> tuple[str, int] | tuple[str, int, int, int]:
    if ":" not in host:
        return host, port
    link_local = is_link_local_v6(host)
    index = int(scope) if scope.isdigit() else socket.if_nametoindex(scope) if scope else 0
    return host, port, 0, index if link_local else 0


def _keep_to(sock: socket.socket, interface: str) -> None:
    """Leave over this interface. No packet for another machine could over loopback: an address
    that was put there is reached, and left from, over all the others."""
    if (ioctls.flags(interface) or 0) & ioctls.IFF_LOOPBACK:
        return
    with contextlib.suppress(OSError):  # old kernels leave that to root: the address is set
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())


async def _first_of(ways: Sequence[Callable[[], Awaitable[socket.socket]]]) -> socket.socket:
    """The first connection, each way being tried once the one before it has failed or has had
    STAGGER_S; they stay beside each other, since over an interface with no route the kernel asks
    for the address on the link itself, 3 s long. Raises the last error, or a refusal if there was
    one and the others have had STAGGER_S too: somebody has answered."""
    left = list(ways)
    running: set[asyncio.Future[socket.socket]] = set()
    error: BaseException | None = None
    try:
        while True:
            if left:
                running.add(asyncio.ensure_future(left.pop(0)()))
            refused = isinstance(error, ConnectionRefusedError)
            done, running = await asyncio.wait(
                running,
                timeout=STAGGER_S if left or refused else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            connected = [tried for tried in done if tried.exception() is None]
            if connected:
                running |= set(connected[1:])
                return connected[0].result()
            for tried in done:
                error = error if refused else tried.exception()
                refused = isinstance(error, ConnectionRefusedError)
            if error is not None and not left and (not running or (refused and not done)):
                raise error
    finally:
        for other in running:
            other.cancel()
            other.add_done_callback(lambda f: _late(f, socket.socket.close))


def sources_for(address: str, sources: Sequence[Address]) -> Sequence[Address]:
    """Those to connect to `address` from, in this order: the one in its subnet; else what the
    kernel's routes would choose; else, where that is none of `sources`, all of the family. Raises
    `OSError` (EADDRNOTAVAIL) where none is."""
    ip = parsed(address)
    _, _, scope = address.partition("%")
    fits = [s for s in sources if (":" in s.address) == (":" in address)]
    if is_link_local_v6(address):
        fits = [s for s in fits if is_link_local_v6(s.address) and scope in ("", s.interface)]
    elif not all(is_link_local_v6(s.address) for s in fits):
        fits = [s for s in fits if not is_link_local_v6(s.address)]
    for source in fits:
        net = subnet_of(source)
        if ip is not None and net is not None and ip in net:
            return [source]
    if not fits:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    routed = _routed(address) if len(fits) > 1 else ""
    return [s for s in fits if s.address == routed] or fits


def _routed(address: str) -> str:
    """Our address that the kernel would connect there from; empty: it knows no way. Nothing is
    sent."""
    host, _, scope = address.partition("%")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect(_place(host, DISCARD_PORT, scope))
            return str(sock.getsockname()[0]).partition("%")[0]
    except OSError:
        return ""


def local_end(sockname: str) -> Address:
    """Our end of a connection: the address bare, and the interface that has it."""
    plain, _, scope = sockname.removeprefix("::ffff:").partition("%")
    return Address(address=plain, interface=scope or interface_of(plain))


def persist(sock: socket.socket) -> None:
    """Send at once, and repeat lost packets of this connection soon, as far as the kernel can."""
    # asyncio sets TCP_NODELAY only where the socket was made with its protocol's number.
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (TCP_THIN_LINEAR_TIMEOUTS, 1),
        (TCP_RTO_MAX_MS, RTO_MAX_MS),
        (TCP_RTO_MIN_US, RTO_MIN_US),
    ):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


STRANGER = "somebody else answers there; the same address on another host?"


class Stranger(Exception):
    """Something was said, but not the word."""


async def hear(address: str, port: int, word: str, sources: Sequence[Address] = ()) -> str:
    """Connect and read `word`; with an empty one the connection is enough. Our own end's address.
    Raises `Stranger` where something else is said, and `OSError`."""
    sock = await connect(address, port, sources)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        said = b""
        while word and not said.endswith(b"\n") and len(said) <= len(word):
            chunk = await asyncio.get_running_loop().sock_recv(sock, len(word) + 1)
            if not chunk:
                break
            said += chunk
        if said.strip() != word.encode():
            raise Stranger
        return str(sock.getsockname()[0])


async def try_anew(
    attempt: Callable[[], Awaitable[T]],
    discard: Callable[[T], None],
    *,
    every_s: float,
    within_s: float,
) -> T:
    """The first attempt that succeeds, a fresh one being started every `every_s` beside those that
    still wait. An attempt that is answered (refused, unreachable) ends them all with its error;
    `discard` takes what a later attempt brought too late. Raises `OSError` (ETIMEDOUT) after
    `within_s`.

    EHOSTUNREACH is what the kernel says when nobody told the host's MAC address in three tries, a
    second each, which is no answer at all: at 30% loss one such search in eight fails. Where it
    comes at once, twice in a row, something on the way has said it.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    running: set[asyncio.Future[T]] = set()
    winner: asyncio.Future[T] | None = None
    unreachable: BaseException | None = None
    at_once = 0
    try:
        while (left := until - loop.time()) > 0:
            newest = asyncio.ensure_future(attempt())
            running.add(newest)
            done, running = await asyncio.wait(
                running, timeout=min(every_s, left), return_when=asyncio.FIRST_COMPLETED
            )
            at_once = at_once + 1 if newest in done and _unreachable(newest) else 0
            for vain in [f for f in done if _unreachable(f)]:
                unreachable = vain.exception()
                if at_once < AT_ONCE_BELIEVED:
                    done.discard(vain)
            if done:
                winner = min(done, key=lambda f: f.exception() is not None)
                running |= done - {winner}
                return winner.result()
        raise unreachable or OSError(errno.ETIMEDOUT, f"no answer within {within_s:g} s")
    finally:
        for other in running:
            other.cancel()
            other.add_done_callback(lambda f: _late(f, discard))


def _unreachable(future: asyncio.Future[T]) -> bool:
    error = future.exception()
    return isinstance(error, OSError) and error.errno == errno.EHOSTUNREACH


def _late(future: asyncio.Future[T], discard: Callable[[T], None]) -> None:
    if not future.cancelled() and future.exception() is None:
        discard(future.result())
