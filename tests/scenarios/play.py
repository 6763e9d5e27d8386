"""The stage of the golden stories: the simulator's world without a trace of chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from mingled.core import actions, events, local
from mingled.core.rendezvous import Rendezvous
from mingled.core.table import State
from mingled.core.words import Form
from tests.core.stage import Stage
from tests.sim.clients import Client
from tests.sim.network import Air, addresses_of, host_of
from tests.sim.world import CONNECT_S, LINK_PORT, PROVE_S, RING_PORT, Daemon, World

T = TypeVar("T")


class Calm(random.Random):
    """Fixed bits for identities, and else always the same draw: a story must not become another
    one because the simulator draws once more or once less."""

    def random(self) -> float:
        return 0.5

    def choice(self, seq: Sequence[T]) -> T:  # type: ignore[override]  # typeshed's is stranger
        return seq[0]


class StillAir(Air):
    """Everything takes 1 ms."""

    def delay(self) -> float:
        return self.delay_s


class StoryWorld(World):
    """Firewalls for single ports: `dropped` holds (from host, to host, is it the ring's port?)."""

    def __init__(self, hosts: int) -> None:
        rng = Calm(1)
        super().__init__(rng, hosts, StillAir(rng, networks=1, loss=0.0, delay_s=0.001))
        self.dropped: set[tuple[int, int, bool]] = set()
        self._places: dict[tuple[int, int], str] = {}  #: (host, link) -> where to

    def _open(self, daemon: Daemon, action: actions.OpenLink) -> None:
        places = [f"{address} port {action.port}" for address in action.addresses]
        self._places[daemon.host, action.link] = ", ".join(places)
        super()._open(daemon, action)

    def failed(self, daemon: Daemon, link: int, *, answered: bool) -> None:
        """The real edge names the place, and so must a story."""
        if link in daemon.opening:
            daemon.opening.discard(link)
            why = "Connection refused" if answered else f"no answer within {CONNECT_S:g} s"
            reason = f"{self._places[daemon.host, link]}: {why}"
            failed = events.LinkFailed(link=link, reason=reason, answered=answered)
            self.deliver(daemon, failed)

    def prove(self, daemon: Daemon, action: actions.ProvePath, late_s: float) -> None:
        place = host_of(action.address)
        if place and (daemon.host, place[0], action.port == RING_PORT) in self.dropped:
            refuted = events.PathRefuted(
                job=action.job,
                proof=action.proof,
                address=action.address,
                port=action.port,
                reason=f"no answer within {PROVE_S:g} s",  # as the real edge says it
            )
            self.soon(daemon, refuted, PROVE_S)
            return
        super().prove(daemon, action, late_s)


class Play(Stage):
    """A quiet LAN on which nothing happens but what a story says."""

    def __init__(self, hosts: int) -> None:
        self.story_world = StoryWorld(hosts)
        super().__init__(hosts, self.story_world)
        self.names = [f"gpu{host + 1}" for host in range(hosts)]

    @property
    def released(self) -> list[Client]:
        """In the order in which they were."""
        told = [what for _, _, _, what in self.world.log if isinstance(what, actions.Tell)]
        ready = [tell.participant for tell in told if isinstance(tell.message, local.Ready)]
        return [self.world.clients[participant] for participant in ready]

    def until(self, true: Callable[[], bool]) -> None:
        """Let time pass, for a minute at most."""
        for _ in range(600):
            if true():
                return
            self.wait(0.1)
        raise AssertionError("a minute has passed")

    def elastic(self, host: int, low: int, high: int) -> Client:
        """mingle-wait --nnodes LOW:HIGH on gpu`host`."""
        return self.join(host, size=low, size_max=high, form=Form.LAUNCHER)

    def leads(self, host: int) -> bool:
        return self.state(host) is State.LEADING

    def say(self, text: str) -> None:
        """A line of the story teller's."""
        self.world.note(-1, text)

    def clone(self, host: int, of: int) -> None:
        """gpu`host` was installed from a copy of gpu`of`'s disk. Before anything happens."""
        daemon = self.world.daemons[host - 1]
        daemon.core = Rendezvous(
            seed=self.world.rng.randbytes(32),
            node=daemon.node,
            host=f"gpu{of}",
            link_port=LINK_PORT,
            ring_port=RING_PORT,
            addresses=addresses_of(host - 1, 1),
        )
        self.names[host - 1] = f"gpu{of}"
        self.say(f"10.0.0.{host} is a clone of gpu{of}, host name and all")

    def split(self, *side: int) -> None:
        self.world.harmed = True
        self.say("the network is split: " + ", ".join(f"gpu{h}" for h in side) + " are cut off")
        self.world.air.split({h - 1 for h in side}, len(self.world.daemons), [0])

    def heal(self) -> None:
        self.say("the network is whole again")
        self.world.air.heal()

    def firewall(self, source: int, target: int, *, ring: bool) -> None:
        self.story_world.dropped.add((source - 1, target - 1, ring))

    def no_firewall(self) -> None:
        self.say("the firewall is switched off")
        self.story_world.dropped.clear()

    def kill_daemon(self, host: int) -> None:
        self.say(f"gpu{host}'s daemon is killed")
        self.world.crash(host - 1)

    def power_off(self, host: int) -> None:
        self.world.harmed = True
        self.say(f"gpu{host} loses power")
        self.world.crash(host - 1, power=True)

    def kill(self, client: Client) -> None:
        """SIGKILL for the process that holds the lease."""
        self.say(f"the training process on gpu{client.host + 1} is killed")
        client.gone = True
        killed = events.HolderEnded(participant=client.participant, status=9)
        self.world.deliver(self.world.daemons[client.host], killed)

    def again(self, client: Client) -> Client:
        """What `--on-lost restart` does: CMD is stopped, and the same process joins anew."""
        join = client.join
        client.gone = True
        return self.join(
            client.host + 1,
            rank=join.rank,
            size=join.size_min,
            size_max=join.size_max,
            form=join.form,
            timeout_s=join.timeout_s,
            like=client,
        )
