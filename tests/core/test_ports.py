"""Rank 0's port is taken after it was picked: another one is, or everybody hears why not."""

from __future__ import annotations

from mingled.core import events, local
from mingled.core.words import Nonce
from tests.core.stage import Stage, failed, ready
from tests.sim.clients import Client
from tests.sim.world import Daemon, World


def notes(client: Client) -> str:
    """What it was told of why nothing goes on."""
    return "\n".join(m.note for m in client.heard if isinstance(m, local.Progress))


def test_fault_29_where_no_port_can_be_had_everybody_hears_it() -> None:
    stage = Stage(2)
    stage.world.portless = 1.0
    pair = [stage.join(1, rank=0, timeout_s=20.0), stage.join(2, rank=1, timeout_s=20.0)]
    stage.wait(5.0)
    for client in pair:
        assert client.waits
        assert "gpu1 (10.0.0.1): no port is free" in notes(client)
    stage.wait(20.0)
    for client in pair:
        assert "no port is free" in failed(client, "timeout")


def test_fault_29_a_port_that_is_taken_meanwhile_costs_one_attempt() -> None:
    """Rank 0's own process opens the store, and somebody was quicker."""
    asked: list[Nonce] = []

    class Late(World):
        def _open_store(self, daemon: Daemon, client: Client, message: local.OpenStore) -> None:
            asked.append(message.proof)
            if len(asked) == 1:
                reason = "TCP port 29500 is in use"
                failed = events.StoreFailed(
                    participant=client.participant, proof=message.proof, reason=reason
                )
                self.soon(daemon, failed)
            else:
                daemon.stores.add(29_501)
                opened = events.StoreOpened(
                    participant=client.participant, proof=message.proof, port=29_501
                )
                self.soon(daemon, opened)

    plain = Stage(2).world
    stage = Stage(2, Late(plain.rng, 2, plain.air))
    zero, one = stage.join(1, rank=0, store=True), stage.join(2, rank=1, store=True)
    stage.wait(10.0)
    assert ready(zero).master_port == ready(one).master_port == 29_501
    assert len(asked) == len(set(asked)) == 2
    assert "gpu1 (10.0.0.1): TCP port 29500 is in use" in notes(one)
