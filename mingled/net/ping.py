"""Echo requests: is that address alive, how far away is it, and who says that it is not?

As root (CAP_NET_RAW) through raw sockets, else through the kernel's ping sockets, which
`net.ipv4.ping_group_range` opens to users. Both tell who answered "unreachable": when nobody
answers ARP, the kernel itself does, with one of this machine's addresses as the sender.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Literal

import msgspec

from mingled.net import quick
from mingled.net.echo import Heard, Line, PingForbidden

Activity = Literal["active", "inactive", "unknown"]

TIMEOUT_S = 4.0
"""For an answer. Nobody on the link: Linux asks three times, a second apart, then says so."""

INTERVAL_S = 1.0

PROBES_AT_ONCE_MAX = 32
"""Threads of `probe`: a /24 that is silent takes 40 s, and no switch minds so few packets."""

PROBES_EACH = 3
"""For each neighbour, until the first answer: one may be lost."""

__all__ = ["Activity", "Outcome", "PingForbidden", "Reply", "ping", "probe"]


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one packet."""

    sequence: int  #: from 1
    what: Literal["answered", "lost", "unreachable", "refused", "error"]
    rtt_ms: float | None = None
    source: str = ""  #: who answered, or who says that it is unreachable
    said: str = ""  #: in words, where it is not an answer


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Of all packets to one address. Round trips are None where none was answered."""

    address: str
    activity: Activity
    sent: int
    received: int
    lost_percent: float
    rtt_min_ms: float | None
    rtt_avg_ms: float | None
    rtt_max_ms: float | None
    why: str  #: empty where it answered


def ping(
    address: str,
    *,
    count: int = 4,
    interval_s: float = INTERVAL_S,
    timeout_s: float = TIMEOUT_S,
    told: Callable[[Reply], None] = lambda reply: None,
    until_answered: bool = False,
) -> Outcome:
    """Send `count` echo requests, one each `interval_s`, and wait for each answer for `timeout_s`.
    `address` may have a scope. `told` hears of each packet as soon as it is decided; Ctrl-C ends it
    early, with what is known by then. Blocks.

    Raises:
        PingForbidden: the kernel lets this user send none.
    """
    replies: list[Reply] = []
    waiting: dict[int, float] = {}  # when each was sent, by sequence

    def decided(reply: Reply) -> None:
        waiting.pop(reply.sequence, None)
        replies.append(reply)
        told(reply)

    with Line(address) as line:
        try:
            sent, next_at = 0, time.monotonic()
            while sent < count or waiting:
                now = time.monotonic()
                if sent < count and now >= next_at:
                    sent, next_at = sent + 1, next_at + interval_s
                    waiting[sent] = time.monotonic()
                    failed = line.send(sent)
                    if failed is not None:
                        decided(_reply(failed, None))
                    continue
                for sequence in [s for s, at in waiting.items() if now >= at + timeout_s]:
                    said = f"no answer within {timeout_s:g} s"
                    decided(Reply(sequence=sequence, what="lost", said=said))
                until = [at + timeout_s for at in waiting.values()]
                until += [next_at] if sent < count else []
                if not until:
                    break
                for heard in line.receive(max(0.0, min(until) - now)):
                    at = waiting.get(heard.sequence)
                    if at is not None:  # else it is a duplicate, or too late
                        decided(_reply(heard, (time.monotonic() - at) * 1000))
                if until_answered and any(r.what == "answered" for r in replies):
                    break
        except KeyboardInterrupt:
            pass
    return _outcome(address, replies)


def probe(addresses: Sequence[str]) -> dict[str, Outcome]:
    """Of each address whether it is alive; some at once, three tries each. Blocks; Ctrl-C ends it
    at once, since its threads hold up nothing, not even the interpreter's end.

    Raises:
        PingForbidden: the kernel lets this user send none.
    """
    unique = tuple(dict.fromkeys(addresses))
    waiting = deque(unique)
    done: SimpleQueue[tuple[str, Outcome | BaseException]] = SimpleQueue()

    def work() -> None:
        while True:
            try:
                address = waiting.popleft()
            except IndexError:
                return
            try:
                done.put((address, ping(address, count=PROBES_EACH, until_answered=True)))
            except BaseException as error:  # for whoever asked
                done.put((address, error))

    for _ in range(min(PROBES_AT_ONCE_MAX, len(unique))):
        threading.Thread(target=work, name="ping", daemon=True).start()
    found: dict[str, Outcome] = {}
    try:
        for _ in unique:
            address, outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            found[address] = outcome
    finally:
        waiting.clear()
    return {address: found[address] for address in unique}


def _reply(heard: Heard, rtt_ms: float | None) -> Reply:
    """An answer, or the sentence about who says what instead."""
    if heard.what == "answered":
        return Reply(sequence=heard.sequence, what="answered", rtt_ms=rtt_ms, source=heard.source)
    said = heard.said
    if heard.what == "unreachable":
        said = f"{said}, says {_who(heard.source)}"
    return Reply(sequence=heard.sequence, what=heard.what, source=heard.source, said=said)


def _who(source: str) -> str:
    if not source:
        return "this machine itself"
    own = {a.address for found in quick.addresses().values() for a in found}
    if source.partition("%")[0] in own:
        return f"this machine itself ({source}): nobody there answers"
    return source


def _outcome(address: str, replies: Sequence[Reply]) -> Outcome:
    trips = [reply.rtt_ms for reply in replies if reply.rtt_ms is not None]
    words = {reply.what: reply.said for reply in replies}
    activity: Activity = "inactive"
    why = ""
    if trips:
        activity = "active"
    elif "refused" in words:  # it does not want to be pinged, but it is there
        activity, why = "active", words["refused"]
    elif "unreachable" in words:
        why = words["unreachable"]
    elif "lost" in words:
        why = words["lost"]
    else:
        activity, why = "unknown", words.get("error", "interrupted before an answer could come")
    sent = len(replies)
    return Outcome(
        address=address,
        activity=activity,
        sent=sent,
        received=len(trips),
        lost_percent=round(100 * (sent - len(trips)) / sent, 1) if sent else 0.0,
        rtt_min_ms=round(min(trips), 3) if trips else None,
        rtt_avg_ms=round(sum(trips) / len(trips), 3) if trips else None,
        rtt_max_ms=round(max(trips), 3) if trips else None,
        why=why,
    )
