"""What one user may have of a daemon that serves all users of a machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mingled.core.events import Holder
from mingled.core.settings import Settings
from mingled.core.words import JobId
from mingled.errors import Refused

if TYPE_CHECKING:
    from mingled.core.job import Job


def no_place(
    jobs: Mapping[JobId, Job], job: JobId, holder: Holder, settings: Settings, host: str
) -> Refused | None:
    """Why one more participant of this user, or one more job, is too many. Root is bounded by what
    the daemon can hold alone."""
    if job not in jobs and len(jobs) >= settings.jobs_max:
        return Refused(f"job {job}: {len(jobs)} jobs on {host} already; leave some first")
    if holder.uid == 0:
        return None
    theirs = [j for j in jobs.values() if any(s.holder.uid == holder.uid for s in j.seats.values())]
    if len(theirs) >= settings.jobs_per_user_max and job not in (j.job for j in theirs):
        return Refused(
            f"job {job}: {holder.user} has {len(theirs)} jobs on {host} already, as many as one "
            "user may have; leave some first (mingle status, mingle leave JOB)"
        )
    # All seats of a job are one user's; whoever joins again takes its own place.
    seats = sum(len(j.seats) for j in theirs)
    again = jobs[job].seats.values() if job in jobs else ()
    seats -= any(s.holder.identity == holder.identity for s in again)
    if seats >= settings.seats_per_user_max:
        return Refused(
            f"job {job}: {holder.user} has {seats} participants on {host} already, as many as one "
            "user may have; leave some first (mingle status, mingle leave JOB)"
        )
    return None
