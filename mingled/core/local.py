"""What a client and its daemon say over the Unix socket. JSON lines; `type` names the message.

Try it by hand: `echo '{"type":"status"}' | socat - UNIX:/run/mingled/control.sock`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from mingled.core.codec import VERSION, Decoder
from mingled.core.config import Config
from mingled.core.messages import Running, Seen, check_shape
from mingled.core.words import Form, JobId, ParticipantId

LINE_SIZE_BYTES_MAX = 64 * 1024
"""A line from a client. A join is under 1 KiB."""

OTHER_NAMESPACE = "other-namespace"
"""Code of the refusal to a client whose network namespace is not the daemon's: it takes a private
daemon instead."""


class Local(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """Base of everything on the Unix socket."""


# ---------------------------------------------------------------- client to daemon


class Join(Local, tag="join", frozen=True, kw_only=True):
    """Take part in a job. Answered by any number of Progress and Notice, then Ready or Failed; the
    connection may stay open after Ready, and then carries what happens to the round."""

    version: tuple[int, int] = VERSION
    job: JobId
    form: Form
    size_min: int = 0
    size_max: int = 0
    rank: int | None = None
    nproc: int = 1
    timeout_s: float | None = None
    netns: int | None = None  #: inode of the client's network namespace, /proc/self/ns/net
    adopt: bool = False  #: the lease will be taken over by another process, with Adopt

    def __post_init__(self) -> None:
        check_shape(self.form, self.size_min, self.size_max, self.rank, self.nproc, self.job)


class Leave(Local, tag="leave", frozen=True, kw_only=True):
    """End leases of this user: one participant's, or all of the job's on this node. Answered by
    Done."""

    version: tuple[int, int] = VERSION
    job: JobId
    participant: ParticipantId | None = None
    lost: bool = False  #: it failed: the others are told of a loss
    reason: str = ""


class Adopt(Local, tag="adopt", frozen=True, kw_only=True):
    """From now on the lease that goes with `token` is process `pid`'s: Done or Failed."""

    version: tuple[int, int] = VERSION
    token: str
    pid: int
    pidns: int | None = None  #: inode of the client's pid namespace, /proc/self/ns/pid


class Status(Local, tag="status", frozen=True, kw_only=True):
    """Answered by Report."""

    version: tuple[int, int] = VERSION


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


class Ready(Local, tag="ready", frozen=True, kw_only=True):
    """Released: this is the config."""

    participant: ParticipantId
    config: Config
    token: str | None = None  #: for Adopt
    found_s: float = 0.0  #: from the join to the first other node that was in touch
    waited_s: float = 0.0  #: from the join to this release


class Failed(Local, tag="failed", frozen=True, kw_only=True):
    """The request ended without success. `code` names a class of `mingled.errors`."""

    code: str
    sentence: str


class Gone(Local, tag="gone", frozen=True, kw_only=True):
    """A member of my round has left, is lost, or is no longer watched by its daemon."""

    job: str
    round: int
    rank: int
    host: str
    address: str
    how: Literal["left", "lost", "unwatched"]
    reason: str


class Done(Local, tag="done", frozen=True, kw_only=True):
    count: int


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
    state: Literal["running", "left", "lost", "unwatched"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job in a report."""

    job: str
    state: str
    leader: str | None
    leader_address: str | None
    here: int
    size_min: int
    size_max: int
    seats: tuple[Seat, ...]
    rounds: tuple[Round, ...]
    note: str
    story: tuple[str, ...]  #: the last transitions


class Report(Local, tag="report", frozen=True, kw_only=True):
    """What `mingle status` shows of one daemon."""

    version: tuple[int, int] = VERSION
    release: str
    host: str
    node: str
    pid: int
    socket: str
    private: bool
    link_port: int
    addresses: tuple[str, ...]
    discovery: tuple[str, ...]  #: one line for each rung: what works, what does not and why
    key_id: str
    up_s: float
    jobs: tuple[Job, ...]


request_decoder: Decoder[Join | Leave | Adopt | Status] = Decoder(
    Join | Leave | Adopt | Status, "request"
)
reply_decoder: Decoder[Progress | Notice | Ready | Failed | Gone | Done | Report] = Decoder(
    Progress | Notice | Ready | Failed | Gone | Done | Report, "reply"
)
