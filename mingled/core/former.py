"""Who held which rank in the last round of each job, so that a node that comes back gets its own.

Known twice: by the node itself, which states it with its join, and by whoever was in that round,
for a node that has forgotten (its daemon was started anew) and comes from the same address.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from mingled.core.config import Member
from mingled.core.words import Form, JobId, ParticipantId


class _Last(msgspec.Struct, frozen=True):
    form: Form
    own: tuple[tuple[int, str], ...]  #: this node's: rank, and the identity of its holder
    by_address: dict[str, tuple[int, ...]]


class Former:
    """Mutable; bounded: the job that was sealed longest ago is forgotten first."""

    def __init__(self, jobs_max: int) -> None:
        self._jobs_max = jobs_max
        self._jobs: dict[JobId, _Last] = {}

    def remember(
        self,
        job: JobId,
        form: Form,
        members: Iterable[Member],
        holders: Mapping[ParticipantId, str],
    ) -> None:
        """A round was sealed. `holders`: this node's participants, and who holds their leases."""
        by_address: dict[str, tuple[int, ...]] = {}
        own: list[tuple[int, str]] = []
        for member in members:
            by_address[member.address] = (*by_address.get(member.address, ()), member.rank)
            holder = holders.get(ParticipantId(member.participant))
            if holder is not None:
                own.append((member.rank, holder))
        self._jobs.pop(job, None)
        if len(self._jobs) >= self._jobs_max:
            del self._jobs[next(iter(self._jobs))]
        self._jobs[job] = _Last(form, tuple(own), by_address)

    def own(self, job: JobId, form: Form, identity: str, taken: Collection[int]) -> int | None:
        """The rank that a new participant of this node had: that of the same process, else the
        lowest of this node's that is not `taken`; None if it was not in the last round."""
        last = self._jobs.get(job)
        if last is None or last.form is not form:
            return None
        free = [(who != identity, rank) for rank, who in last.own if rank not in taken]
        return min(free, default=(False, None))[1]

    def at(self, job: JobId, form: Form, address: str, taken: Collection[int]) -> int | None:
        """The lowest rank that a participant at `address` had and that is not `taken`."""
        last = self._jobs.get(job)
        if last is None or last.form is not form:
            return None
        return min((r for r in last.by_address.get(address, ()) if r not in taken), default=None)
