"""Who asks the network, and when."""

from __future__ import annotations

import pytest

from mingled.core import actions, events, local
from mingled.core.events import Address
from mingled.core.messages import Advert
from mingled.core.secrets import realm_of
from mingled.core.settings import Settings
from mingled.core.words import Form, ParticipantId
from tests.core.samples import CLAIM, JOB
from tests.core.stage import HOLDER, one_core

STAGGER_S = Settings().try_stagger_s


class Follower:
    """A node whose participant looks for a leader."""

    def __init__(self) -> None:
        here = Address(address="10.0.0.2", interface="eth0", prefix=24)
        self.core = one_core("gpu2", here)

    def does(self, event: events.Event, now: float) -> list[actions.Action]:
        return self.core.handle(event, now)

    def joins(self, now: float) -> list[actions.Action]:
        join = local.Join(job=JOB, form=Form.PROCESS, rank=1, size_min=2, size_max=2)
        who = ParticipantId("1" * 32)
        return self.does(events.JoinAsked(participant=who, join=join, holder=HOLDER), now)

    def hears(self, now: float) -> list[actions.Action]:
        advert = Advert(
            version=1,
            key_id="none",
            label=realm_of(JOB).label,
            claim=CLAIM,
            port=29_490,
            addresses=("10.0.0.1",),
        )
        return self.does(events.AdvertHeard(advert=advert, rung="mdns"), now)


def of(done: list[actions.Action], kind: type[actions.Action]) -> list[actions.Action]:
    return [action for action in done if isinstance(action, kind)]


def test_who_knows_of_nobody_asks_at_once() -> None:
    one = Follower()
    done = one.joins(100.0) + one.does(events.Ticked(), 100.0)
    assert len(of(done, actions.Ask)) == 1


def test_who_knows_of_a_leader_asks_nobody_while_that_may_answer() -> None:
    one = Follower()
    one.hears(90.0)
    done = one.joins(100.0) + one.does(events.Ticked(), 100.0)
    assert len(of(done, actions.OpenLink)) == 1
    assert not of(done, actions.Ask)
    assert one.core.deadline() == pytest.approx(100.0 + STAGGER_S)
    assert len(of(one.does(events.Ticked(), 100.0 + STAGGER_S), actions.Ask)) == 1


def test_who_is_refused_asks_at_once() -> None:
    one = Follower()
    one.hears(90.0)
    (opened,) = of(one.joins(100.0), actions.OpenLink)
    assert isinstance(opened, actions.OpenLink)
    failed = events.LinkFailed(link=opened.link, reason="refused", answered=True)
    done = one.does(failed, 100.1) + one.does(events.Ticked(), 100.1)
    assert len(of(done, actions.Ask)) == 1
