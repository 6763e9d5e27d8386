"""What daemons say to each other over the peer link. JSON lines; `type` names the message.

A follower opens the connection and says Join; the leader answers Welcome or Refuse, and from then
on leads: Progress*, Prepare, Commit or Abort. Every message names the claim that it belongs to, so
nothing replayed from another claim is ever taken for this one's.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from mingled.core.codec import Decoder, own_version
from mingled.core.config import Member
from mingled.core.heard import IpText, Name, Sentence
from mingled.core.software import Software, Stated, check_items
from mingled.core.words import (
    NPROC_MAX,
    SIZE_MAX,
    Form,
    JobId,
    Label,
    NodeId,
    Nonce,
    ParticipantId,
    Standing,
)
from mingled.errors import BadInput

FRAME_SIZE_BYTES_MAX = 4 * 1024 * 1024
"""A roster of 10,000 members is about 3 MiB; more than this from a peer is an attack or a bug."""

NAMES_SHOWN_MAX = 32
"""Hosts and ranks listed in progress: people read no more, and 1,000 waiters get each line."""

TEXT_CHARS_MAX = 1_000
"""A sentence from a peer. Longer ones are cut on arrival."""

HOST_CHARS_MAX = 255
"""RFC 1035: no host name is longer."""

ADDRESSES_MAX = 16
"""Of one node or advert: more than any host has for one network, and each is tried."""


LABELS_MAX = 1_024
"""As many as one daemon has jobs."""

PIDS_MAX = 64
"""Processes that are named after a cancel: nobody ends more by hand."""

PLACES_MAX = 256
"""To be tested by one daemon at once, for doctor."""

Fate = Literal["running", "finished", "left", "lost", "unwatched"]
"""What is known of a member of a sealed round. `finished`: its work is done, and it waits for the
others; its end is no loss any more. `unwatched`: its daemon is gone, and its host may well go
on."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """Base of everything on the peer link."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One participant as its own daemon states it."""

    participant: ParticipantId
    form: Form
    size_min: int  #: participants wanted at least; 0 in the plain form
    size_max: int
    rank: int | None  #: the rank asked for, None for automatic
    nproc: int
    user: Name
    pid: int
    any_user: bool = False  #: other users' participants are welcome
    wait: bool = True  #: for the next round, if one runs
    before: int | None = None  #: its rank in the job's last round, if it was in it
    software: Software | None = None  #: that it would run
    require_same: tuple[str, ...] = ()  #: of that, what is to be the same for all

    def __post_init__(self) -> None:
        check_shape(self.form, self.size_min, self.size_max, self.rank, self.nproc)
        check_items(self.require_same)
        if self.before is not None and not 0 <= self.before < SIZE_MAX:
            raise BadInput(f"an earlier rank {self.before} is not between 0 and {SIZE_MAX - 1}")

    @property
    def stated(self) -> Stated:
        return Stated(self.software, self.require_same)


def check_shape(
    form: Form, size_min: int, size_max: int, rank: int | None, nproc: int, job: str = ""
) -> None:
    """Sizes, rank and form of one participant must make sense together; `BadInput` otherwise."""
    of_job = f"job {job}: " if job else ""
    size, ordinal = _NOUNS[form]
    if form is Form.PLAIN:
        if rank is None:
            raise BadInput(f"{of_job}neither a rank nor a size; add --nnodes N or --world-size N")
        if size_min or size_max:
            raise BadInput(f"{of_job}a plain participant has no size")
        if not 0 <= rank < SIZE_MAX:
            raise BadInput(f"{of_job}rank {rank} is not between 0 and {SIZE_MAX - 1}")
    elif not 1 <= size_min <= size_max <= SIZE_MAX:
        said = f"{size_min}" if size_min == size_max else f"{size_min}:{size_max}"
        raise BadInput(f"{of_job}{size} {said} is not between 1 and {SIZE_MAX}")
    elif rank is not None and not 0 <= rank < size_max:
        raise BadInput(
            f"{of_job}{ordinal} {rank} is outside the job: with {size} {size_max} "
            f"ranks go from 0 to {size_max - 1}"
        )
    if not 1 <= nproc <= NPROC_MAX:
        raise BadInput(f"{of_job}{nproc} processes per node is not between 1 and {NPROC_MAX}")


_NOUNS = {
    Form.LAUNCHER: ("--nnodes", "node rank"),
    Form.PROCESS: ("--world-size", "rank"),
    Form.PLAIN: ("", "rank"),
}


class NodeCard(msgspec.Struct, frozen=True, kw_only=True):
    """Who a daemon is."""

    node: NodeId
    host: Name
    port: int  #: its own peer link port
    ring_port: int  #: an ephemeral one, where its predecessor in the ring proves the path
    addresses: tuple[IpText, ...]  #: its candidate addresses, best first

    def __post_init__(self) -> None:
        _check_place(self.port, self.addresses)
        _check_port(self.ring_port)
        if len(self.host) > HOST_CHARS_MAX:
            raise BadInput(f"a host name of {len(self.host)} characters: {self.host[:32]}...")


def _check_port(port: int) -> None:
    if not 0 < port < 65_536:
        raise BadInput(f"port {port} is not between 1 and 65535")


def _check_place(port: int, addresses: tuple[str, ...]) -> None:
    _check_port(port)
    _check_addresses(addresses)


def _check_addresses(addresses: tuple[str, ...]) -> None:
    if len(addresses) > ADDRESSES_MAX:
        raise BadInput(f"{len(addresses)} addresses, at most {ADDRESSES_MAX} allowed")


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed round that still runs, told to whoever comes late."""

    round: int
    since_s: float  #: seconds since it was sealed
    hosts: tuple[Name, ...]  #: at most NAMES_SHOWN_MAX
    size: int


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One participant that is present, for progress lines."""

    host: Name
    rank: int | None
    user: Name = ""
    address: IpText = ""  #: as the leader sees it
    port: int = 0  #: of its daemon's peer link; 0: not known


class Join(Message, tag="join", frozen=True, kw_only=True):
    """A daemon's participants in one job, all of them: the newest Join replaces the one before."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    label: Label
    claim: Nonce
    job: JobId
    node: NodeCard
    entries: tuple[Entry, ...]
    source: IpText = ""  #: from where it connects, as it sees itself
    prepared: Nonce | None = None  #: proof of an attempt acknowledged here, its outcome unknown


class Welcome(Message, tag="welcome", frozen=True, kw_only=True):
    """The leader took the Join. Only this makes a session."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    claim: Nonce
    node: NodeCard
    seen_address: IpText  #: the follower's address as the leader sees it
    met_address: IpText  #: the leader's own end of this connection
    standing: Standing  #: of the leader


class Refuse(Message, tag="refuse", frozen=True, kw_only=True):
    """No. `participants` are refused, or everybody on the node where it is empty."""

    claim: Nonce
    code: Name  #: of an error class in `mingled.errors`, or "stale": no such claim lives here
    sentence: Sentence
    participants: tuple[ParticipantId, ...] = ()


class Progress(Message, tag="progress", frozen=True, kw_only=True):
    """Who is here and what is missing, coalesced."""

    claim: Nonce
    here: int
    size_min: int
    size_max: int
    present: tuple[Seen, ...]  #: at most NAMES_SHOWN_MAX
    missing: tuple[int, ...]  #: ranks that somebody must still bring; empty where any will do
    running: Running | None = None
    note: Sentence = ""


class Reach(Message, tag="reach", frozen=True, kw_only=True):
    """Leader to followers that came by different addresses: which of these of mine do you reach?"""

    claim: Nonce
    addresses: tuple[IpText, ...]

    def __post_init__(self) -> None:
        _check_addresses(self.addresses)


class Reached(Message, tag="reached", frozen=True, kw_only=True):
    """These as well, and from which address of mine each."""

    claim: Nonce
    addresses: tuple[IpText, ...]
    sources: tuple[IpText, ...]
    done: bool  #: no more are being tried

    def __post_init__(self) -> None:
        _check_addresses(self.addresses)
        if len(self.addresses) != len(self.sources):
            raise BadInput(f"{len(self.addresses)} addresses, {len(self.sources)} sources")


class Prepare(Message, tag="prepare", frozen=True, kw_only=True):
    """Phase one: this is the roster. Prove that you reach rank 0 and your successor in the ring of
    ranks, then Ack or Nack."""

    claim: Nonce
    round: int
    proof: Nonce  #: what the listener at master_addr:master_port says
    master_addr: IpText  #: rank 0's, the same for all wherever one is reached by all
    master_port: int
    members: tuple[Member, ...]
    ring_ports: tuple[int, ...]  #: of each member's node, by rank
    store: bool = False  #: rank 0's own store listens there already, and says no nonce
    warning: Sentence = ""  #: for the people, should it come to a round
    differences: tuple[Sentence, ...] = ()  #: between the members' software, for the people as well


class Ack(Message, tag="ack", frozen=True, kw_only=True):
    """The path is proven. `proof` names the attempt: a round that was aborted is tried again under
    the same number, and an answer to the first try must not count for the second."""

    claim: Nonce
    round: int
    proof: Nonce


class Nack(Message, tag="nack", frozen=True, kw_only=True):
    claim: Nonce
    round: int
    proof: Nonce
    reason: Sentence
    master: bool = False  #: it is rank 0's address or port that cannot be reached


class Commit(Message, tag="commit", frozen=True, kw_only=True):
    """Phase two: everybody acknowledged."""

    claim: Nonce
    round: int
    proof: Nonce


class Abort(Message, tag="abort", frozen=True, kw_only=True):
    """This attempt will not be sealed; gathering goes on."""

    claim: Nonce
    round: int
    proof: Nonce
    reason: Sentence


class Admit(Message, tag="admit", frozen=True, kw_only=True):
    """Plain form: rank 0 is released and this is its port; its address is the one you reached."""

    claim: Nonce
    master_port: int
    differences: tuple[
        Sentence, ...
    ] = ()  #: from the software of those who are there, for the people


class Rival(Message, tag="rival", frozen=True, kw_only=True):
    """A follower tells its leader of another leader's advert."""

    claim: Nonce
    advert: Advert


class Contest(Message, tag="contest", frozen=True, kw_only=True):
    """One leader to another: we both claim this job. The answer is the other's Contest."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    label: Label
    claim: Nonce  #: of the sender
    rival: Nonce  #: of the receiver
    job: JobId
    node: NodeCard
    user: Name
    standing: Standing
    sealed: bool  #: a round of this claim runs
    busy: bool = False  #: between Prepare and its outcome: ask again
    unreached: bool = False  #: the sender tried to follow the receiver, and could not connect


class Redirect(Message, tag="redirect", frozen=True, kw_only=True):
    """The leader yields; go to the winner."""

    claim: Nonce
    advert: Advert
    host: Name


class Dismiss(Message, tag="dismiss", frozen=True, kw_only=True):
    """The claim is over; whoever still waits searches again."""

    claim: Nonce
    reason: Sentence


class Ended(Message, tag="ended", frozen=True, kw_only=True):
    """Follower to leader: a released participant of mine is no more, or has finished."""

    claim: Nonce
    round: int
    participant: ParticipantId
    how: Literal["finished", "left", "lost"]
    reason: Sentence
    again: bool = False  #: its process joins anew: the next round is to wait for it
    closes: bool = False  #: the run is over: whoever waits for a next round is to be told so


class Gone(Message, tag="gone", frozen=True, kw_only=True):
    """Leader to everybody: what became of a member of the round; `running`: watched again."""

    claim: Nonce
    round: int
    rank: int
    how: Fate
    reason: Sentence
    ago_s: float = 0.0  #: seconds since its last sign of life
    again: bool = False  #: its process joins anew: the next round is to wait for it


class Waiting(Message, tag="waiting", frozen=True, kw_only=True):
    """Leader to the members of its running round: so many wait for the next one."""

    claim: Nonce
    round: int
    count: int


class Attach(Message, tag="attach", frozen=True, kw_only=True):
    """A daemon of a sealed round to the leader's: after a loss of the link, a restart of either,
    and again when another of its participants is back. These are here and watched. Answered by
    Attached, by Passed, or by Refuse where the round is not known (yet)."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    label: Label
    claim: Nonce
    round: int
    node: NodeCard
    members: tuple[Member, ...]  #: on this node; a leader's daemon started anew may lack them


class Attached(Message, tag="attached", frozen=True, kw_only=True):
    """The round as the leader's daemon knows it."""

    claim: Nonce
    round: int
    node: NodeId  #: of the leader's daemon
    members: tuple[Member, ...]
    fates: tuple[Fate, ...]  #: of each member
    returning: tuple[int, ...] = ()  #: ranks of those that join anew


class Passed(Message, tag="passed", frozen=True, kw_only=True):
    """To Attach: that round is over here, a newer one has been sealed."""

    claim: Nonce
    round: int  #: that was asked for
    newer: int


class NodeCancelled(msgspec.Struct, frozen=True, kw_only=True):
    """What one daemon has done to end a job, or why that is not known."""

    host: Name
    address: IpText
    node: Name = ""  #: of the daemon, where it is known
    ended: int = 0  #: participants
    unheard: tuple[int, ...] = ()  #: of these, processes that nobody told: they go on
    kept: int = 0  #: participants of another user, who may not be ended
    flaw: Sentence = ""  #: nothing is known of it, and this is why

    def __post_init__(self) -> None:
        if len(self.unheard) > PIDS_MAX:
            raise BadInput(f"{len(self.unheard)} processes of one node, at most {PIDS_MAX} allowed")


class Cancel(Message, tag="cancel", frozen=True, kw_only=True):
    """End the job: to the leader's daemon, which tells the others, or from it. Answered by
    Cancelled within `patience_s`; the same `order` again, by an empty one."""

    claim: Nonce
    order: Nonce
    user: Name  #: who asks
    host: Name  #: where
    reason: Sentence = ""
    everyone: bool = False  #: from the leader's daemon: participants of any user
    patience_s: float = 0.0


class Cancelled(Message, tag="cancelled", frozen=True, kw_only=True):
    """To Cancel: what became of it here, and where it was passed on to."""

    claim: Nonce
    order: Nonce
    nodes: tuple[NodeCancelled, ...]

    def __post_init__(self) -> None:
        if len(self.nodes) > SIZE_MAX:
            raise BadInput(f"{len(self.nodes)} nodes of one job, at most {SIZE_MAX} allowed")


class Ping(Message, tag="ping", frozen=True, kw_only=True):
    """Either side, to hear that the other lives; answered by Pong. Also the first frame of a fresh
    connection, made to find out whether a silent link's other side is still there."""

    claim: Nonce


class Pong(Message, tag="pong", frozen=True, kw_only=True):
    claim: Nonce
    node: NodeId  #: another one than before: that daemon was started anew
    addresses: tuple[IpText, ...] = ()  #: its own, by which it may be looked for

    def __post_init__(self) -> None:
        _check_addresses(self.addresses)


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """One interface, for `mingle nodes` and doctor."""

    name: Name
    kind: Name  #: ethernet, wifi, infiniband, ...
    speed_mbps: int | None
    mtu: int
    addresses: tuple[Name, ...]  #: with prefix length, as in 10.0.0.5/24


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where to connect to, and what is to be read there; empty: the connection is enough."""

    address: IpText
    port: int
    word: Name = ""

    def __post_init__(self) -> None:
        _check_port(self.port)


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one Place; `reason` is empty where it was reached."""

    address: IpText
    port: int
    reason: Sentence
    took_s: float


class Hail(Message, tag="hail", frozen=True, kw_only=True):
    """Who are you, and which of these jobs are on your node? The first frame of a link of its own;
    answered by Presence. Test and Listen may follow over the same link."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    labels: tuple[Label, ...] = ()

    def __post_init__(self) -> None:
        if len(self.labels) > LABELS_MAX:
            raise BadInput(f"{len(self.labels)} jobs asked for, at most {LABELS_MAX} allowed")


class Presence(Message, tag="presence", frozen=True, kw_only=True):
    """A daemon and its machine. `seen_address`: the asker's, as seen there."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    node: NodeCard
    release: Name
    seen_address: IpText
    clock_s: float  #: Unix time there
    machine: Name  #: a hash of its machine-id; empty: it has none
    nics: tuple[Nic, ...]
    gpus: tuple[Name, ...]  #: a name each
    labels: tuple[Label, ...]  #: of those asked for, the ones that are there
    jobs: int  #: in all; their names are nobody's business who does not know them
    discovery: tuple[Sentence, ...]  #: a line for each rung, as in a report
    up_s: float


class Test(Message, tag="test", frozen=True, kw_only=True):
    """Connect to these and tell: to the asker itself, or to nodes of a job that both know."""

    label: Label | None
    places: tuple[Place, ...]

    def __post_init__(self) -> None:
        if len(self.places) > PLACES_MAX:
            raise BadInput(f"{len(self.places)} places to test, at most {PLACES_MAX} allowed")


class Tested(Message, tag="tested", frozen=True, kw_only=True):
    results: tuple[Tried, ...]


class Listen(Message, tag="listen", frozen=True, kw_only=True):
    """Open a port as rank 0 would, for ten seconds. Answered by Listening."""


class Listening(Message, tag="listening", frozen=True, kw_only=True):
    port: int  #: 0: none is free


class Advert(msgspec.Struct, frozen=True, kw_only=True):
    """What a leader publishes over discovery. A hint: every field may be stale or forged."""

    version: int
    key_id: Name
    label: Label
    claim: Nonce
    port: int
    addresses: tuple[IpText, ...]

    def __post_init__(self) -> None:
        _check_place(self.port, self.addresses)


type_of_peer_messages = (
    Join
    | Welcome
    | Refuse
    | Progress
    | Reach
    | Reached
    | Prepare
    | Ack
    | Nack
    | Commit
    | Abort
    | Admit
    | Rival
    | Contest
    | Redirect
    | Dismiss
    | Ended
    | Gone
    | Waiting
    | Attach
    | Attached
    | Passed
    | Cancel
    | Cancelled
    | Ping
    | Pong
    | Hail
    | Presence
    | Test
    | Tested
    | Listen
    | Listening
)

peer_decoder: Decoder[Message] = Decoder(type_of_peer_messages, "peer frame")
"""Bytes of one line from a peer to one message."""
