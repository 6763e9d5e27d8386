"""What the shell is to do, in the imperative. Each is performed in order; none of them decides."""

from __future__ import annotations

from typing import Literal

import msgspec

from mingled.core.events import Address
from mingled.core.local import Job, Local
from mingled.core.messages import Advert, Message, NodeCard, Place
from mingled.core.secrets import Realm
from mingled.core.words import JobId, Label, Nonce, ParticipantId

StoryKind = Literal["state", "note"]
"""Of what the core itself tells of a job: a transition, or a sentence about the wait."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all actions."""


class Tell(Action, frozen=True, kw_only=True):
    """One line to a participant's client, if it is still there."""

    participant: ParticipantId
    message: Local


class Answer(Action, frozen=True, kw_only=True):
    """The one answer to a request on its own connection."""

    request: int
    message: Local


class Describe(Action, frozen=True, kw_only=True):
    """The jobs for a Report; the shell adds what it knows of itself and answers `request`."""

    request: int
    jobs: tuple[Job, ...]


class Recount(Action, frozen=True, kw_only=True):
    """Answer with what the shell has kept of this job's story, as far as `uid` may know it."""

    request: int
    job: JobId
    uid: int
    after: int


class Measure(Action, frozen=True, kw_only=True):
    """Answer with the daemon's metrics."""

    request: int


class Seated(Action, frozen=True, kw_only=True):
    """The process behind `request`, which asked to be re-attached, holds this participant's lease,
    and its connection is the participant's from now on."""

    participant: ParticipantId
    request: int


class Rehold(Action, frozen=True, kw_only=True):
    """The process behind `request`, opened for AdoptAsked, is the participant's holder now."""

    participant: ParticipantId
    request: int


class Release(Action, frozen=True, kw_only=True):
    """The participant is over: close its connection and stop watching its holder."""

    participant: ParticipantId


class Advertise(Action, frozen=True, kw_only=True):
    """Publish, or publish anew with other addresses, on every rung."""

    advert: Advert
    peers: tuple[str, ...]  #: of this job (`--peers`), beside those of the daemon: tell them, too


class Withdraw(Action, frozen=True, kw_only=True):
    label: Label
    claim: Nonce


class PublishName(Action, frozen=True, kw_only=True):
    """Answer `name`.local by multicast DNS, unless another machine does. NameRefused may come."""

    participant: ParticipantId
    name: str
    address: str


class WithdrawName(Action, frozen=True, kw_only=True):
    participant: ParticipantId


class Ask(Action, frozen=True, kw_only=True):
    """Ask the network who leads this job. `unicast`: ask for an answer to us alone (QU)."""

    label: Label
    unicast: bool
    peers: tuple[str, ...]  #: of this job (`--peers`), beside those of the daemon: ask them, too


class Doubt(Action, frozen=True, kw_only=True):
    """An advert did not hold: ask for it again, so that caches drop it (RFC 6762, 10.4)."""

    label: Label
    claim: Nonce


class Trust(Action, frozen=True, kw_only=True):
    """From now on let in, over the peer link, whoever shows to be in this realm; and show it to
    those whom links of its label are opened to."""

    realm: Realm
    soon: bool = False  #: there will be links of it: what they need may be made beforehand


class Distrust(Action, frozen=True, kw_only=True):
    """No longer. Links that stand stay."""

    label: Label


class OpenLink(Action, frozen=True, kw_only=True):
    """Race TCP to all addresses, best first. Answered by LinkOpened or LinkFailed."""

    link: int
    label: Label
    addresses: tuple[str, ...]
    port: int
    sources: tuple[Address, ...] = ()  #: to connect from one of these; empty: from anywhere


class SendFrame(Action, frozen=True, kw_only=True):
    link: int
    message: Message


class CloseLink(Action, frozen=True, kw_only=True):
    """What was sent before still goes out."""

    link: int


class OpenProof(Action, frozen=True, kw_only=True):
    """Find a port that is free and listen there with the nonce. Tried in order from `first`,
    around `base`..`base+count-1`, without those in `avoid`. Answered by ProofOpened/ProofFailed."""

    job: JobId
    proof: Nonce
    first: int
    base: int
    count: int
    avoid: frozenset[int]


class CloseProof(Action, frozen=True, kw_only=True):
    """Stop listening, at once and without TIME_WAIT. With `keep`, the port stays reserved against
    other daemons (not against the training process) until FreePort."""

    proof: Nonce
    keep: bool


class FreePort(Action, frozen=True, kw_only=True):
    proof: Nonce


class ProvePath(Action, frozen=True, kw_only=True):
    """Connect there and read `word`; empty: the connection is proof enough. Answered by PathProven
    or PathRefuted."""

    job: JobId
    proof: Nonce
    address: str
    port: int
    word: str
    sources: tuple[Address, ...] = ()  #: as of OpenLink


class Introduce(Action, frozen=True, kw_only=True):
    """Answer a Hail: this daemon's Presence, with what the shell knows of the machine."""

    link: int
    remote: str  #: the asker's address, as seen here
    card: NodeCard
    labels: tuple[Label, ...]  #: of the jobs that were asked for, those here
    jobs: int  #: in all


class TryPlaces(Action, frozen=True, kw_only=True):
    """Connect to each, for doctor. Answered by PlacesTried."""

    link: int
    places: tuple[Place, ...]


class OpenTestPort(Action, frozen=True, kw_only=True):
    """Listen for ten seconds on a free port of rank 0's range and say the node id there, for
    doctor; then send Listening over the link."""

    link: int
    base: int
    count: int
    avoid: frozenset[int]
