"""A quiet little LAN for stories: the simulator's world without faults."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from mingled.core import local
from mingled.core.config import Config
from mingled.core.events import Address, Holder
from mingled.core.rendezvous import Rendezvous
from mingled.core.table import State
from mingled.core.words import Form, JobId, NodeId, ParticipantId
from tests.sim.clients import Client
from tests.sim.network import Air
from tests.sim.world import World

JOB = JobId("bert")
HOLDER = Holder(pid=11, identity="11", uid=1_000, user="ann", watched=True)


def one_core(host: str, *addresses: Address) -> Rendezvous:
    """One daemon's, with nothing around it: what it is told and asked is up to the test."""
    return Rendezvous(
        seed=bytes(32),
        node=NodeId("e" * 32),
        host=host,
        link_port=29_490,
        ring_port=41_873,
        addresses=addresses,
    )


class Stage:
    """Hosts gpu1, gpu2, ... 1 ms apart; `wait` lets virtual time pass."""

    def __init__(self, hosts: int = 2, world: World | None = None) -> None:
        rng = random.Random(1)
        self.world = world or World(rng, hosts, Air(rng, networks=1, loss=0.0, delay_s=0.001))
        self._pids = 0

    def join(
        self,
        host: int,
        *,
        rank: int | None = None,
        size: int = 2,
        size_max: int | None = None,
        form: Form = Form.PROCESS,
        timeout_s: float | None = None,
        adopt: bool = False,
        like: Client | None = None,
        user: str = "ann",
        **changes: Any,
    ) -> Client:
        """One participant on gpu`host`; `like`: joined by that client's process again. `size` is
        the least where there is a `size_max`. `changes`: of the Join's other fields."""
        self._pids += 1
        size = 0 if form is Form.PLAIN else size
        join = local.Join(
            job=JOB,
            form=form,
            size_min=size,
            size_max=size_max or size,
            rank=rank,
            timeout_s=timeout_s,
            adopt=adopt,
        )
        join = msgspec.structs.replace(join, **changes)
        pid = self._pids
        uid = 1000 if user == "ann" else 1001
        holder = Holder(pid=pid, identity=str(pid), uid=uid, user=user, watched=True)
        client = Client(
            ParticipantId(f"{pid:032x}"), join, like.holder if like else holder, runs_s=1e6
        )
        self.world.join(host - 1, client)
        return client

    def wait(self, seconds: float = 2.0) -> None:
        self.world.clock.run_until(self.world.clock.now + seconds)

    def core(self, host: int) -> Rendezvous:
        return self.world.daemons[host - 1].core

    def state(self, host: int) -> State:
        job = self.core(host).jobs.get(JOB)
        return job.state if job else State.IDLE

    def wait_for(self, host: int, state: State) -> None:
        """Step until gpu`host` is in that state."""
        for _ in range(100_000):
            if self.state(host) is state:
                return
            self.wait(0.0001)
        raise AssertionError(f"gpu{host} never got to {state}: it is {self.state(host)}")


def ready(client: Client) -> Config:
    assert client.config is not None, str(client)
    return client.config


def failed(client: Client, code: str) -> str:
    """The sentence that the client was told."""
    assert client.failure is not None, str(client)
    assert client.failure.code == code, str(client)
    return client.failure.sentence


def noticed(client: Client) -> list[str]:
    return [m.sentence for m in client.heard if isinstance(m, local.Notice)]


def fates(client: Client) -> list[tuple[int, str]]:
    """What the client was told of its round's members, in order."""
    return [(m.rank, m.how) for m in client.heard if isinstance(m, local.Gone)]
