"""How long an attempt to seal a round waits for who says nothing."""

from __future__ import annotations

from mingled.core import events, local
from mingled.core.events import Address
from mingled.core.seal import Seal, _Attempt
from mingled.core.settings import Settings
from mingled.core.words import Form, ParticipantId
from tests.core.samples import JOB
from tests.core.stage import HOLDER, one_core


class Alone:
    """A job of one, whose client is asked to open a store."""

    def __init__(self) -> None:
        self.now = 100.0
        self.who = ParticipantId("0" * 32)
        here = Address(address="10.0.0.1", interface="eth0", prefix=24)
        self.core = one_core("gpu1", here)

    def join(self) -> None:
        """The same process, each time anew."""
        self.who = ParticipantId(f"{int(self.who, 16) + 1:032x}")
        wish = local.Join(
            job=JOB, form=Form.PROCESS, rank=0, size_min=1, size_max=1, store=True, timeout_s=600.0
        )
        asked = events.JoinAsked(participant=self.who, join=wish, holder=HOLDER)
        self.core.handle(asked, self.now)

    def asked(self) -> _Attempt:
        """The attempt under way, or the next one."""
        while self.seal.attempt is None:
            self.tick()
        return self.seal.attempt

    def silence(self) -> float:
        """Nothing is opened: seconds until the attempt ended."""
        attempt, began = self.asked(), self.now
        while self.seal.attempt is attempt:
            self.tick()
        return round(self.now - began, 6)

    def tick(self) -> None:
        due = self.core.deadline()
        assert due is not None
        self.now = max(self.now, due)
        self.core.handle(events.Ticked(), self.now)

    @property
    def seal(self) -> Seal:
        claim = self.core.jobs[JOB].claim
        assert claim is not None
        return claim.seal


def test_each_silence_doubles_the_time_of_the_next_attempt() -> None:
    alone, settings = Alone(), Settings()
    alone.join()
    first, most = settings.prepare_timeout_s, settings.prepare_timeout_max_s
    assert [alone.silence() for _ in range(4)] == [first, 2 * first, most, most]


def test_a_round_that_is_sealed_makes_it_short_again() -> None:
    alone = Alone()
    alone.join()
    alone.silence()
    opened = events.StoreOpened(participant=alone.who, proof=alone.asked().proof, port=29_500)
    alone.core.handle(opened, alone.now)
    assert alone.seal.round == 1
    alone.join()
    assert alone.silence() == Settings().prepare_timeout_s


def test_another_reason_does_not_make_it_longer() -> None:
    alone = Alone()
    alone.join()
    failed = events.StoreFailed(
        participant=alone.who, proof=alone.asked().proof, reason="none is free"
    )
    alone.core.handle(failed, alone.now)
    assert alone.silence() == Settings().prepare_timeout_s
