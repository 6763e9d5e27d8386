"""One address of rank 0's node that everybody reaches; where none is, each gets its own."""

from __future__ import annotations

import random
from typing import Any

from mingled.core import local
from tests.core.stage import JOB, Stage, noticed, ready
from tests.sim.clients import Client
from tests.sim.network import Air
from tests.sim.world import World


def two_networks(hosts: int) -> Stage:
    rng = random.Random(1)
    return Stage(hosts, World(rng, hosts, Air(rng, networks=2, loss=0.0, delay_s=0.001)))


def cut(stage: Stage, a: int, b: int, network: int) -> None:
    stage.world.air.cut |= {(a - 1, b - 1, network), (b - 1, a - 1, network)}


def notes(client: Client) -> set[str]:
    return {m.note for m in client.heard if isinstance(m, local.Progress)} - {""}


def test_followers_that_came_by_two_addresses_share_one() -> None:
    stage = two_networks(3)
    leader = stage.join(1, rank=0, size=3)
    cut(stage, 1, 3, network=0)
    third = stage.join(3, rank=2, size=3)
    stage.wait(5.0)
    stage.world.air.cut.clear()
    cut(stage, 1, 2, network=1)
    second = stage.join(2, rank=1, size=3)
    stage.wait(2.0)
    claim = stage.core(1).jobs[JOB].claim
    assert claim is not None
    came = sorted(s.local.address for s in claim.sessions.values())
    assert came == ["10.0.0.1", "10.1.0.1"]
    stage.wait(8.0)  # gpu2 tries 10.1.0.1 in vain
    assert {ready(c).master_addr for c in (leader, second, third)} == {"10.0.0.1"}
    assert not any("cannot reach" in note for note in notes(leader))
    assert not noticed(leader)


def test_where_no_address_suits_all_each_gets_its_own_with_a_warning() -> None:
    stage = two_networks(3)
    cut(stage, 1, 2, network=1)
    cut(stage, 1, 3, network=0)
    clients = [stage.join(host, rank=host - 1, size=3) for host in (1, 2, 3)]
    stage.wait(20.0)
    assert [ready(c).master_addr for c in clients] == ["10.0.0.1", "10.0.0.1", "10.1.0.1"]
    for client in clients:
        (warning,) = noticed(client)
        for word in (
            "job bert: no address of gpu1 (10.0.0.1) is reached by everybody",
            "gpu2 by 10.0.0.1 (10.0.0.0/24)",
            "gpu3 by 10.1.0.1 (10.1.0.0/24)",
        ):
            assert word in warning


def test_a_network_that_only_the_ring_lacks_is_named() -> None:
    stage = two_networks(3)
    for network in (0, 1):
        cut(stage, 2, 3, network)
    clients = [stage.join(host, rank=host - 1, size=3) for host in (1, 2, 3)]
    stage.wait(20.0)
    assert all(c.waits for c in clients)
    assert any("gpu2 (10.0.0.2) cannot reach gpu3, TCP 10.0.0.3" in n for n in notes(clients[0]))


def test_a_store_on_one_address_is_not_opened_where_none_suits_all() -> None:
    """A door that is said to be closed is closed: no round, rather than a store on all addresses.
    Once one address is reached by all, there is one."""
    stage = two_networks(3)
    cut(stage, 1, 2, network=1)
    cut(stage, 1, 3, network=0)
    alone: dict[str, Any] = {"store": True, "store_interface_only": True}
    clients = [stage.join(host, rank=host - 1, size=3, **alone) for host in (1, 2, 3)]
    stage.wait(20.0)
    assert all(c.waits for c in clients)
    assert not [m for c in clients for m in c.heard if isinstance(m, local.OpenStore)]
    for client in clients:
        assert any(
            "store_interface_only), and no address of its node is reached by everybody: they came "
            "by 10.0.0.1, 10.1.0.1. Name a subnet" in note
            for note in notes(client)
        )
    stage.world.air.cut.clear()
    stage.wait(60.0)
    (asked,) = [m for m in clients[0].heard if isinstance(m, local.OpenStore)]
    assert {ready(c).master_addr for c in clients} == {asked.address}
