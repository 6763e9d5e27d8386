"""The simulated network: hosts, who reaches whom, and links that behave as TCP does."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from mingled.core import codec, events
from mingled.core.events import Address
from mingled.core.messages import Message, peer_decoder

if TYPE_CHECKING:
    from tests.sim.world import Daemon, World

NETWORKS = ("eth0", "eth1")


def address_of(host: int, network: int) -> str:
    return f"10.{network}.{(host + 1) // 256}.{(host + 1) % 256}"


def addresses_of(host: int, networks: int) -> tuple[Address, ...]:
    return tuple(
        Address(address=address_of(host, k), interface=NETWORKS[k], prefix=24)
        for k in range(networks)
    )


def host_of(address: str) -> tuple[int, int] | None:
    """(host, network) of an address; None for the loopback and for addresses of nobody."""
    parts = address.split(".")
    if len(parts) != 4 or parts[0] != "10":
        return None
    return 256 * int(parts[2]) + int(parts[3]) - 1, int(parts[1])


class Clock:
    """Virtual time: a heap of what is still to happen. Equal times keep the order of planning."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, what))

    def run_until(self, end: float) -> None:
        while self._heap and self._heap[0][0] <= end:
            self.now, _, what = heapq.heappop(self._heap)
            what()
        self.now = end


class Air:
    """What the weather is: loss, delay, partitions, hosts that are down, firewalls."""

    def __init__(self, rng: random.Random, networks: int, loss: float, delay_s: float) -> None:
        self.rng = rng
        self.networks = networks
        self.loss = loss
        self.delay_s = delay_s
        self.cut: set[tuple[int, int, int]] = set()  #: (from host, to host, network)
        self.down: set[int] = set()
        self.firewalled: set[int] = set()  #: hosts whose master port does not answer

    def lost(self) -> bool:
        return self.rng.random() < self.loss

    def delay(self) -> float:
        return self.delay_s * (0.2 + self.rng.expovariate(1.0))

    def anew(self, every_s: float, packets: int) -> float:
        """How late the first of many fresh tries gets through, each of so many packets."""
        late_s = 0.0
        while any(self.lost() for _ in range(packets)):
            late_s += every_s
        return late_s

    def talks(self, a: int, b: int, network: int) -> bool:
        """Both ways: what a connection needs."""
        return self.reaches(a, b, network) and self.reaches(b, a, network)

    def reaches(self, a: int, b: int, network: int) -> bool:
        """From `a` to `b`."""
        if a in self.down or b in self.down:
            return False
        return a == b or (a, b, network) not in self.cut

    def meets(self, a: int, b: int) -> bool:
        """From `a` to `b` over any network: what multicast needs."""
        return any(self.reaches(a, b, k) for k in range(self.networks))

    def split(self, side: set[int], hosts: int, networks: list[int]) -> None:
        for a in side:
            for b in set(range(hosts)) - side:
                for k in networks:
                    self.cut |= {(a, b, k), (b, a, k)}

    def one_way(self, source: int, hosts: int) -> None:
        """Nothing that this host sends arrives anywhere; it hears everybody."""
        for other in set(range(hosts)) - {source}:
            self.cut |= {(source, other, k) for k in range(self.networks)}

    def heal(self) -> None:
        self.cut.clear()
        self.down.clear()
        self.firewalled.clear()
        self.loss = 0.0


class Side:
    """One end of a link, and what it has sent that has not arrived yet (None: the end)."""

    def __init__(self, daemon: Daemon, number: int) -> None:
        self.daemon = daemon
        self.number = number
        self.open = True
        self.sent: deque[tuple[float, bytes | None]] = deque()
        self.last_due = 0.0


class Link:
    """TCP: in order, late where packets are lost, and silent where the cable is cut."""

    def __init__(self, world: World, network: int, opener: Side, acceptor: Side) -> None:
        self.world = world
        self.network = network
        self.sides = (opener, acceptor)
        self.broken = False

    def send(self, side: Side, message: Message) -> None:
        self._push(side, codec.encode(message))

    def close(self, side: Side) -> None:
        """Orderly: what was sent goes out, then the other end hears of it."""
        side.open = False
        side.daemon.ends.pop(side.number, None)
        self._push(side, None)

    def _push(self, side: Side, payload: bytes | None) -> None:
        air, now = self.world.air, self.world.clock.now
        due = now + air.delay()
        while air.lost():
            due += 0.2  # a retransmission
        side.last_due = due = max(due, side.last_due)
        side.sent.append((due, payload))
        self.world.clock.at(due, lambda: self._pump(side))

    def _pump(self, side: Side) -> None:
        other = self.sides[1 - self.sides.index(side)]
        clock, air = self.world.clock, self.world.air
        while side.sent and side.sent[0][0] <= clock.now:
            if self.broken or not other.open:
                side.sent.clear()
                return
            if not air.reaches(side.daemon.host, other.daemon.host, self.network):
                clock.at(clock.now + 0.5, lambda: self._pump(side))
                return
            if not other.daemon.alive:
                side.sent.clear()
                self._reset(side)
                return
            payload = side.sent.popleft()[1]
            if payload is None:
                other.open = False
                other.daemon.ends.pop(other.number, None)
                closed = events.LinkClosed(
                    link=other.number, reason="closed by the other side", answered=True
                )
                self.world.deliver(other.daemon, closed)
            else:
                message = peer_decoder.decode(payload)
                self.world.checks.frame_arrived(other.daemon, side.daemon, message)
                received = events.FrameReceived(link=other.number, message=message)
                self.world.deliver(other.daemon, received)

    def cut(self) -> None:
        """It breaks: what is under way is lost, and each end notices in its own time."""
        self.broken = True
        for side in self.sides:
            side.sent.clear()
            self._reset(side)

    def _reset(self, side: Side) -> None:
        rng = self.world.rng
        answered = rng.random() < 0.7  # else the kernel has given up

        def notice() -> None:
            if side.open and side.daemon.alive:
                side.open = False
                side.daemon.ends.pop(side.number, None)
                self.world.deliver(
                    side.daemon,
                    events.LinkClosed(
                        link=side.number, reason="connection reset", answered=answered
                    ),
                )

        self.world.clock.at(self.world.clock.now + rng.choice((0.0, 0.05, 2.0)), notice)
