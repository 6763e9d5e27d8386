"""What a client and its daemon say over the Unix socket. JSON lines; `type` names the message.

Try it by hand: `echo '{"type":"status"}' | socat - UNIX:/run/mingled/control.sock`.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from mingled.core.codec import Decoder, own_version
from mingled.core.config import Config
from mingled.core.heard import Sentence
from mingled.core.messages import Fate, NodeCancelled, Running, Seen, check_shape
from mingled.core.peers import check_peers, check_subnets
from mingled.core.software import Software, check_items
from mingled.core.words import HOST_LABEL, Form, JobId, Nonce, ParticipantId, host_label
from mingled.errors import BadInput

LINE_SIZE_BYTES_MAX = 64 * 1024
"""A line from a client. A join is under 1 KiB."""

STOP_GRACE_S = 35.0
"""torchrun itself gives its workers 30 s between SIGTERM and SIGKILL."""

HEARTBEAT_MIN_S = 0.1
"""Of a client that says so: more lines than ten a second tell nothing more."""

REASON_CHARS_MAX = 200
"""Why a job is cancelled: a sentence, told on every node."""

PAUSE_MAX_S = 86_400
"""Of a last call or a grace: a day."""

_SECRET = re.compile(r"[0-9a-f]{64}")
"""As `core.secrets.secret_of` makes them; here, since a client need not load what hashes."""

OTHER_NAMESPACE = "other-namespace"
"""Code of the refusal to a client whose network namespace is not the daemon's: it takes a private
daemon instead."""


class Local(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """Base of everything on the Unix socket."""


# ---------------------------------------------------------------- client to daemon


class Join(Local, tag="join", frozen=True, kw_only=True):
    """Take part in a job. Answered by any number of Progress and Notice, then Ready or Failed; the
    connection may stay open after Ready, and then carries what happens to the round."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    job: JobId
    form: Form
    size_min: int = 0
    size_max: int = 0
    rank: int | None = None
    nproc: int = 1
    timeout_s: float | None = None
    netns: int | None = None  #: inode of the client's network namespace, /proc/self/ns/net
    adopt: bool = False  #: the lease will be taken over by another process, with Adopt
    last_call_s: float | None = None  #: with MIN:MAX: seal when nobody new came for this long
    wait: bool = True  #: for the next round, if one runs; else refuse
    any_user: bool = False  #: other users' participants are welcome
    stop_grace_s: float = STOP_GRACE_S  #: what CMD may need to end before it joins again
    lost: Sentence = ""  #: this replaces a join of the same process whose run failed: how
    store: bool = False  #: as rank 0, this client opens the store itself: it is sent OpenStore
    #: ... and has it listen on the address that OpenStore names, on no other: a round whose members
    #: would have to come by several is not sealed
    store_interface_only: bool = False
    peers: tuple[str, ...] = ()  #: hosts to ask for the leader, where multicast does not reach
    interfaces: tuple[str, ...] = ()  #: names or addresses of this node to use alone
    subnets: tuple[str, ...] = ()  #: ... or what lies in these, in CIDR notation
    #: once released the client says Alive this often: a process that is stopped is lost, too
    heartbeat_s: float | None = None
    software: Software | None = None  #: that it would run
    require_same: tuple[str, ...] = ()  #: of that, what is to be the same for all
    secret: str = ""  #: of the job, beside its ID (`core.secrets.secret_of`); empty: none
    key_id: str = ""  #: of the key that the daemon must present; empty: whichever it has
    named: bool = False  #: answer JOB-RANK.local by mDNS while it holds its rank
    listens: bool = False  #: what runs in it ends when a Failed with `stop` comes

    def __post_init__(self) -> None:
        check_shape(self.form, self.size_min, self.size_max, self.rank, self.nproc, self.job)
        check_peers(self.peers, f"job {self.job}: ")
        check_subnets(self.subnets, f"job {self.job}: ")
        check_items(self.require_same)
        if self.secret and not _SECRET.fullmatch(self.secret):
            raise BadInput(f"job {self.job}: its secret is not 64 hexadecimal digits")
        if self.store_interface_only and not self.store:
            raise BadInput(
                f"job {self.job}: store_interface_only is for who opens rank 0's store itself"
            )
        if self.named and not HOST_LABEL.fullmatch(host_label(self.job, self.rank_max)):
            raise BadInput(
                f"job {self.job}: {host_label(self.job, self.rank_max)} is no host name; choose a "
                "job ID of letters, digits and inner hyphens, and not so long a one"
            )
        for name, value in (("last call", self.last_call_s), ("stop grace", self.stop_grace_s)):
            if value is not None and not 0 <= value <= PAUSE_MAX_S:
                raise BadInput(
                    f"job {self.job}: a {name} of {value:g} s is not between 0 and {PAUSE_MAX_S} s"
                )
        beat_s = self.heartbeat_s
        if beat_s is not None and not HEARTBEAT_MIN_S <= beat_s <= PAUSE_MAX_S:
            raise BadInput(
                f"job {self.job}: a heartbeat every {beat_s:g} s is not between "
                f"{HEARTBEAT_MIN_S:g} and {PAUSE_MAX_S} s"
            )
        if beat_s is not None and self.adopt:
            raise BadInput(f"job {self.job}: whoever adopts a lease says nothing: no heartbeat_s")

    @property
    def compares(self) -> bool:
        """There is somebody to compare software with, or it is to be known anyway."""
        return self.size_max != 1 or bool(self.require_same)

    @property
    def rank_max(self) -> int:
        """The highest that it can get."""
        return max(self.size_max - 1, self.rank or 0)

    @property
    def wish(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The interfaces and subnets to use alone."""
        return tuple(sorted(set(self.interfaces))), tuple(sorted(set(self.subnets)))


class Reattach(Local, tag="reattach", frozen=True, kw_only=True):
    """A released participant whose daemon is gone, to the daemon that runs now: watch me again.
    Answered by Done or Failed; then the connection carries Gone as it did after Ready. Members but
    this one and rank 0 may be left out where the line would be too long."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    join: Join
    participant: ParticipantId
    config: Config

    def __post_init__(self) -> None:
        config = self.config
        if config.job != self.join.job or config.form is not self.join.form:
            raise BadInput(f"job {self.join.job}: the config to re-attach is another job's")
        if config.leader_link is not None and not 0 < config.leader_link[1] < 65_536:
            raise BadInput(f"job {self.join.job}: no port {config.leader_link[1]}")


class StoreOpened(Local, tag="store-opened", frozen=True, kw_only=True):
    """To OpenStore: it listens on this port, on all addresses or on the one that was named."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    proof: Nonce
    port: int

    def __post_init__(self) -> None:
        if not 0 < self.port < 65_536:
            raise BadInput(f"port {self.port} of the store is not between 1 and 65535")


class StoreFailed(Local, tag="store-failed", frozen=True, kw_only=True):
    """To OpenStore: it could not be opened."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    proof: Nonce
    reason: Sentence


class Alive(Local, tag="alive", frozen=True, kw_only=True):
    """A released participant's client still runs (see `Join.heartbeat_s`). Not answered."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)


class Finished(Local, tag="finished", frozen=True, kw_only=True):
    """A released participant's work is done; it stays until the others have finished. Not
    answered; said again to a daemon that takes the participant back."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)


class Leave(Local, tag="leave", frozen=True, kw_only=True):
    """End leases of this user: one participant's, or all of the job's on this node. Answered by
    Done."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    job: JobId
    participant: ParticipantId | None = None
    lost: bool = False  #: it failed: the others are told of a loss
    reason: Sentence = ""
    closes: bool = False  #: the run is over: whoever waits for a next round is told so


class Cancel(Local, tag="cancel", frozen=True, kw_only=True):
    """End the job on all its nodes. Answered by Cancelled, after some seconds where a node does not
    answer, or by Failed."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    job: JobId
    reason: str = ""

    def __post_init__(self) -> None:
        if len(self.reason) > REASON_CHARS_MAX:
            raise BadInput(
                f"job {self.job}: a reason of {len(self.reason)} characters, at most "
                f"{REASON_CHARS_MAX} allowed"
            )


class Adopt(Local, tag="adopt", frozen=True, kw_only=True):
    """From now on the lease that goes with `token` is process `pid`'s: Done or Failed."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    token: str
    pid: int
    pidns: int | None = None  #: inode of the client's pid namespace, /proc/self/ns/pid


class Logs(Local, tag="logs", frozen=True, kw_only=True):
    """What has happened to a job of this user here. Answered by Story."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    job: JobId
    after: int = 0  #: only lines with a greater number


class Metrics(Local, tag="metrics", frozen=True, kw_only=True):
    """Answered by Measured. Any user may ask: no job is named in it."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)


class Status(Local, tag="status", frozen=True, kw_only=True):
    """Answered by Report."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)


# ---------------------------------------------------------------- daemon to client


class Progress(Local, tag="progress", frozen=True, kw_only=True):
    """Where the wait stands. Sent at each change, coalesced."""

    job: str
    state: str  #: of `mingled.core.table.State`
    leader: str | None  #: its host name
    here: int
    size_min: int
    size_max: int
    present: tuple[Seen, ...]
    missing: tuple[int, ...]
    running: Running | None = None
    note: str = ""


class Notice(Local, tag="notice", frozen=True, kw_only=True):
    """A sentence for the user that changes nothing."""

    kind: Literal["hint", "warning"]
    sentence: str


class OpenStore(Local, tag="open-store", frozen=True, kw_only=True):
    """You are rank 0 of a round about to be sealed: open a new store and say its port."""

    proof: Nonce  #: names the attempt
    address: str  #: at which the others will reach it, with its scope where it has one


class Ready(Local, tag="ready", frozen=True, kw_only=True):
    """Released: this is the config."""

    participant: ParticipantId
    config: Config
    token: str | None = None  #: for Adopt
    found_s: float = 0.0  #: from the join to the first other node that was in touch
    waited_s: float = 0.0  #: from the join to this release


class Failed(Local, tag="failed", frozen=True, kw_only=True):
    """The request ended without success, or the lease did. `code` names a class of
    `mingled.errors`."""

    code: str
    sentence: str
    stop: bool = False  #: the job was cancelled: what runs in it is to end, too


class Gone(Local, tag="gone", frozen=True, kw_only=True):
    """What became of a member of my round; `running`: it is watched again. Of myself, `lost`: the
    others go on without me, and I may join again."""

    job: str
    round: int
    rank: int
    host: str
    address: str
    how: Fate
    reason: str
    ago_s: float = 0.0  #: seconds since its last sign of life
    again: bool = False  #: it has joined anew, and waits for the next round


class Waiting(Local, tag="waiting", frozen=True, kw_only=True):
    """So many participants wait for the round after mine, as rank 0's daemon has it."""

    job: str
    round: int  #: mine
    count: int


class Done(Local, tag="done", frozen=True, kw_only=True):
    count: int


class Cancelled(Local, tag="cancelled", frozen=True, kw_only=True):
    """What became of Cancel, by node. Without any: nobody takes part in the job here, and
    `elsewhere` is where it is led, as far as was heard."""

    job: str
    nodes: tuple[NodeCancelled, ...]
    elsewhere: tuple[str, ...] = ()


class StoryLine(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to a job on this node."""

    number: int  #: counted through this daemon's life, from 1
    at_s: float  #: Unix time
    kind: Literal["state", "note", "came", "ended", "ready", "hint", "warning", "failed", "member"]
    text: Sentence


class Story(Local, tag="story", frozen=True, kw_only=True):
    """The oldest line first; none: this user has had no such job here, or it is long over."""

    job: str
    lines: tuple[StoryLine, ...]


class Measured(Local, tag="measured", frozen=True, kw_only=True):
    """In the text format of Prometheus (0.0.4)."""

    text: str


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """One local participant in a report."""

    participant: str
    pid: int
    user: str
    form: Form
    rank: int | None
    state: Literal["waiting", "released"]
    for_s: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed round in a report."""

    round: int
    since_s: float
    master_addr: str
    master_port: int
    members: tuple[RoundMember, ...]


class RoundMember(msgspec.Struct, frozen=True, kw_only=True):
    rank: int
    host: str
    address: str
    nproc: int
    state: Fate


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job in a report."""

    job: str
    label: str  #: what stands for it on the network
    state: str
    leader: str | None
    leader_address: str | None
    here: int
    size_min: int
    size_max: int
    seats: tuple[Seat, ...]
    rounds: tuple[Round, ...]
    nodes: tuple[Seen, ...]  #: that take part or wait, this one included, as far as known here
    missing: tuple[int, ...] = ()  #: ranks that somebody must still bring; empty: any will do
    note: str
    story: tuple[str, ...]  #: the last transitions


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """How late a daemon's loop was at worst, in the last minute and since its start; seconds."""

    minute_s: float = 0.0
    worst_s: float = 0.0


class Report(Local, tag="report", frozen=True, kw_only=True):
    """What `mingle status` shows of one daemon."""

    version: tuple[int, int] = msgspec.field(default_factory=own_version)
    release: str
    host: str
    node: str
    pid: int
    socket: str
    private: bool
    link_port: int
    addresses: tuple[str, ...]
    discovery: tuple[str, ...]  #: one line for each rung: what works, what does not and why
    key_ids: tuple[str, ...]  #: of the cluster keys it takes, the one it presents first
    up_s: float
    jobs: tuple[Job, ...]
    lag: Lag = Lag()
    counts: dict[str, int] = {}  #: what it holds just now: descriptors, tasks, links, adverts, ...


Request = (
    Join
    | Reattach
    | StoreOpened
    | StoreFailed
    | Alive
    | Finished
    | Leave
    | Cancel
    | Adopt
    | Logs
    | Metrics
    | Status
)
Reply = (
    Progress
    | Notice
    | OpenStore
    | Ready
    | Failed
    | Gone
    | Waiting
    | Done
    | Cancelled
    | Story
    | Measured
    | Report
)

request_decoder: Decoder[Request] = Decoder(Request, "request")
reply_decoder: Decoder[Reply] = Decoder(Reply, "reply")
