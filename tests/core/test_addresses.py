"""Addresses that change, that a user restricts, and that somebody rewrites on the way."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mingled.core import actions, events, local, messages
from mingled.core.events import Address
from mingled.core.words import Standing
from tests.core.samples import CARD
from tests.core.stage import JOB, Stage, failed, fates, noticed, ready
from tests.core.test_survey import cut, two_networks
from tests.sim.network import addresses_of


def moves(stage: Stage, host: int, *networks: int) -> None:
    """From now on gpu`host` has addresses in these networks alone; nobody tells its peers."""
    every = addresses_of(host - 1, 2)
    left = tuple(every[n] for n in networks)
    for other in range(1, len(stage.world.daemons) + 1):
        for network in {0, 1}.difference(networks):
            cut(stage, host, other, network)
    daemon = stage.world.daemons[host - 1]
    own = frozenset(a.address for a in left)
    stage.world.deliver(daemon, events.AddressesChanged(addresses=left, own=own))


def test_fault_15_a_waiting_follower_that_moves_joins_again_at_once() -> None:
    stage = two_networks(3)
    leader = stage.join(1, rank=0, size=3)
    follower = stage.join(2, rank=1, size=3)
    stage.wait(1.0)
    moves(stage, 2, 1)
    stage.wait(1.0)
    claim = stage.core(1).jobs[JOB].claim
    assert claim is not None
    assert [s.remote_address for s in claim.sessions.values()] == ["10.1.0.2"]
    last = stage.join(3, rank=2, size=3)
    stage.wait(10.0)
    assert [ready(c).rank for c in (leader, follower, last)] == [0, 1, 2]
    assert ready(leader).members[1].address == "10.1.0.2"


def test_fault_15_a_leader_that_moves_is_found_again_and_advertises_no_ghost() -> None:
    stage = two_networks(2)
    leader = stage.join(1, rank=0, size=3)
    stage.join(2, rank=1, size=3)
    stage.wait(1.0)
    moves(stage, 1, 1)
    stage.wait(4.0)
    daemon = stage.world.daemons[0]
    assert [a.addresses for a in daemon.adverts.values()] == [("10.1.0.1",)]
    claim = stage.core(1).jobs[JOB].claim
    assert claim is not None
    assert [s.local.address for s in claim.sessions.values()] == ["10.1.0.1"]
    assert leader.waits


def test_a_new_address_beside_the_old_one_reaches_the_leader() -> None:
    stage = two_networks(2)
    moves(stage, 2, 0)
    stage.join(1, rank=0, size=3)
    stage.join(2, rank=1, size=3)
    stage.wait(1.0)
    stage.world.air.cut.clear()
    moves(stage, 2, 0, 1)
    stage.wait(0.5)
    claim = stage.core(1).jobs[JOB].claim
    assert claim is not None
    assert [s.card.addresses for s in claim.sessions.values()] == [("10.0.0.2", "10.1.0.2")]


def test_fault_16_after_the_seal_the_roster_stays_and_its_people_are_warned() -> None:
    stage = two_networks(2)
    clients = [stage.join(1, rank=0), stage.join(2, rank=1)]
    stage.wait(1.0)
    assert ready(clients[1]).address == "10.0.0.2"
    moves(stage, 2, 1)
    stage.wait(60.0)
    (warning,) = noticed(clients[1])
    for word in ("job bert", "10.0.0.2 of gpu2 is gone", "round 1", "eth1 10.1.0.2"):
        assert word in warning
    assert fates(clients[0]) == []  # its daemon came back over the other network in time
    held = stage.core(1).jobs[JOB].rounds.newest
    assert held is not None
    assert held.fates == {0: "running", 1: "running"}


# ---------------------------------------------------------------- what a user restricts


def test_an_interface_that_the_user_names_is_used_alone() -> None:
    stage = two_networks(2)
    leader = stage.join(1, rank=0, interfaces=("eth1",))
    stage.wait(0.5)
    (advert,) = stage.world.daemons[0].adverts.values()
    assert advert.addresses == ("10.1.0.1",)
    follower = stage.join(2, rank=1, subnets=("10.1.0.0/16",))
    stage.wait(2.0)
    assert ready(follower).master_addr == ready(leader).master_addr == "10.1.0.1"
    opened = stage.core(2)
    assert opened.jobs[JOB].home.sources == addresses_of(1, 2)[1:]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"interfaces": ("eth7",)}, "gpu1 has nothing for --interface eth7"),
        ({"interfaces": ("eth0", "ib0")}, "gpu1 has nothing for --interface ib0"),
        ({"subnets": ("192.168.0.0/16",)}, "gpu1 has nothing for --subnet 192.168.0.0/16"),
        (
            {"interfaces": ("eth0",), "subnets": ("10.1.0.0/16",)},
            "gpu1 has nothing for --interface eth0 --subnet 10.1.0.0/16",
        ),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_with_what_there_is(
    wish: dict[str, Any], words: str
) -> None:
    stage = two_networks(1)
    sentence = failed(stage.join(1, rank=0, **wish), "bad-input")
    for word in ("job bert", words, "eth0 10.0.0.1, eth1 10.1.0.1"):
        assert word in sentence


def test_two_wishes_on_one_node_are_refused() -> None:
    stage = two_networks(1)
    first = stage.join(1, rank=0, size=3, interfaces=("eth0",))
    second = stage.join(1, rank=1, size=3, interfaces=("eth1",))
    sentence = failed(second, "refused")
    assert "asks for --interface eth1, pid 1 of ann for --interface eth0" in sentence
    assert first.waits


# ---------------------------------------------------------------- NAT


def test_both_sides_are_told_of_nat() -> None:
    stage = Stage(2)
    leader = stage.join(1, rank=0)
    stage.wait(0.5)
    claim = stage.core(1).jobs[JOB].claim
    assert claim is not None
    card = msgspec.structs.replace(CARD, host="gpu4", addresses=("172.17.0.2",))
    join = messages.Join(
        label=claim.job.label,
        claim=claim.nonce,
        job=JOB,
        node=card,
        entries=(),
        source="172.17.0.2",
    )
    here = Address(address="10.0.0.1", interface="eth0")
    core, now = stage.core(1), stage.world.clock.now + stage.world.daemons[0].boot
    accepted = events.LinkAccepted(
        link=1000, local=here, remote_address="10.0.0.9", label=claim.job.label
    )
    core.handle(accepted, now)
    told = core.handle(events.FrameReceived(link=1000, message=join), now)
    told += core.handle(events.FrameReceived(link=1000, message=join), now)
    notices = [
        a.message.sentence
        for a in told
        if isinstance(a, actions.Tell) and isinstance(a.message, local.Notice)
    ]
    assert notices == [
        "job bert: gpu4 claims 172.17.0.2, we see 10.0.0.9: behind NAT; Docker: --network host; "
        "WSL2: networkingMode=mirrored"
    ]
    assert leader.waits


def test_a_follower_learns_that_it_is_behind_nat() -> None:
    stage = Stage(2)
    follower = stage.join(2, rank=1)
    stage.join(1, rank=0, size=2)
    stage.wait_for(2, stage.state(2).FOLLOWING)
    pursuit = stage.core(2).jobs[JOB].pursuit
    assert pursuit is not None
    welcome = messages.Welcome(
        claim=pursuit.claim,
        node=CARD,
        seen_address="192.0.2.7",
        met_address="10.0.0.1",
        standing=Standing.EXPLICIT,
    )
    now = stage.world.clock.now + stage.world.daemons[1].boot
    told = stage.core(2).handle(events.FrameReceived(link=pursuit.link, message=welcome), now)
    (sentence,) = [
        a.message.sentence
        for a in told
        if isinstance(a, actions.Tell) and isinstance(a.message, local.Notice)
    ]
    assert "job bert: this node is 10.0.0.2, and gpu1 sees 192.0.2.7: behind NAT" in sentence
    assert follower.join.rank == 1


# ---------------------------------------------------------------- forged adverts


@pytest.mark.parametrize("node", ["another daemon", "nobody"])
def test_fault_34_forged_adverts_of_a_sealed_round_change_nothing(node: str) -> None:
    """Fault 34: a stranger's datagram names other places for our leader, and then it is silent for
    a while. Whoever answers there is not it."""
    stage = Stage(3 if node == "another daemon" else 2)
    clients = [stage.join(1, rank=0), stage.join(2, rank=1)]
    stage.wait(1.0)
    follower = stage.world.daemons[1]
    (heard,) = follower.core._ctx.book.of(stage.core(2).jobs[JOB].label)
    places = ("10.0.0.3", *(f"10.0.9.{n}" for n in range(15)))
    forged = msgspec.structs.replace(heard.advert, addresses=places)

    def forge() -> None:
        stage.world.deliver(follower, events.AdvertHeard(advert=forged, rung="broadcast"))

    forge()
    stage.wait(5.0)
    stage.world.freeze(stage.world.daemons[0], 4.0)
    stage.wait(0.5)
    forge()
    stage.wait(60.0)
    assert [fates(client) for client in clients] == [[], []]
    held = stage.core(2).jobs[JOB].rounds.newest
    assert held is not None
    assert held.fates == {0: "running", 1: "running"}


def test_an_interface_that_the_user_forbids_never_becomes_master_addr() -> None:
    """A follower that came by it, through an older advert, is asked for another way; where it has
    none, that is said."""
    stage = two_networks(2)
    leader = stage.join(1, rank=0, interfaces=("eth0",))
    stage.wait(0.5)
    cut(stage, 1, 2, network=0)
    (advert,) = stage.world.daemons[0].adverts.values()
    older = msgspec.structs.replace(advert, addresses=("10.1.0.1",))
    follower = stage.join(2, rank=1)
    stage.world.deliver(stage.world.daemons[1], events.AdvertHeard(advert=older, rung="broadcast"))
    stage.wait(12.0)
    assert leader.waits
    told = [m.note for m in leader.heard if isinstance(m, local.Progress)]
    assert "gpu2 (10.1.0.2) cannot reach what --interface or --subnet leave: eth0 10.0.0.1" in told
    stage.world.air.cut.clear()
    stage.wait(10.0)
    assert ready(leader).master_addr == ready(follower).master_addr == "10.0.0.1"


def test_contradicting_wishes_are_named() -> None:
    """The simulator's hosts answer for all of their addresses, as Linux does."""
    stage = two_networks(2)
    stage.join(1, rank=0, interfaces=("eth1",))
    follower = stage.join(2, rank=1, interfaces=("eth0",))
    stage.wait(2.0)
    (warning,) = noticed(follower)
    for word in ("job bert: rank 0 on gpu1 (10.1.0.1) is in 10.1.0.0/24, this node's eth1, which",
                 "name the same network on every machine"):  # fmt: skip
        assert word in warning
