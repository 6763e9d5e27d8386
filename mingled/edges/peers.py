"""The peer link: TLS over TCP between daemons, one JSON line a message. Decides nothing.

A link belongs to one realm, which both ends have shown to be in before the core hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mingled.core import events
from mingled.core.codec import encode
from mingled.core.events import Address
from mingled.core.messages import FRAME_SIZE_BYTES_MAX, Message, peer_decoder
from mingled.core.secrets import Realm
from mingled.core.words import Label
from mingled.errors import BadInput, DaemonError
from mingled.net.accepting import Acceptor
from mingled.net.dialing import connect, local_end, persist, try_anew
from mingled.net.listening import listen
from mingled.net.tls import UNKNOWN_BYTES_MAX, Channel, NotOurs, Pass, Shed, Vault, accept
from mingled.net.tls import dial as secure

STAGGER_S = 0.25
"""RFC 8305, Connection Attempt Delay: the next address is tried this long after the one before."""

BETTER_S = 0.05
"""After the first answer a better-ranked address is given this much more."""

CONNECT_S = 3.0
"""For one address."""

ANEW_S = 0.2
"""A fresh connection is tried beside the one that waits: the kernel would repeat a lost SYN after
1 s, and after 2 s more. At 30% loss half of all tries fail, and the slowest node counts."""

SHAKE_ANEW_S = 1.0
"""... and one beside it whose handshake has not come to its end: that takes two round trips and a
few ms, and lost packets of it are repeated by the kernel with growing pauses."""

HANDSHAKE_S = 5.0
"""A client has this long to show who it is."""

HANDSHAKES_MAX = 1_024
"""Clients that have not. Each costs a descriptor and at most 50 KiB; a thousand followers may
knock at once. Beyond that the oldest of whoever knocks most goes, and comes again if it is one of
ours."""

WARM_AFTER_S = 0.25
"""Most participants wait for others; whoever does not is served first."""

UNSENT_BYTES_MAX = 64 * 1024 * 1024
"""A peer that does not read is hung up on before it costs more memory than this."""

LAST_WORD_S = 5.0
"""For what was sent before a link is closed to arrive, lost packets and all."""

PORTS_TRIED = 64
"""A busy link port moves on to the next, at most this far."""

log = logging.getLogger(__name__)


class Unreached(OSError):
    """No connection to a daemon; the text names each address and why. `answered`: its host is
    there all the same, as it refused or reset one."""

    def __init__(self, code: int, reason: str, *, answered: bool, shed: bool = False) -> None:
        super().__init__(code, reason)
        self.answered = answered
        self.shed = shed  #: a connection was taken, and ended before the other side said who it is


class _Knock(NamedTuple):
    """Somebody who has connected and not shown yet who it is."""

    task: asyncio.Task[None]
    writer: asyncio.StreamWriter
    source: str


_HOST_ANSWERED = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE})
"""All else is what the kernel gave up on, or what something on the way has said."""


def _answered(error: BaseException | None) -> bool:
    return isinstance(error, NotOurs) or (
        isinstance(error, OSError) and error.errno in _HOST_ANSWERED
    )


async def dial(address: str, port: int, pass_: Pass, sources: Sequence[Address] = ()) -> Channel:
    """One connection to one address, from one of `sources` if any are given, no longer than
    CONNECT_S. Raises `NotOurs` where somebody else answers, and `OSError`."""

    async def attempt() -> Channel:
        sock = await try_anew(
            lambda: connect(address, port, sources),
            socket.socket.close,
            every_s=ANEW_S,
            within_s=CONNECT_S,
        )
        persist(sock)
        return await secure(*await asyncio.open_connection(sock=sock), pass_)

    return await try_anew(attempt, Channel.close, every_s=SHAKE_ANEW_S, within_s=CONNECT_S)


def bind(port: int) -> socket.socket:
    """A listening socket on `port`, or on the next free one, for IPv4 and IPv6 where there is."""
    last: OSError | None = None
    for candidate in range(port, port + PORTS_TRIED):
        try:
            return listen(candidate, beside=True)  # a thousand followers may knock at once
        except OSError as error:
            last = error
            if error.errno != errno.EADDRINUSE:
                break
    raise DaemonError(
        f"no peer link port: {port} to {port + PORTS_TRIED - 1}: {os.strerror(last.errno or 0)}"
        if last
        else "no peer link port"
    )


def _plain(address: str) -> str:
    """IPv4 addresses arrive mapped on a dual-stack socket."""
    return address.removeprefix("::ffff:").partition("%")[0]


class Peers:
    """All links of one daemon."""

    def __init__(self, emit: Callable[[events.Event], None]) -> None:
        self._emit = emit
        self._vault = Vault()
        self._channels: dict[int, Channel] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._knocks: dict[int, _Knock] = {}
        self._stuck: set[int] = set()  #: hung up on by us, as nothing was read there
        self._accepted = 0
        self._acceptor: Acceptor | None = None
        self.refused = 0  #: connections that had not the secrets, or said nothing

    async def start(self, sock: socket.socket) -> None:
        self._acceptor = Acceptor("the peer link", sock, self._accept, limit=UNKNOWN_BYTES_MAX)

    async def close(self) -> None:
        """What was sent still goes out."""
        for link in list(self._channels):
            self.close_link(link)
        # Until then it goes on to listen: a refusal would tell whoever asks that the daemon is
        # gone, before the news that is on its way, perhaps lost and sent again, can say why.
        last = list(self._tasks.values())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_S):
                await asyncio.gather(*last, return_exceptions=True)
        if self._acceptor is not None:
            self._acceptor.close()
        tasks = [*self._tasks.values(), *(knock.task for knock in self._knocks.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def counts(self) -> dict[str, int]:
        return {"links": len(self._channels), "handshakes": len(self._knocks)}

    # ------------------------------------------------------------ actions

    def trust(self, realm: Realm, *, soon: bool = False) -> None:
        """From now on, whoever shows to be in this realm is let in. `soon`: make what the first
        link needs before that is asked for."""
        self._vault.trust(realm)
        if soon:
            asyncio.get_running_loop().call_later(WARM_AFTER_S, self._vault.warm, realm.label)

    def distrust(self, label: Label) -> None:
        """No longer; links that stand go on."""
        self._vault.distrust(label)

    def open_link(
        self,
        link: int,
        label: Label,
        addresses: Sequence[str],
        port: int,
        sources: Sequence[Address] = (),
    ) -> None:
        task = asyncio.create_task(self._open(link, label, addresses, port, sources))
        self._tasks[link] = task

    def send(self, link: int, message: Message) -> None:
        channel = self._channels.get(link)
        if channel is None or channel.closing:
            return  # its end is, or will be, an event of its own
        if channel.unsent_bytes > UNSENT_BYTES_MAX:
            self._stuck.add(link)
            channel.abort()
            return
        channel.write(encode(message))

    def close_link(self, link: int) -> None:
        """What was sent before still goes out: until the other side has hung up, too, we listen.
        If we did not, its next frame would be answered with RST, and what was lost on the way and
        is to be sent again would be forgotten."""
        channel = self._channels.pop(link, None)
        if channel is not None:
            channel.finish()
            asyncio.get_running_loop().call_later(LAST_WORD_S, channel.abort)
        elif link in self._tasks:
            self._tasks.pop(link).cancel()

    # ------------------------------------------------------------ connections

    async def _open(
        self,
        link: int,
        label: Label,
        addresses: Sequence[str],
        port: int,
        sources: Sequence[Address],
    ) -> None:
        try:
            channel = await race(addresses, port, self._vault.of(label), sources)
            local, remote = _ends(channel)
        except Exception as error:  # whatever it is, the core must not wait for ever
            self._tasks.pop(link, None)
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            answered = isinstance(error, Unreached) and error.answered
            shed = isinstance(error, Unreached) and error.shed
            failed = events.LinkFailed(link=link, reason=reason, answered=answered, shed=shed)
            self._emit(failed)
            return
        self._channels[link] = channel
        self._emit(events.LinkOpened(link=link, local=local, remote_address=remote))
        await self._read(link, channel)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        persist(writer.get_extra_info("socket"))
        self._accepted += 2
        link = self._accepted
        source = _plain(str((writer.get_extra_info("peername") or ("",))[0]))
        if len(self._knocks) >= HANDSHAKES_MAX:
            ((busiest, _),) = Counter(k.source for k in self._knocks.values()).most_common(1)
            oldest = next(n for n, k in self._knocks.items() if k.source == busiest)
            self._knocks.pop(oldest).writer.transport.abort()
        self._knocks[link] = _Knock(task, writer, source)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                channel, label = await accept(reader, writer, self._vault)
            local, remote = _ends(channel)
        except (OSError, ValueError) as error:  # TimeoutError, too: it is none of ours
            self.refused += 1
            log.debug("a client on the peer link was not let in: %s", error)
            writer.close()
            return
        except BaseException:
            writer.close()
            raise
        finally:
            self._knocks.pop(link, None)
        self._channels[link] = channel
        self._tasks[link] = task
        accepted = events.LinkAccepted(link=link, local=local, remote_address=remote, label=label)
        self._emit(accepted)
        await self._read(link, channel)

    async def _read(self, link: int, channel: Channel) -> None:
        reason, answered = "hung up", True
        try:
            while line := await channel.readline(FRAME_SIZE_BYTES_MAX):
                if link in self._channels:  # else we have closed it, and only wait for the end
                    message = peer_decoder.decode(line)
                    self._emit(events.FrameReceived(link=link, message=message))
        except asyncio.LimitOverrunError:
            reason = f"sent a line longer than {FRAME_SIZE_BYTES_MAX} bytes"
        except BadInput as error:
            reason = f"sent what is no message: {error}"
        except OSError as error:
            reason, answered = error.strerror or str(error), _answered(error)
        finally:
            if link in self._stuck:  # to asyncio it looks as if the other side had hung up
                self._stuck.discard(link)
                reason, answered = f"left {UNSENT_BYTES_MAX} bytes unread", False
            self._tasks.pop(link, None)
            ours = self._channels.pop(link, None) is not None
            channel.close()
            await channel.wait_closed()
        if ours:
            self._emit(events.LinkClosed(link=link, reason=reason, answered=answered))


def _ends(channel: Channel) -> tuple[Address, str]:
    sockname, peername = channel.sockname, channel.peername
    if not sockname or not peername:  # reset before asyncio could ask
        channel.close()
        raise Unreached(errno.ENOTCONN, "connected, and reset at once", answered=True)
    return local_end(str(sockname[0])), _plain(str(peername[0]))


async def race(
    addresses: Sequence[str], port: int, pass_: Pass, sources: Sequence[Address] = ()
) -> Channel:
    """RFC 8305 over one leader's addresses, best first. Raises `Unreached`."""
    if not addresses:
        raise Unreached(errno.EADDRNOTAVAIL, "the advert names no address", answered=False)
    attempts: list[asyncio.Task[Channel]] = []
    winner: asyncio.Task[Channel] | None = None
    taken: asyncio.Task[Channel] | None = None
    try:
        for address in addresses:
            attempts.append(asyncio.create_task(dial(address, port, pass_, sources)))
            winner = await _first(attempts, STAGGER_S)
            if winner is not None:
                break
        winner = winner or await _first(attempts, None)
        if winner is not None and attempts.index(winner) > 0:
            better = attempts[: attempts.index(winner)]
            winner = await _first(better, BETTER_S) or winner
        if winner is None:
            answered = any(_answered(attempt.exception()) for attempt in attempts)
            reasons = _reasons(addresses, port, attempts)
            shed = any(isinstance(attempt.exception(), Shed) for attempt in attempts)
            raise Unreached(errno.EHOSTUNREACH, reasons, answered=answered or shed, shed=shed)
        taken = winner
        return winner.result()
    finally:
        for attempt in attempts:
            if attempt is not taken:  # all of them where the race itself is called off
                attempt.cancel()
                attempt.add_done_callback(_discard)


async def _first(
    attempts: Sequence[asyncio.Task[Channel]], wait_s: float | None
) -> asyncio.Task[Channel] | None:
    """The best attempt that has succeeded, as soon as one has; None if all failed or time is up."""
    loop = asyncio.get_running_loop()
    until = None if wait_s is None else loop.time() + wait_s
    while True:
        for attempt in attempts:
            if attempt.done() and not attempt.cancelled() and attempt.exception() is None:
                return attempt
        pending = [a for a in attempts if not a.done()]
        left = None if until is None else until - loop.time()
        if not pending or (left is not None and left <= 0):
            return None
        await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)


def _discard(attempt: asyncio.Task[Channel]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


def _reasons(addresses: Sequence[str], port: int, attempts: Sequence[asyncio.Task[Channel]]) -> str:
    words = []
    for address, attempt in zip(addresses, attempts, strict=False):
        error = attempt.exception() if attempt.done() and not attempt.cancelled() else None
        reason = getattr(error, "strerror", None) or str(error)
        # asyncio words a refusal as "Connect call failed (...)"; the system's own word is better.
        code = getattr(error, "errno", None)
        if code and "Connect call failed" in reason:
            reason = os.strerror(code)
        words.append(f"{address} port {port}: {reason}")
    return "; ".join(words)
