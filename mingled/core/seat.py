"""A local participant: one join of one client on this node."""

from __future__ import annotations

from mingled.core import actions, local
from mingled.core.config import Config
from mingled.core.events import Holder
from mingled.core.local import Join
from mingled.core.messages import Entry
from mingled.core.words import Form, ParticipantId
from mingled.errors import MingleError


class Seat:
    """Mutable. Waits, then is released with a config, then ends."""

    __slots__ = (
        "adopt_by",
        "beats_missed",
        "before",
        "config",
        "connected",
        "deadline",
        "ending",
        "expect_at",
        "found_at",
        "hint_at",
        "holder",
        "join",
        "participant",
        "since",
        "token",
    )

    def __init__(
        self,
        participant: ParticipantId,
        join: Join,
        holder: Holder,
        now: float,
        hint_after_s: float,
    ) -> None:
        self.participant = participant
        self.join = join
        self.holder = holder
        self.since = now
        self.found_at: float | None = None  #: when another node was first in touch
        self.deadline = None if join.timeout_s is None else now + join.timeout_s
        self.hint_at: float | None = now + hint_after_s
        self.connected = True
        self.before: int | None = None  #: its rank in the job's last round
        self.config: Config | None = None
        self.token: str | None = None
        self.adopt_by: float | None = None
        #: why it ended while its round's outcome was still open, None while it lives
        self.ending: str | None = None
        self.expect_at: float | None = None  #: the next Alive of its client, at the latest
        self.beats_missed = 0

    @property
    def waiting(self) -> bool:
        return self.config is None

    @property
    def can_lead(self) -> bool:
        """Rank 0 is asked for, or any rank will do."""
        return self.join.rank in (None, 0)

    def entry(self) -> Entry:
        """As the leader is to know it."""
        return Entry(
            participant=self.participant,
            form=self.join.form,
            size_min=self.join.size_min,
            size_max=self.join.size_max,
            rank=self.join.rank,
            nproc=self.join.nproc,
            user=self.holder.user,
            pid=self.holder.pid,
            any_user=self.join.any_user,
            wait=self.join.wait,
            before=self.before,
            software=self.join.software,
            require_same=self.join.require_same,
        )

    def alive(self, now: float) -> None:
        """Its client has said so, is released, or is back: the next time is expected from now."""
        self.beats_missed = 0
        if self.join.heartbeat_s is not None and not self.waiting:
            self.expect_at = now + self.join.heartbeat_s

    def who(self) -> str:
        return f"pid {self.holder.pid} of {self.holder.user}"


def tell_failed(participant: ParticipantId, error: MingleError) -> actions.Tell:
    """The end of a join, as its client is to hear it."""
    return actions.Tell(participant=participant, message=failed_by(error))


def failed_by(error: MingleError) -> local.Failed:
    return local.Failed(code=error.code, sentence=str(error))


def owner_conflict(mine: Entry, theirs: Entry, *, here: str, there: str) -> str | None:
    """Why two users' participants cannot be in one job; None if they can. By name: uids differ
    between machines. Equal names prove little (everybody is root in a container), so that people
    are told who joined from where."""
    if mine.user == theirs.user or (mine.any_user and theirs.any_user):
        return None
    return (
        f"this job is {mine.user}'s on {here}, and {theirs.user} asks for it on {there}; choose "
        "another job ID, or both of you add --any-user"
    )


def shape_conflict(mine: Entry, theirs: Entry, *, here: str, there: str) -> str | None:
    """Why two participants cannot be in one job, naming both sides; None if they can."""
    if mine.form is not theirs.form:
        return (
            f"{there} joined with {_form_words(theirs)}, {here} with {_form_words(mine)}; "
            "use one form on every machine"
        )
    if (mine.size_min, mine.size_max) != (theirs.size_min, theirs.size_max):
        return (
            f"{there} joined with {_form_words(theirs)}, {here} with {_form_words(mine)}; "
            "give every machine the same number"
        )
    return None


def rank_conflict(rank: int, *, here: str, there: str) -> str:
    """One rank, asked for twice."""
    return f"rank {rank} is asked for twice: by {here} and by {there}; change one of them"


def _form_words(entry: Entry) -> str:
    return {
        Form.LAUNCHER: f"--nnodes {_size_words(entry)}",
        Form.PROCESS: f"--world-size {_size_words(entry)}",
        Form.PLAIN: "a rank and no size",
    }[entry.form]


def _size_words(entry: Entry) -> str:
    low, high = entry.size_min, entry.size_max
    return str(low) if low == high else f"{low}:{high}"
