"""Targets: lines on the Unix socket and frames on the peer link, up to the core and back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from typing import cast

from mingled.core import actions, codec, events, local, messages
from mingled.core.events import Holder
from mingled.core.rendezvous import Rendezvous
from mingled.core.secrets import label_of, node_realms_of
from mingled.core.words import Form, Label, NodeId, ParticipantId
from mingled.edges.control import Control, _Client
from mingled.errors import BadInput, MingleError
from tests.core.samples import ADVERT, JOB, PEER, REPLIES, REQUESTS

NODE = NodeId("0" * 31 + "1")
WHO = ParticipantId("0" * 31 + "4")
ADDRESS = events.Address(address="10.0.0.1", interface="eth0", prefix=24)
HOLDER = Holder(pid=0, identity="11", uid=1_000, user="ann", watched=False)

LINES_MAX = 16
"""Of one input."""


def _core() -> Rendezvous:
    core = Rendezvous(
        seed=bytes(32),
        node=NODE,
        host="gpu1",
        link_port=29_490,
        ring_port=41_873,
        addresses=(ADDRESS,),
        own=frozenset({"10.0.0.1"}),
    )
    core.handle(events.KeysChanged(keys=()), 100.0)
    return core


def _lines(data: bytes) -> list[bytes]:
    return data.split(b"\n")[:LINES_MAX]


# ---------------------------------------------------------------- the Unix socket


class _Transport:
    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


class _Writer:
    """What a client's connection looks like to `Control`; whatever is written can be read."""

    transport = _Transport()

    def write(self, line: bytes) -> None:
        local.reply_decoder.decode(line)

    def close(self) -> None: ...


class _Lone(_Client):
    """Somebody who has connected, without a connection."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs, ours:
            super().__init__(ours, HOLDER.uid)
        if self.pidfd is not None:
            os.close(self.pidfd)
        self.holder, self.pidfd = HOLDER, None
        self.writer = cast(asyncio.StreamWriter, _Writer())


class _Daemon:
    """The control socket's half of one, without a socket."""

    def __init__(self) -> None:
        self.core = _core()
        self.control = Control(self._take, lambda participant, pid, pidfd: None, netns=None)
        self.now = 100.0

    def _take(self, event: events.Event) -> None:
        for action in self.core.handle(event, self.now):
            match action:
                case actions.Tell():
                    self.control.tell(action.participant, action.message)
                case actions.Answer():
                    self.control.answer(action.request, action.message)
                case actions.Describe():
                    done = local.Done(count=len(action.jobs))
                    self.control.answer(action.request, done)
                    for job in action.jobs:
                        codec.encode(job)
                case actions.Seated():
                    self.control.seat(action.participant, action.request)
                case actions.Release():
                    self.control.release(action.participant)

    def tick(self) -> None:
        deadline = self.core.deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self._take(events.Ticked())


def socket_line(data: bytes) -> None:
    """Lines of one client. A refusal is an answer; nothing else may come out."""
    daemon = _Daemon()
    client = _Lone()
    for line in _lines(data):
        with contextlib.suppress(BadInput):
            local.reply_decoder.decode(line)
        try:
            request = local.request_decoder.decode(line)
            assert local.request_decoder.decode(codec.encode(request)) == request
            daemon.control._request(request, client)
        except MingleError as error:
            client.send(local.Failed(code=error.code, sentence=str(error)))
        daemon.tick()


# ---------------------------------------------------------------- the peer link


def peer_frame(data: bytes) -> None:
    """The first byte is where the frames arrive: at a leader, at a follower that asked for it, or
    where there is no such job."""
    where, rest = data[:1], data[1:]
    core, now = _core(), 100.0
    link = {b"L": _leader, b"F": _follower}.get(where, _stranger)(core)
    for line in _lines(rest):
        try:
            message = messages.peer_decoder.decode(line)
        except BadInput:
            break  # the link is hung up on
        again = messages.peer_decoder.decode(codec.encode(message))
        assert again == message
        now += 0.01
        frame = events.FrameReceived(link=link, message=message)
        if any(_ends(action, link) for action in core.handle(frame, now)):
            break
        deadline = core.deadline()
        if deadline is not None:
            now = max(now, deadline)
            core.handle(events.Ticked(), now)


def _ends(action: actions.Action, link: int) -> bool:
    if isinstance(action, actions.SendFrame):
        messages.peer_decoder.decode(codec.encode(action.message))
    elif isinstance(action, actions.Tell | actions.Answer):
        local.reply_decoder.decode(codec.encode(action.message))
    return isinstance(action, actions.CloseLink) and action.link == link


def _accept(core: Rendezvous, label: Label) -> int:
    """A link of somebody who has shown to be in that realm."""
    accepted = events.LinkAccepted(link=2, label=label, local=ADDRESS, remote_address="10.0.0.2")
    core.handle(accepted, 100.0)
    return 2


def _join(core: Rendezvous, rank: int | None) -> list[actions.Action]:
    join = local.Join(job=JOB, form=Form.LAUNCHER, size_min=2, size_max=4, rank=rank)
    return core.handle(events.JoinAsked(participant=WHO, join=join, holder=HOLDER), 100.0)


def _stranger(core: Rendezvous) -> int:
    """Another daemon that asks who is there."""
    (realm,) = node_realms_of()
    return _accept(core, realm.label)


def _leader(core: Rendezvous) -> int:
    _join(core, 0)
    return _accept(core, core.jobs[JOB].label)


def _follower(core: Rendezvous) -> int:
    _join(core, 1)
    label = core.jobs[JOB].label
    advert = messages.Advert(
        version=1,
        key_id="none",
        label=label,
        claim=ADVERT.claim,
        port=29_490,
        addresses=("10.0.0.2",),
    )
    heard = core.handle(events.AdvertHeard(advert=advert, rung="mdns"), 100.0)
    link = next(a.link for a in heard if isinstance(a, actions.OpenLink))
    core.handle(events.LinkOpened(link=link, local=ADDRESS, remote_address="10.0.0.2"), 100.0)
    return link


def claim_led() -> str:
    """The claim that `_leader` makes, so that a seed can name it."""
    core = _core()
    _leader(core)
    claim = core.jobs[JOB].claim
    assert claim is not None
    return str(claim.nonce)


# ---------------------------------------------------------------- samples


def socket_seeds() -> list[bytes]:
    alone = [codec.encode(message) for message in (*REQUESTS, *REPLIES)]
    return [*alone, b"".join(codec.encode(m) for m in REQUESTS[:1] + REQUESTS[3:])]


def peer_seeds() -> list[bytes]:
    """Each message alone at each place, and all in a row, true to the claim that is led there."""
    label = str(label_of(JOB))
    claim = claim_led()
    seeds = []
    for place, true in ((b"L", claim), (b"F", str(ADVERT.claim)), (b"S", str(ADVERT.claim))):
        lines = [_true(codec.encode(m), label, true) for m in PEER]
        seeds += [place + line for line in lines]
        seeds.append(place + b"".join(_shuffled(lines)))
    return seeds


def _true(line: bytes, label: str, claim: str) -> bytes:
    return line.replace(str(ADVERT.label).encode(), label.encode()).replace(
        str(ADVERT.claim).encode(), claim.encode()
    )


def _shuffled(lines: list[bytes]) -> list[bytes]:
    """Join or Welcome first, or nothing that follows would be looked at."""
    first = [line for line in lines if b'"join"' in line or b'"welcome"' in line]
    rest = [line for line in lines if line not in first]
    random.Random(1).shuffle(rest)
    return first + rest
