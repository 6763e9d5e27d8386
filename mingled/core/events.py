"""What has happened, in the past tense. The shell makes them; `Rendezvous.handle` takes them.

A link is a number: odd ones the core opened, even ones the shell accepted.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from mingled.core.config import Config
from mingled.core.local import Join
from mingled.core.messages import Advert, Message, Tried
from mingled.core.words import JobId, Label, Nonce, ParticipantId

Rung = Literal["mdns", "broadcast", "peers", "told"]
"""Where an advert comes from: a rung of discovery, or `told` by a daemon over the peer link."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all events."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """One address of this node and the interface that has it."""

    address: str
    interface: str
    prefix: int = 0  #: length of its subnet's prefix, in bits; 0 where it is not known
    virtual: bool = False  #: a container bridge or the like: other machines may have the same


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """The process that a lease hangs on."""

    pid: int
    identity: str  #: pid and start time, or whatever else tells two lives of one pid apart
    uid: int
    user: str
    watched: bool  #: a pidfd is held, so that its end is seen; else its connection is the lease
    ancestors: tuple[str, ...] = ()  #: identities of the processes above it, nearest first


# ---------------------------------------------------------------- from the control socket


class JoinAsked(Event, frozen=True, kw_only=True):
    participant: ParticipantId
    join: Join
    holder: Holder


class ClientVanished(Event, frozen=True, kw_only=True):
    """The connection of a participant ended."""

    participant: ParticipantId


class HolderEnded(Event, frozen=True, kw_only=True):
    """The process that held the lease is no more. `status` as from waitpid, None if unknown."""

    participant: ParticipantId
    status: int | None


class ReattachAsked(Event, frozen=True, kw_only=True):
    """A released participant of a daemon that is gone."""

    request: int
    participant: ParticipantId
    join: Join
    config: Config
    holder: Holder


class StoreOpened(Event, frozen=True, kw_only=True):
    """Rank 0's client has opened its store."""

    participant: ParticipantId
    proof: Nonce
    port: int


class StoreFailed(Event, frozen=True, kw_only=True):
    participant: ParticipantId
    proof: Nonce
    reason: str


class ClientAlive(Event, frozen=True, kw_only=True):
    """It said so."""

    participant: ParticipantId


class ClientFinished(Event, frozen=True, kw_only=True):
    """Its work is done; it waits for the others."""

    participant: ParticipantId


class LeaveAsked(Event, frozen=True, kw_only=True):
    request: int  #: of the client's connection, for the answer
    job: JobId
    uid: int
    participant: ParticipantId | None
    lost: bool
    reason: str
    closes: bool = False


class CancelAsked(Event, frozen=True, kw_only=True):
    request: int
    job: JobId
    uid: int
    user: str
    reason: str


class AdoptAsked(Event, frozen=True, kw_only=True):
    request: int
    token: str
    uid: int  #: of the asking client
    holder: Holder | None  #: None: there is no such process, or its end cannot be seen
    pid: int


class StatusAsked(Event, frozen=True, kw_only=True):
    request: int
    uid: int


class LogsAsked(Event, frozen=True, kw_only=True):
    request: int
    job: JobId
    uid: int
    after: int  #: the number of the last line that is known


class MetricsAsked(Event, frozen=True, kw_only=True):
    request: int


# ---------------------------------------------------------------- from discovery


class AdvertHeard(Event, frozen=True, kw_only=True):
    advert: Advert
    rung: Rung


class AdvertGone(Event, frozen=True, kw_only=True):
    """A goodbye, or the record's time is over, on this rung."""

    label: Label
    claim: Nonce
    rung: Rung


class DiscoveryNoted(Event, frozen=True, kw_only=True):
    """A rung has something to say to those who wait: a peer's name does not resolve, say."""

    label: Label | None  #: of the job it concerns; None: all
    sentence: str


class NameRefused(Event, frozen=True, kw_only=True):
    """A name of PublishName is not answered: another machine has it, or there is no mDNS."""

    participant: ParticipantId
    name: str
    reason: str


class AddressesChanged(Event, frozen=True, kw_only=True):
    """This node's candidate addresses, best first."""

    addresses: tuple[Address, ...]
    own: frozenset[str] = frozenset()  #: every address of this machine, the unusable ones too


# ---------------------------------------------------------------- from the peer link


class LinkOpened(Event, frozen=True, kw_only=True):
    """A connection that the core asked for stands."""

    link: int
    local: Address
    remote_address: str


class LinkFailed(Event, frozen=True, kw_only=True):
    """... or does not: `reason` names each address tried and the system's reason. `answered`: the
    host is there, it refused. `shed`: it took the connection and ended it without a word, so that
    its daemon may well be there, too."""

    link: int
    reason: str
    answered: bool
    shed: bool = False


class LinkAccepted(Event, frozen=True, kw_only=True):
    """Somebody who has shown to be in the realm of `label`."""

    link: int
    label: Label
    local: Address
    remote_address: str


class FrameReceived(Event, frozen=True, kw_only=True):
    link: int
    message: Message


class LinkClosed(Event, frozen=True, kw_only=True):
    """By the other side, by the network, or by us for what it sent; not after CloseLink.
    `answered`: the other host closed or reset it, so that host is there."""

    link: int
    reason: str
    answered: bool


class PlacesTried(Event, frozen=True, kw_only=True):
    """What came of TryPlaces."""

    link: int
    results: tuple[Tried, ...]


# ---------------------------------------------------------------- from the proof


class ProofOpened(Event, frozen=True, kw_only=True):
    """The port is ours, and its listener says the nonce to whoever connects."""

    job: JobId
    proof: Nonce
    port: int


class ProofFailed(Event, frozen=True, kw_only=True):
    """No port could be had."""

    job: JobId
    proof: Nonce
    reason: str


class PathProven(Event, frozen=True, kw_only=True):
    """This node reached that place, from `local`, and read there what it was to say."""

    job: JobId
    proof: Nonce
    address: str
    port: int
    local: Address


class PathRefuted(Event, frozen=True, kw_only=True):
    """`reason`: the operating system's, or what was found there instead; it names no address."""

    job: JobId
    proof: Nonce
    address: str
    port: int
    reason: str


class KeysChanged(Event, frozen=True, kw_only=True):
    """The cluster keys, the one to present first; none: the job ID is the only secret. Also said
    once at the start."""

    keys: tuple[bytes, ...]


class Ticked(Event, frozen=True, kw_only=True):
    """`deadline()` has come."""


class Stopped(Event, frozen=True, kw_only=True):
    """The daemon is told to end: withdraw, tell everybody, answer whoever waits."""

    reason: str
