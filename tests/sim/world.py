"""N cores in one process: their actions performed on the simulated network, events fed back."""

from __future__ import annotations

import random
from functools import partial
from typing import assert_never

from mingled.core import actions, events, local
from mingled.core.events import Event
from mingled.core.messages import Ack, Advert, Commit, Prepare
from mingled.core.rendezvous import Rendezvous
from mingled.core.words import JobId, NodeId, Nonce, ParticipantId
from tests.sim.checks import Checks, Violation, ensure
from tests.sim.clients import Client
from tests.sim.network import Air, Clock, Link, Side, addresses_of, host_of

LINK_PORT = 29_400
SPINS_MAX = 12
"""Ticks that one daemon may need at one instant; more is a busy loop."""

EARLY_SHARE = 0.05
"""How many events are followed by a tick that comes before its time."""

DECISIVE = (Prepare, Ack, Commit)


class Daemon:
    """One life of a daemon: it ends with a crash, and its successor has another node id."""

    def __init__(self, world: World, host: int) -> None:
        rng = world.rng
        self.host = host
        self.node = NodeId(f"{rng.getrandbits(128):032x}")
        self.alive = True
        self.core = Rendezvous(
            seed=rng.randbytes(32),
            node=self.node,
            host=f"gpu{host + 1}",
            link_port=LINK_PORT,
            addresses=addresses_of(host, world.air.networks),
        )
        self.ends: dict[int, tuple[Link, Side]] = {}
        self.opening: set[int] = set()
        self.adverts: dict[Nonce, Advert] = {}
        self.listening: dict[Nonce, int] = {}
        self.reserved: dict[Nonce, int] = {}
        self.accepted = 0
        self.tick_at: float | None = None
        self.ticked_at = -1.0
        self.spins = 0


class World:
    """Everything under one seed. `log` holds (time, host, direction, what) for the transcript."""

    def __init__(self, rng: random.Random, hosts: int, air: Air) -> None:
        self.rng = rng
        self.air = air
        self.clock = Clock()
        self.checks = Checks(self)
        self.log: list[tuple[float, int, str, object]] = []
        self.clients: dict[ParticipantId, Client] = {}
        self.duplicates = False
        self.adopts = True  #: shells take over the leases that wait for one, mostly
        self.brittle = 0.0  #: share of PREPARE, ACK and COMMIT that take their link with them
        self.portless = 0.0  #: share of tries to open a port that fail
        self.past_adverts: list[Advert] = []
        self.answers: list[actions.Answer | actions.Describe] = []
        self.daemons = [Daemon(self, host) for host in range(hosts)]
        self._requests = 0

    # ------------------------------------------------------------ events in, actions out

    def deliver(self, daemon: Daemon, event: Event) -> None:
        if not daemon.alive:
            return
        self.log.append((self.clock.now, daemon.host, "<-", event))
        for action in daemon.core.handle(event, self.clock.now):
            self.log.append((self.clock.now, daemon.host, "->", action))
            self._perform(daemon, action)
        deadline = daemon.core.deadline()
        if self.rng.random() < EARLY_SHARE:
            end = self.clock.now + 10.0 if deadline is None else deadline
            self.clock.at(self.rng.uniform(self.clock.now, end), lambda: self._early(daemon))
        if deadline is None:
            daemon.tick_at = None
        elif deadline != daemon.tick_at:
            daemon.tick_at = deadline
            self.clock.at(deadline, lambda: self._tick(daemon, deadline))

    def soon(self, daemon: Daemon, event: Event, delay_s: float | None = None) -> None:
        wait_s = self.air.delay() if delay_s is None else delay_s
        self.clock.at(self.clock.now + wait_s, lambda: self.deliver(daemon, event))

    def note(self, host: int, text: str) -> None:
        self.log.append((self.clock.now, host, "**", text))

    def _tick(self, daemon: Daemon, deadline: float) -> None:
        if daemon.tick_at != deadline or not daemon.alive:
            return
        daemon.tick_at = None
        daemon.spins = daemon.spins + 1 if daemon.ticked_at == self.clock.now else 0
        daemon.ticked_at = self.clock.now
        if daemon.spins > SPINS_MAX:
            raise Violation(f"busy loop: deadline() of gpu{daemon.host + 1} stays at {deadline}")
        self.deliver(daemon, events.Ticked())

    def _early(self, daemon: Daemon) -> None:
        """A tick before its time finds nothing to do, or a deadline was forgotten."""
        before = daemon.core.deadline()
        if daemon.alive and (before is None or self.clock.now < before):
            done = daemon.core.handle(events.Ticked(), self.clock.now)
            ensure(not done, f"due before the deadline {before} of gpu{daemon.host + 1}: {done}")
            ensure(daemon.core.deadline() == before, f"deadline {before} moves without an event")

    def _perform(self, daemon: Daemon, action: actions.Action) -> None:
        match action:
            case actions.Tell():
                self.checks.told(daemon, action.participant, action.message)
                self._told(daemon, action)
            case actions.Release():
                self.checks.let_go(action.participant)
            case actions.Answer() | actions.Describe():
                self.answers.append(action)
            case actions.Doubt() | actions.Rehold():
                pass
            case actions.Advertise():
                daemon.adverts[action.advert.claim] = action.advert
                self.past_adverts.append(action.advert)
                self.checks.claimed(daemon, action.advert)
                self._spread(daemon, action.advert)
            case actions.Withdraw():
                daemon.adverts.pop(action.claim, None)
                gone = events.AdvertGone(label=action.label, claim=action.claim)
                for other in self.others(daemon):
                    if self._hears(daemon, other):
                        self.soon(other, gone)
            case actions.Ask():
                for other in self.others(daemon):
                    if self._hears(daemon, other):
                        answer = partial(self.answer, other, daemon, action.unicast)
                        self.clock.at(self.clock.now + self.air.delay(), answer)
            case actions.OpenLink():
                self._open(daemon, action)
            case actions.SendFrame():
                self.checks.frame_sent(daemon, action.message)
                end = daemon.ends.get(action.link)
                if end is not None:
                    end[0].send(end[1], action.message)
                    if isinstance(action.message, DECISIVE) and self.rng.random() < self.brittle:
                        self.note(daemon.host, "the link breaks")
                        end[0].cut()
            case actions.CloseLink():
                daemon.opening.discard(action.link)
                end = daemon.ends.get(action.link)
                if end is not None:
                    end[0].close(end[1])
            case (
                actions.OpenProof()
                | actions.CloseProof()
                | actions.FreePort()
                | actions.ProvePath()
            ):
                self._proof(daemon, action)
            case _:
                raise Violation(f"unknown action {action}")

    # ------------------------------------------------------------ clients

    def _told(self, daemon: Daemon, action: actions.Tell) -> None:
        client = self.clients.get(action.participant)
        if client is None:
            raise Violation(f"told nobody: {action}")
        client.heard.append(action.message)
        match action.message:
            case local.Ready():
                client.config = action.message.config
                client.ended_at = self.clock.now
                self._holds(daemon, client, action.message.token)
            case local.Failed():
                client.failure = action.message
                client.ended_at = self.clock.now
            case _:
                pass

    def _holds(self, daemon: Daemon, client: Client, token: str | None) -> None:
        """The training runs for a while, then its process ends."""
        ended = events.HolderEnded(
            participant=client.participant, status=self.rng.choice((0, 0, 256, 9, None))
        )
        if token is not None and self.adopts and self.rng.random() < 0.7:
            holder = events.Holder(
                pid=client.holder.pid + 100_000,
                identity=f"shell {client.holder.identity}",
                uid=client.holder.uid,
                user=client.holder.user,
                watched=True,
            )
            self._requests += 1
            adopt = events.AdoptAsked(
                request=self._requests, token=token, uid=holder.uid, holder=holder, pid=holder.pid
            )
            self.soon(daemon, adopt, self.rng.random())
        self.clock.at(
            self.clock.now + client.runs_s + 2.0, lambda: self._ends(daemon, client, ended)
        )

    def _ends(self, daemon: Daemon, client: Client, ended: Event) -> None:
        client.gone = True
        self.deliver(daemon, ended)

    def join(self, host: int, client: Client) -> None:
        """A client asks its daemon to take part; without a daemon it fails at once."""
        daemon = self.daemons[host]
        if not daemon.alive:
            return
        client.host = host
        self.clients[client.participant] = client
        client.joined_at = self.clock.now
        if client.join.timeout_s is not None:
            due = self.clock.now + client.join.timeout_s + 0.001
            self.clock.at(due, lambda: self._due(daemon, client))
        self.deliver(
            daemon,
            events.JoinAsked(
                participant=client.participant, join=client.join, holder=client.holder
            ),
        )

    def _due(self, daemon: Daemon, client: Client) -> None:
        """Its time is over. Only while an outcome is open may it wait on, and not for long."""
        if client.waits and daemon.alive:
            self.checks.overdue(daemon, client)
            self.clock.at(self.clock.now + 0.5, lambda: self._due(daemon, client))

    def leave(self, client: Client, *, lost: bool = False) -> None:
        self._requests += 1
        client.gone = True
        self.deliver(
            self.daemons[client.host],
            events.LeaveAsked(
                request=self._requests,
                job=JobId(client.join.job),
                uid=client.holder.uid,
                participant=client.participant,
                lost=lost,
                reason="",
            ),
        )

    # ------------------------------------------------------------ discovery

    def others(self, daemon: Daemon) -> list[Daemon]:
        return [d for d in self.daemons if d is not daemon and d.alive]

    def _hears(self, a: Daemon, b: Daemon) -> bool:
        return self.air.meets(a.host, b.host) and not self.air.lost()

    def _spread(self, daemon: Daemon, advert: Advert) -> None:
        for other in self.others(daemon):
            copies = 2 if self.duplicates else 1
            for _ in range(copies):
                if self._hears(daemon, other):
                    self.soon(other, events.AdvertHeard(advert=advert))

    def answer(self, other: Daemon, asker: Daemon, unicast: bool) -> None:
        for advert in list(other.adverts.values()) if other.alive else ():
            if not unicast:
                self._spread(other, advert)
            elif asker.alive and self._hears(other, asker):
                self.soon(asker, events.AdvertHeard(advert=advert))

    # ------------------------------------------------------------ links

    def _open(self, daemon: Daemon, action: actions.OpenLink) -> None:
        daemon.opening.add(action.link)
        slow = False
        for address in action.addresses:
            place = host_of(address)
            if (
                place is None
                or place[0] >= len(self.daemons)
                or not self.air.reaches(daemon.host, place[0], place[1])
            ):
                slow = True
            elif self.daemons[place[0]].alive and action.port == LINK_PORT:
                connect = partial(self.connect, daemon, action.link, *place)
                self.clock.at(self.clock.now + self.air.delay(), connect)
                return
        wait_s = 1.0 if slow else self.air.delay()
        self.clock.at(self.clock.now + wait_s, lambda: self.failed(daemon, action.link))

    def failed(self, daemon: Daemon, link: int) -> None:
        if link in daemon.opening:
            daemon.opening.discard(link)
            self.deliver(daemon, events.LinkFailed(link=link, reason="no answer"))

    def connect(self, daemon: Daemon, number: int, host: int, network: int) -> None:
        other = self.daemons[host]
        if not (daemon.alive and other.alive and self.air.reaches(daemon.host, host, network)):
            self.failed(daemon, number)
            return
        if number not in daemon.opening:
            return
        daemon.opening.discard(number)
        other.accepted += 2
        opener, acceptor = Side(daemon, number), Side(other, other.accepted)
        link = Link(self, network, opener, acceptor)
        daemon.ends[number] = (link, opener)
        other.ends[acceptor.number] = (link, acceptor)
        theirs = addresses_of(host, self.air.networks)[network]
        mine = addresses_of(daemon.host, self.air.networks)[network]
        self.deliver(
            other,
            events.LinkAccepted(link=acceptor.number, local=theirs, remote_address=mine.address),
        )
        self.deliver(
            daemon, events.LinkOpened(link=number, local=mine, remote_address=theirs.address)
        )

    # ------------------------------------------------------------ the proof

    def _proof(
        self,
        daemon: Daemon,
        action: actions.OpenProof | actions.CloseProof | actions.FreePort | actions.ProvePath,
    ) -> None:
        match action:
            case actions.OpenProof():
                taken = {*action.avoid, *daemon.listening.values(), *daemon.reserved.values()}
                if self.rng.random() < self.portless:
                    failed = events.ProofFailed(
                        job=action.job, proof=action.proof, reason="no port is free"
                    )
                    self.soon(daemon, failed)
                    return
                span = range(action.base, action.base + action.count)
                port = next(p for p in (action.first, *span) if p not in taken)
                daemon.listening[action.proof] = port
                opened = events.ProofOpened(job=action.job, proof=action.proof, port=port)
                self.soon(daemon, opened)
            case actions.CloseProof():
                port_ = daemon.listening.pop(action.proof, None)
                if action.keep and port_ is not None:
                    daemon.reserved[action.proof] = port_
            case actions.FreePort():
                daemon.reserved.pop(action.proof, None)
            case actions.ProvePath():
                delay_s = self.air.delay() + (3.0 if self.air.lost() else 0.0)
                self.clock.at(self.clock.now + delay_s, lambda: self.prove(daemon, action))
            case _:
                assert_never(action)

    def prove(self, daemon: Daemon, action: actions.ProvePath) -> None:
        place = host_of(action.address)
        if place is not None:
            target = self.daemons[place[0]]
            reached = self.air.reaches(daemon.host, place[0], place[1])
            reached = reached and place[0] not in self.air.firewalled
            if reached and target.alive and target.listening.get(action.proof) == action.port:
                self.checks.proven(daemon, action.proof)
                mine = addresses_of(daemon.host, self.air.networks)[place[1]]
                self.soon(daemon, events.PathProven(job=action.job, proof=action.proof, local=mine))
                return
        reason = f"TCP {action.port} on {action.address}: no answer, firewall?"
        refuted = events.PathRefuted(job=action.job, proof=action.proof, reason=reason)
        self.soon(daemon, refuted)

    # ------------------------------------------------------------ crashes

    def crash(self, host: int, *, power: bool = False) -> None:
        """The daemon is no more; with `power` its host falls silent too."""
        daemon = self.daemons[host]
        if not daemon.alive:
            return
        self.note(host, "power loss" if power else "daemon crash")
        daemon.alive = False
        if power:
            self.air.down.add(host)
        for link, side in list(daemon.ends.values()):
            side.open = False
            if not power:
                link.cut()
        daemon.ends.clear()
        for client in self.clients.values():
            if client.host == host and client.waits:
                client.failure = local.Failed(code="daemon", sentence="the daemon died")
                client.ended_at = self.clock.now

    def restart(self, host: int) -> None:
        if not self.daemons[host].alive:
            self.air.down.discard(host)
            self.daemons[host] = Daemon(self, host)
            self.note(host, "daemon starts")
