"""A visit to another daemon over its peer link: who is it, what does it reach, what reaches it?
Bounded in time; what goes wrong is a text, since an unreachable daemon is a finding, no error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from mingled.core.codec import encode
from mingled.core.messages import (
    FRAME_SIZE_BYTES_MAX,
    LABELS_MAX,
    PLACES_MAX,
    Hail,
    Listen,
    Listening,
    Message,
    Place,
    Presence,
    Test,
    Tested,
    Tried,
    peer_decoder,
)
from mingled.core.reach import scoped
from mingled.core.words import Label
from mingled.doctor.realms import held, passes
from mingled.edges.peers import race
from mingled.errors import BadInput
from mingled.net.dialing import local_end
from mingled.net.tls import Channel
from mingled.net.udp import interface_name

ANSWER_S = 4.0
"""For a Presence or a port."""

TESTED_S = 14.0
"""For the results of 256 places of which none answers, four times 3 s."""

AT_ONCE = 16
"""Daemons that are visited at the same time: 1,000 take a few seconds, and no firewall minds."""

LARGE_BYTES = 64 * 1024
"""Of a stream that is to fill whole packets: seven jumbo frames, 45 usual ones."""

LARGE_S = 3.0
"""For that much; on any LAN it takes a millisecond."""

NOWHERE = "192.0.2.1"
"""RFC 5737: an example's address. No daemon lets itself be sent there, and says so at length."""

NOWHERE_TIMES = 200
"""An answer of about 25 KiB comes of it."""

HUNG_UP = "it hung up; it may be of an older version"

M = TypeVar("M", bound=Message)


class Unreached(msgspec.Struct, frozen=True):
    """No conversation; why."""

    reason: str


class Visit:
    """A link to one daemon, of `hail`. A context manager; one question at a time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        #: The address that was reached, link-local ones with scope; and our own end.
        self.address = _scoped(channel.peername)
        self.here = local_end(_scoped(channel.sockname))
        self.presence: Presence
        self.ahead_s = 0.0  #: its clock, compared with ours
        self.took_s = 0.0  #: for its answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._channel.finish()
        self._channel.close()
        await self._channel.wait_closed()

    async def test(
        self, places: Sequence[Place], label: Label | None = None
    ) -> tuple[Tried, ...] | Unreached:
        """Ask it to connect to these, at most PLACES_MAX."""
        answer = await self.ask(
            Test(label=label, places=tuple(places[:PLACES_MAX])), Tested, TESTED_S
        )
        return answer.results if isinstance(answer, Tested) else answer

    async def listen(self) -> int | Unreached:
        """Have it open a port of rank 0's range for ten seconds; 0: none is free there."""
        answer = await self.ask(Listen(), Listening, ANSWER_S)
        return answer.port if isinstance(answer, Listening) else answer

    async def hears_large(self) -> str:
        """Whether packets of full size get there. Why not; empty: they do."""
        padding = b" " * LARGE_BYTES
        line = encode(Hail()).rstrip(b"\n") + padding + b"\n"
        answer = await self._converse(line, Presence, LARGE_S)
        return answer.reason if isinstance(answer, Unreached) else ""

    async def says_large(self) -> str:
        """Whether its packets of full size get here. Why not; empty: they do. Its question must
        get there, so `hears_large` comes first."""
        nowhere = Place(address=NOWHERE, port=9)
        question = Test(label=None, places=(nowhere,) * NOWHERE_TIMES)
        answer = await self.ask(question, Tested, LARGE_S)
        return answer.reason if isinstance(answer, Unreached) else ""

    async def ask(self, question: Message, kind: type[M], within_s: float) -> M | Unreached:
        return await self._converse(encode(question), kind, within_s)

    async def _converse(self, line: bytes, kind: type[M], within_s: float) -> M | Unreached:
        try:
            async with asyncio.timeout(within_s):
                self._channel.write(line)
                await self._channel.drain()
                while said := await self._channel.readline(FRAME_SIZE_BYTES_MAX):
                    answer = peer_decoder.decode(said)
                    if isinstance(answer, kind):
                        return answer
                return Unreached(HUNG_UP)
        except TimeoutError:
            return Unreached(f"connected, but no answer within {within_s:g} s")
        except (asyncio.LimitOverrunError, BadInput) as error:
            return Unreached(f"what answers there is no mingled of this version: {error}")
        except OSError as error:
            return Unreached(error.strerror or str(error))


def _scoped(name: Sequence[object] | None) -> str:
    """Of a socket's name, which over IPv6 has the interface's index in its fourth place."""
    if not name:
        return ""
    index = name[3] if len(name) > 3 else 0
    return scoped(str(name[0]), interface_name(index)) if isinstance(index, int) else str(name[0])


async def hail(
    addresses: Sequence[str],
    port: int,
    labels: Sequence[Label] = (),
    *,
    clock: Callable[[], float] = time.time,
) -> Visit | Unreached:
    """Connect to the best of a daemon's addresses that answers, and ask who it is and which of
    these jobs it has. The visit is to be closed. `clock`: the wall's, that the daemon's is compared
    with."""
    question = Hail(labels=tuple(labels[:LABELS_MAX]))
    channel: Channel | None = None
    reason = ""
    for pass_ in passes():  # the first is the one that daemons present; while keys change, another
        try:
            channel = await race(addresses, port, pass_)
            break
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if channel is None:
        return Unreached(f"{reason} ({held().trouble})" if held().trouble else reason)
    visit = Visit(channel)
    try:
        asked_s = clock()
        presence = await visit.ask(question, Presence, ANSWER_S)
        answered_s = clock()
    except BaseException:
        await visit.close()
        raise
    if isinstance(presence, Unreached):
        await visit.close()
        return presence
    visit.presence = presence
    visit.ahead_s = presence.clock_s - (asked_s + answered_s) / 2
    visit.took_s = answered_s - asked_s
    return visit
