"""The simulator must be able to fail: bugs planted in the core are found within a few seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from mingled.core import claim, contest, desk, job, pursuit, seal
from mingled.core.cancels import Cancels
from mingled.core.claim import Session
from mingled.core.config import Member
from mingled.core.events import CancelAsked, FrameReceived
from mingled.core.held import Held
from mingled.core.messages import Cancel, Contest, Join, Message, NodeCancelled
from mingled.core.paths import Paths
from mingled.core.pursuit import Pursuit
from mingled.core.rendezvous import Rendezvous
from mingled.core.roster import Present, members_of
from mingled.core.rounds import Rounds
from mingled.core.seal import Seal
from mingled.core.search import Search
from mingled.core.seat import Seat
from mingled.core.secrets import Realm, realm_of
from mingled.core.watch import Watch, Watches
from mingled.core.words import JobId, Nonce, ParticipantId
from tests.scenarios.stories import elastic_shrink
from tests.sim import scenario
from tests.sim.run import sweep
from tests.sim.scenario import Scenario


def found(seeds: int, hosts: int | None = None) -> str:
    """The error of the first seed that fails; the sweep ends there."""
    failed = sweep(range(seeds), hosts).failed
    assert failed is not None, f"not found within {seeds} seeds"
    assert failed.error is not None
    assert failed.transcript, "a failure comes with its transcript"
    return failed.error


def test_commit_before_all_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    def acked(self: Seal, session: Session, proof: Nonce, now: float) -> None:
        if self.attempt is not None and self.attempt.port and self.attempt.paths.all_proven:
            self._commit(now)

    monkeypatch.setattr(Seal, "acked", acked)
    assert "acknowledged" in found(60)


def test_ack_of_an_aborted_attempt_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Seal.acked

    def acked(self: Seal, session: Session, proof: Nonce, now: float) -> None:
        right(self, session, self.attempt.proof if self.attempt else proof, now)

    ordinary = Scenario.__init__

    def fickle(self: Scenario, seed: int, hosts: int | None = None) -> None:
        ordinary(self, seed, hosts)
        self.world.fickle, self.choosy = 1.0, 0.0

    monkeypatch.setattr(Seal, "acked", acked)
    # Where attempts are aborted often and repeated at once; one seed in a thousand otherwise.
    monkeypatch.setattr(Scenario, "__init__", fickle)
    monkeypatch.setattr(scenario, "SHAPES", ("auto",))
    assert "acknowledged" in found(1500, hosts=2)


def test_fault_05_no_tie_break_between_leaders(monkeypatch: pytest.MonkeyPatch) -> None:
    def loses(mine: Contest, theirs: Contest) -> bool:
        return mine.standing < theirs.standing and not mine.busy

    monkeypatch.setattr(contest, "loses", loses)
    found(300)  # two rounds run, or neither


def test_keys_that_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def realms_of(name: JobId, *_: object) -> tuple[Realm, ...]:
        return (realm_of(name),)

    monkeypatch.setattr(job, "realms_of", realms_of)
    assert "without a key that all have" in found(600)


def test_fault_06_rank_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(chosen: Sequence[Present], leader: ParticipantId) -> tuple[Member, ...]:
        *others, last = members_of(chosen, leader)
        return (*others, msgspec.structs.replace(last, rank=max(0, last.rank - 1)))

    monkeypatch.setattr(seal, "members_of", twice)
    found(60)  # rank 0 and its followers see it, each in its way
    monkeypatch.setattr(Pursuit, "_flaw", lambda self, message: None)
    assert "ranks of" in found(60)


def test_deadline_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Seal, "deadline", lambda self: None)
    assert "due before the deadline" in found(60)


def test_timeout_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Seat.__init__

    def no_deadline(self: Seat, *args: Any) -> None:
        right(self, *args)
        self.deadline = None

    monkeypatch.setattr(Seat, "__init__", no_deadline)
    assert "without an outcome after its timeout" in found(60)


def test_deadline_left_in_the_past(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Search.ask

    def ask(self: Search, now: float) -> None:
        due = self.ask_at
        right(self, now)
        self.ask_at = due

    monkeypatch.setattr(Search, "ask", ask)
    assert "busy loop" in found(10)


def test_rounds_never_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rounds, "prune", lambda self, now: None)
    found(10)  # jobs are kept, or a cancel finds no end


def test_fault_41_claim_nonce_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """On neither side: one alone is made good by the other."""
    right, right_received = Rendezvous._frame, Pursuit.received

    def frame(self: Rendezvous, event: FrameReceived, now: float) -> None:
        message = event.message
        if isinstance(message, Join):
            job = self._by_label(message.label)
            if job is not None and job.claim is not None:
                message = msgspec.structs.replace(message, claim=job.claim.nonce)
        right(self, FrameReceived(link=event.link, message=message), now)

    def received(self: Pursuit, message: Message, now: float) -> None:
        if hasattr(message, "claim"):
            message = msgspec.structs.replace(message, claim=self.claim)
        right_received(self, message, now)

    monkeypatch.setattr(Rendezvous, "_frame", frame)
    monkeypatch.setattr(Pursuit, "received", received)
    found(300)


def test_ring_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Paths, "ring", lambda self, *_: None)
    assert "unproven" in found(60)


def test_fault_09_silence_alone_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lossy links are silent now and then; only fresh connections tell."""

    def silent(self: Watches, watch: Watch, now: float) -> None:
        if watch.link is not None and now - watch.sign_at >= 1.5:
            self._job.links.give_up(watch.link, "silent for a while", now, lost=True)
        else:
            right(self, watch, now)

    right = Watches._look
    monkeypatch.setattr(Watches, "_look", silent)
    found(300)  # a lie is told, or a round breaks for nothing


def test_requirement_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (claim, desk):
        monkeypatch.setattr(module, "same_conflict", lambda *_, **__: None)
    assert "requires the same" in found(60)


def test_difference_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pursuit, "_shown", lambda sentences: [])
    assert "not told that somebody runs torch" in found(60)


def test_survivor_that_joins_again_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is violated by a round without it; the stories find that."""
    monkeypatch.setattr(Held, "survivors", lambda self, waiting: [])
    with pytest.raises(AssertionError):
        elastic_shrink()


def test_members_are_not_told_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Held, "tell_waiting", lambda self, count, seats: None)
    found(60)


def test_a_cancel_that_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cancels, "_pass_on", lambda self, order: None)
    assert "keeps" in found(60)


def test_a_cancel_that_is_obeyed_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Cancels._end_seats

    def waiting_ones(self: Cancels, cancel: Cancel, now: float) -> NodeCancelled:
        seats = self._job.seats
        released = {p: s for p, s in seats.items() if not s.waiting}
        for participant in released:
            del seats[participant]
        outcome = right(self, cancel, now)
        seats.update(released)
        return outcome

    monkeypatch.setattr(Cancels, "_end_seats", waiting_ones)
    assert "has not ended" in found(60)


def test_a_strangers_cancel_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Cancels.asked

    def as_root(self: Cancels, event: CancelAsked, now: float) -> None:
        right(self, msgspec.structs.replace(event, uid=0), now)

    monkeypatch.setattr(Cancels, "asked", as_root)
    assert "cancelled by {'eve'}" in found(300)
