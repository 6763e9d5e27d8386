"""What is kept of each job's story, for whom, and how much of it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from mingled.chronicle import JOBS_MAX, LINES_MAX, Chronicle
from mingled.core import actions, events, local
from mingled.core.messages import Fate
from mingled.core.words import Form, JobId, ParticipantId
from tests.core import samples

ANN, BOB = 1000, 1001
JOB = samples.JOB


class Telling:
    """A chronicle at a standing clock, told in the loop's words."""

    def __init__(self) -> None:
        self.chronicle = Chronicle(lambda: 17.5)
        self._count = 0

    def joins(self, job: JobId = JOB, uid: int = ANN) -> ParticipantId:
        self._count += 1
        who = ParticipantId(f"{self._count:032x}")
        join = local.Join(job=job, form=Form.PROCESS, size_min=2, size_max=2)
        holder = events.Holder(pid=7, identity="7", uid=uid, user=f"u{uid}", watched=True)
        self.chronicle.took(events.JoinAsked(participant=who, join=join, holder=holder))
        return who

    def tells(self, who: ParticipantId, message: local.Local) -> None:
        self.chronicle.did(actions.Tell(participant=who, message=message))

    def texts(self, job: JobId = JOB, uid: int = ANN, after: int = 0) -> list[tuple[str, str]]:
        return [(x.kind, x.text) for x in self.chronicle.lines(job, uid, after)]


@pytest.fixture
def telling() -> Telling:
    return Telling()


def test_a_story(telling: Telling) -> None:
    who = telling.joins()
    telling.chronicle.changed([(JOB, "state", "idle --search--> searching")])
    telling.tells(who, local.Notice(kind="hint", sentence="job bert: nobody else"))
    telling.tells(who, local.Ready(participant=who, config=samples.CONFIG, waited_s=1.25))
    gone: dict[str, Any] = {"job": "bert", "round": 1, "rank": 1, "host": "gpu2", "address": "a"}
    telling.tells(who, local.Gone(how="lost", reason="silent", ago_s=15.0, **gone))
    telling.tells(who, local.Gone(how="left", reason="exit 0", **gone))
    telling.tells(who, local.Failed(code="cancelled", sentence="job bert: left"))
    telling.chronicle.took(events.HolderEnded(participant=who, status=9))
    telling.chronicle.did(actions.Release(participant=who))
    telling.tells(who, local.Notice(kind="hint", sentence="to nobody"))
    assert telling.texts() == [
        ("came", "pid 7 of u1000 joins"),
        ("state", "idle --search--> searching"),
        ("hint", "job bert: nobody else"),
        (
            "ready",
            "pid 7 of u1000: released as rank 0 of round 1 after 1.2 s; rank 0 is at 10.0.0.1 port "
            "29512",
        ),
        ("member", "gpu2 (a, rank 1) lost 15 s ago in round 1: silent"),
        ("member", "gpu2, rank 1, left: exit 0"),
        ("failed", "pid 7 of u1000: cancelled: job bert: left"),
        ("ended", "pid 7 of u1000: ended: killed by signal 9"),
    ]
    (*_, last) = telling.chronicle.lines(JOB, ANN)
    assert (last.number, last.at_s) == (8, 17.5)
    assert telling.texts(after=7) == [("ended", "pid 7 of u1000: ended: killed by signal 9")]


def test_who_leaves_by_itself_has_not_failed(telling: Telling) -> None:
    both = [telling.joins(), telling.joins()]
    asked: dict[str, Any] = {"request": 1, "job": JOB, "uid": ANN, "lost": False}
    failed = local.Failed(code="cancelled", sentence="job bert: left")
    telling.chronicle.took(
        events.LeaveAsked(participant=both[0], reason="CMD ended with exit 0", **asked)
    )
    telling.tells(both[0], failed)
    telling.chronicle.did(actions.Release(participant=both[0]))
    assert telling.texts()[1:] == [("ended", "pid 7 of u1000: has left: CMD ended with exit 0")]
    telling.chronicle.took(events.LeaveAsked(participant=None, reason="", **asked))
    telling.tells(both[1], failed)
    assert telling.texts()[2:] == [
        ("ended", "mingle leave, by uid 1000"),
        ("failed", "pid 7 of u1000: cancelled: job bert: left"),
    ]


def test_what_is_told_to_each_is_one_line(telling: Telling) -> None:
    both = [telling.joins(), telling.joins()]
    before = len(telling.texts())
    for who in both:
        telling.tells(who, local.Notice(kind="warning", sentence="the same"))
    assert telling.texts()[before:] == [("warning", "the same")]


def test_lines_are_for_their_own_user(telling: Telling) -> None:
    telling.joins(uid=ANN)
    telling.joins(uid=BOB)  # after ann's is over
    assert telling.texts(uid=ANN) == [("came", "pid 7 of u1000 joins")]
    assert telling.texts(uid=BOB) == [("came", "pid 7 of u1001 joins")]
    assert len(telling.texts(uid=0)) == 2
    assert telling.texts(uid=1002) == []


def test_a_stranger_writes_no_line(telling: Telling) -> None:
    telling.joins(uid=ANN)
    asked: dict[str, Any] = {"request": 1, "job": JOB, "reason": ""}
    telling.chronicle.took(events.CancelAsked(uid=BOB, user="bob", **asked))
    telling.chronicle.took(events.CancelAsked(uid=ANN, user="ann", **asked))
    assert telling.texts()[1:] == [("ended", "mingle cancel, by uid 1000")]


def test_only_the_last_lines_are_kept(telling: Telling) -> None:
    telling.joins()
    for n in range(LINES_MAX + 10):
        telling.chronicle.changed([(JOB, "note", str(n))])
    texts = telling.texts()
    assert (len(texts), texts[-1]) == (LINES_MAX, ("note", str(LINES_MAX + 9)))


def test_one_user_cannot_push_out_anothers(telling: Telling) -> None:
    telling.joins(uid=ANN)
    jobs = [JobId(f"job-{n}") for n in range(JOBS_MAX + 10)]
    for job in jobs:
        telling.joins(job, BOB)
    assert telling.texts(uid=ANN)
    assert not telling.texts(jobs[0], BOB)
    assert telling.texts(jobs[-1], BOB)


def test_nobody_knows_of_a_job_that_was_not_here(telling: Telling) -> None:
    telling.chronicle.changed([(JOB, "note", "a watch over others")])
    assert telling.texts(uid=0) == []


def test_each_line_is_written_once_with_a_level() -> None:
    written: list[tuple[str, int, str]] = []
    telling = Telling()
    telling.chronicle = Chronicle(lambda: 1.0, lambda *line: written.append(line))
    who, other = telling.joins(), telling.joins()
    written.clear()
    telling.chronicle.changed([(JOB, "state", "idle --search--> searching")])
    gone: dict[str, Any] = {"job": "bert", "round": 1, "rank": 1, "host": "gpu2", "address": "a"}
    news: tuple[tuple[Fate, str], ...] = (
        ("lost", "silent"),
        ("running", "it is back"),
        ("unwatched", "hung up"),
    )
    for how, reason in news:
        for each in (who, other):
            telling.tells(each, local.Gone(how=how, reason=reason, **gone))
    telling.tells(who, local.Notice(kind="warning", sentence="mind the gap"))
    telling.tells(who, local.Failed(code="timeout", sentence="job bert: too late"))
    assert {job for job, _, _ in written} == {JOB}
    assert [level for _, level, _ in written] == [
        logging.DEBUG,
        logging.WARNING,
        logging.INFO,
        logging.WARNING,
        logging.WARNING,
        logging.INFO,
    ]
    assert [text for _, _, text in written] == [text for _, text in telling.texts()[-6:]]
