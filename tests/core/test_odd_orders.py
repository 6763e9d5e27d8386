"""Events in orders that nobody thought of: found by the fuzzer of the core (tests/fuzz)."""

from __future__ import annotations

from typing import Any

import pytest

from mingled.core import actions, events, local
from mingled.core.events import Address
from mingled.core.messages import Advert, Contest
from mingled.core.rendezvous import Rendezvous
from mingled.core.table import State
from mingled.core.words import Form, ParticipantId, Standing
from tests.core.samples import CARD, CLAIM, JOB
from tests.core.stage import HOLDER, one_core

HERE = Address(address="10.0.0.1", interface="eth0", prefix=24)
MOVED = Address(address="10.0.9.1", interface="eth0", prefix=24)


@pytest.fixture
def core() -> Rendezvous:
    return one_core("gpu1", HERE)


def join(core: Rendezvous, number: int, now: float, **wish: Any) -> list[actions.Action]:
    asked = local.Join(job=JOB, rank=0, **wish)
    who = ParticipantId(f"{number:032x}")
    return core.handle(events.JoinAsked(participant=who, join=asked, holder=HOLDER), now)


def test_a_frame_that_was_on_its_way_when_its_link_was_closed(core: Rendezvous) -> None:
    """The loop had taken it before it took the change of addresses that closed the link."""
    join(core, 1, 100.0, form=Form.PROCESS, size_min=2, size_max=2)
    claim = core.jobs[JOB].claim
    assert claim is not None
    advert = Advert(
        version=1,
        key_id="none",
        label=core.jobs[JOB].label,
        claim=CLAIM,
        port=29_490,
        addresses=("10.0.0.2",),
    )
    core.handle(events.AdvertHeard(advert=advert, rung="mdns"), 100.0)
    (asked,) = [a for a in core.handle(events.Ticked(), 100.0) if isinstance(a, actions.OpenLink)]
    opened = events.LinkOpened(link=asked.link, local=HERE, remote_address="10.0.0.2")
    core.handle(opened, 100.1)
    moved = core.handle(events.AddressesChanged(addresses=(MOVED,)), 100.2)
    assert actions.CloseLink(link=asked.link) in moved
    answer = Contest(
        label=advert.label,
        claim=CLAIM,
        rival=claim.nonce,
        job=JOB,
        node=CARD,
        user="bob",
        standing=Standing.EXPLICIT,
        sealed=False,
    )
    assert core.handle(events.FrameReceived(link=asked.link, message=answer), 100.2) == []


def test_a_plain_rank_0_in_the_place_of_one_whose_seal_failed(core: Rendezvous) -> None:
    """The next try of a seal that nobody wants any more was due for ever: the loop span."""
    said = join(core, 1, 100.0, form=Form.PROCESS, size_min=1, size_max=1)
    (asked,) = [a for a in said if isinstance(a, actions.OpenProof)]
    core.handle(events.ProofFailed(job=JOB, proof=asked.proof, reason="none is free"), 100.1)
    assert core.jobs[JOB].state is State.LEADING
    join(core, 2, 100.2, form=Form.PLAIN)
    core.handle(events.Ticked(), 110.0)
    due = core.deadline()
    assert due is None or due > 110.0
