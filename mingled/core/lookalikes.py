"""Job IDs that look the same and are not: identity is byte-exact, and a person who waits for the
wrong one of two cannot see why."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from mingled.core.secrets import realms_of
from mingled.core.words import JobId
from mingled.errors import BadInput

if TYPE_CHECKING:
    from mingled.core.events import Holder
    from mingled.core.job import Job

_FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")


def difference(one: str, other: str) -> str | None:
    """What two IDs differ in, where that alone tells them apart; None: not alike, or the same."""
    if one == other or _skeleton(one) != _skeleton(other):
        return None
    if one.casefold() == other.casefold():
        return "case"
    if unicodedata.normalize("NFKC", one) == unicodedata.normalize("NFKC", other):
        return "Unicode form"
    return "case and Unicode form"


def _skeleton(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded)


def sentence(job: str, other: str, where: str) -> str:
    """That the other is there as well; empty where they are not alike."""
    what = difference(job, other)
    if what is None:
        return ""
    # Two Unicode forms of one text are the same to the eye: their code points are not.
    mine, theirs = (job, other) if what == "case" else (ascii(job), ascii(other))
    return (
        f"{where} the job {theirs}, which differs from {mine} in {what} alone: these are two jobs; "
        "give every machine the same ID, letter for letter"
    )


def warn(jobs: Iterable[Job], job: Job, holder: Holder) -> None:
    """Whoever waits here for one of two such jobs of one user, when that user joins the other.
    Other users' job IDs are nobody's business."""
    for other in jobs:
        owners = {seat.holder.uid for seat in other.seats.values()}
        if other is job or owners != {holder.uid} or not difference(job.job, other.job):
            continue
        for mine, theirs in ((job, other), (other, job)):
            for seat in mine.waiting():
                if mine is other or seat.holder.identity == holder.identity:
                    mine.warn(seat, sentence(mine.job, theirs.job, f"{mine.ctx.host} also has"))


def advertised(job: Job) -> str:
    """A sentence on one that another machine leads, as far as a label can be guessed: the network
    shows no names. Empty where there is none."""
    for other in _variants(job.job):
        realms = realms_of(other, job.ctx.keys, job.secret)
        if job.ctx.book.of(*(realm.label for realm in realms)):
            return sentence(job.job, other, "another machine has")
    return ""


def _variants(job: JobId) -> Iterable[JobId]:
    """The same in the cases and forms that people and keyboards make."""
    texts = [job, job.lower(), job.upper(), job.title(), job[:1].upper() + job[1:]]
    texts += [unicodedata.normalize(form, text) for form in _FORMS for text in texts]
    for text in dict.fromkeys(texts):
        if difference(job, text) is not None:
            try:
                yield JobId(text)
            except BadInput:  # decomposed it is too long
                continue
