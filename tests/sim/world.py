"""N cores in one process: their actions performed on the simulated network, events fed back."""

from __future__ import annotations

import random
from functools import partial
from typing import assert_never

import msgspec

from mingled.core import actions, events, local
from mingled.core.events import Event, Rung
from mingled.core.messages import Ack, Advert, Commit, Prepare
from mingled.core.rendezvous import Rendezvous
from mingled.core.words import JobId, Label, NodeId, Nonce, ParticipantId
from tests.sim.checks import Checks, Violation, ensure
from tests.sim.clients import Client
from tests.sim.network import Air, Clock, Link, Side, addresses_of, host_of

LINK_PORT = 29_400
RING_PORT = 41_873
CONNECT_S = 3.0
"""As the real peer link: for one connection, a fresh one being tried every ANEW_S."""

ANEW_S = 0.5
PROVE_S = 5.0
PROVE_ANEW_S = 0.25
SPINS_MAX = 12
"""Ticks that one daemon may need at one instant; more is a busy loop."""

EARLY_SHARE = 0.05
"""How many events are followed by a tick that comes before its time."""

RUNGS: tuple[Rung, ...] = ("mdns", "broadcast")

DECISIVE = (Prepare, Ack, Commit)


class Daemon:
    """One life of a daemon: it ends with a crash, and its successor has another node id."""

    def __init__(self, world: World, host: int, keys: tuple[bytes, ...] = ()) -> None:
        rng = world.rng
        self.keys = keys
        self.host = host
        self.node = NodeId(f"{rng.getrandbits(128):032x}")
        self.alive = True
        self.frozen_until = 0.0
        self.boot = rng.uniform(0.0, 1e6)  #: its clock says this at the world's zero
        self.version: tuple[int, int] | None = None  #: that it speaks, if not ours
        self.core = Rendezvous(
            seed=rng.randbytes(32),
            node=self.node,
            host=f"gpu{host + 1}",
            link_port=LINK_PORT,
            ring_port=RING_PORT,
            addresses=addresses_of(host, world.air.networks),
        )
        self.realms: dict[Label, bytes] = {}  #: the seed of each, as the peer link knows them
        for action in self.core.handle(events.KeysChanged(keys=keys), self.boot):
            self.trusts(action)
        self.ends: dict[int, tuple[Link, Side]] = {}
        self.opening: set[int] = set()
        self.adverts: dict[Nonce, Advert] = {}
        self.listening: dict[Nonce, int] = {}
        self.reserved: dict[Nonce, int] = {}
        self.stores: set[int] = set()  #: ports on which rank 0's clients listen themselves
        self.accepted = 0
        self.tick_at: float | None = None
        self.ticked_at = -1.0
        self.spins = 0

    def trusts(self, action: actions.Action) -> None:
        match action:
            case actions.Trust():
                self.realms[action.realm.label] = action.realm.seed
            case actions.Distrust():
                del self.realms[action.label]


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
        self.fickle = 0.0  #: share of PREPAREs upon which somebody who waits goes away
        self.portless = 0.0  #: share of tries to open a port that fail
        self.mine: str | None = (
            None  #: a daemon that takes this transition crashes among its actions
        )
        self.mines_left = 3
        self.past_adverts: list[Advert] = []
        self.answers: list[actions.Answer | actions.Describe] = []
        self.reattaches = 0.7  #: share of participants that find their new daemon
        self.rejoins = 0.0  #: share of those that join again when somebody is lost
        self.shut_in: set[int] = set()  #: hosts whose link port a firewall closes
        self.harmed = False  #: a host was out of reach for a while
        self.keys: dict[int, tuple[bytes, ...]] = {}  #: of a host; none where it is not in here
        self.had: dict[NodeId, set[bytes]] = {}  #: keys that a daemon has ever had
        self.daemons = [self._daemon(host) for host in range(hosts)]
        self._requests = 0

    def _daemon(self, host: int) -> Daemon:
        daemon = Daemon(self, host, self.keys.get(host, ()))
        self.had[daemon.node] = set(daemon.keys or (b"",))
        return daemon

    def rekey(self, host: int, keys: tuple[bytes, ...]) -> None:
        """Its key file is changed."""
        daemon = self.daemons[host]
        if self.keys.get(host, ()) == keys:
            return
        self.keys[host] = keys
        if daemon.alive:
            self.note(host, f"has keys {[key[:1].decode() for key in keys]}")
            self.had[daemon.node] |= set(keys or (b"",))
            self.deliver(daemon, events.KeysChanged(keys=keys))

    # ------------------------------------------------------------ events in, actions out

    def deliver(self, daemon: Daemon, event: Event) -> None:
        if not daemon.alive:
            return
        if self.clock.now < daemon.frozen_until:
            self.clock.at(daemon.frozen_until, lambda: self.deliver(daemon, event))
            return
        if isinstance(event, events.JoinAsked):
            self._asked(daemon, self.clients[event.participant])
        self.log.append((self.clock.now, daemon.host, "<-", event))
        todo = daemon.core.handle(event, self.clock.now + daemon.boot)
        mined = self.mine is not None and self._steps_on_mine(daemon)
        if mined:  # it dies before any of its actions, between two, or after the last
            todo = todo[: self.rng.randint(0, len(todo))]
        for action in todo:
            self.log.append((self.clock.now, daemon.host, "->", action))
            self._perform(daemon, action)
        if mined:
            self._dies_for_a_while(daemon)
            return
        deadline = self._deadline(daemon)
        if self.rng.random() < EARLY_SHARE:
            end = self.clock.now + 10.0 if deadline is None else deadline
            self.clock.at(self.rng.uniform(self.clock.now, end), lambda: self._early(daemon))
        if deadline is None:
            daemon.tick_at = None
        elif deadline != daemon.tick_at:
            daemon.tick_at = deadline
            self.clock.at(deadline, lambda: self._tick(daemon, deadline))

    def _steps_on_mine(self, daemon: Daemon) -> bool:
        last = {job.story[-1] for job in daemon.core.jobs.values() if job.story}
        if self.mine not in last or not self.mines_left:
            return False
        self.mines_left -= 1
        return True

    def _dies_for_a_while(self, daemon: Daemon) -> None:
        self.crash(daemon.host)
        back = self.clock.now + self.rng.choice((0.05, 2.0))
        self.clock.at(back, lambda: self.restart(daemon.host))

    def _deadline(self, daemon: Daemon) -> float | None:
        """In the world's time. Rounded up by a hair: a tick must not come too early."""
        due = daemon.core.deadline()
        return None if due is None else max(0.0, due - daemon.boot) + 1e-6

    def freeze(self, daemon: Daemon, seconds: float) -> None:
        """Its process stands still; what comes waits."""
        self.note(daemon.host, f"stands still for {seconds:g} s")
        daemon.frozen_until = max(daemon.frozen_until, self.clock.now + seconds)

    def soon(self, daemon: Daemon, event: Event, delay_s: float | None = None) -> None:
        wait_s = self.air.delay() if delay_s is None else delay_s
        self.clock.at(self.clock.now + wait_s, lambda: self.deliver(daemon, event))

    def note(self, host: int, text: str) -> None:
        self.log.append((self.clock.now, host, "**", text))

    def _tick(self, daemon: Daemon, deadline: float) -> None:
        if daemon.tick_at != deadline or not daemon.alive:
            return
        if self.clock.now < daemon.frozen_until:
            self.clock.at(daemon.frozen_until, lambda: self._tick(daemon, deadline))
            return
        daemon.tick_at = None
        daemon.spins = daemon.spins + 1 if daemon.ticked_at == self.clock.now else 0
        daemon.ticked_at = self.clock.now
        if daemon.spins > SPINS_MAX:
            raise Violation(f"busy loop: deadline() of gpu{daemon.host + 1} stays at {deadline}")
        self.deliver(daemon, events.Ticked())

    def _early(self, daemon: Daemon) -> None:
        """A tick before its time finds nothing to do, or a deadline was forgotten."""
        before, now = daemon.core.deadline(), self.clock.now + daemon.boot
        awake = daemon.alive and self.clock.now >= daemon.frozen_until
        if awake and (before is None or now < before):
            done = daemon.core.handle(events.Ticked(), now)
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
                self.checks.answered(daemon, action)
            case actions.Doubt() | actions.Rehold() | actions.Seated():
                pass
            case actions.PublishName() | actions.WithdrawName():
                pass  # names decide nothing
            case actions.Recount() | actions.Measure():
                pass  # nor for these
            case actions.Introduce() | actions.TryPlaces() | actions.OpenTestPort():
                pass  # nobody asks in here
            case actions.Advertise():
                daemon.adverts[action.advert.claim] = action.advert
                self.past_adverts.append(action.advert)
                self.checks.claimed(daemon, action.advert)
                self._spread(daemon, action.advert)
            case actions.Withdraw():
                daemon.adverts.pop(action.claim, None)
                for other in self.others(daemon):
                    if self._hears(daemon, other):
                        self.gone(other, action.label, action.claim)
            case actions.Ask():
                for other in self.others(daemon):
                    if self._hears(daemon, other):
                        answer = partial(self.answer, other, daemon, action.unicast)
                        self.clock.at(self.clock.now + self.air.delay(), answer)
            case actions.Trust() | actions.Distrust():
                daemon.trusts(action)
            case actions.OpenLink():
                self._open(daemon, action)
            case actions.SendFrame():
                self.checks.frame_sent(daemon, action.message)
                end = daemon.ends.get(action.link)
                if end is not None:
                    message = action.message
                    if daemon.version is not None and hasattr(message, "version"):
                        message = msgspec.structs.replace(message, version=daemon.version)
                    end[0].send(end[1], message)
                    if isinstance(message, Prepare) and self.rng.random() < self.fickle:
                        self.clock.at(self.clock.now + self.air.delay(), self._vanishes)
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
            case local.OpenStore():
                self._open_store(daemon, client, action.message)
            case local.Gone(how="lost") if self.rng.random() < self.rejoins:
                self.clock.at(
                    self.clock.now + self.rng.choice((0.1, 1.0, 8.0)), lambda: self.rejoin(client)
                )
            case _:
                pass

    def _open_store(self, daemon: Daemon, client: Client, message: local.OpenStore) -> None:
        chance, port = self.rng.random(), self.rng.randrange(32_768, 61_000)
        if chance < 0.9:
            daemon.stores.add(port)
            opened = events.StoreOpened(
                participant=client.participant, proof=message.proof, port=port
            )
            self.soon(daemon, opened)
        elif chance < 0.95:
            failed = events.StoreFailed(
                participant=client.participant, proof=message.proof, reason="no store"
            )
            self.soon(daemon, failed)

    def rejoin(self, client: Client) -> None:
        """A member was lost, so the same process takes part in the next round."""
        daemon = self.daemons[client.host]
        if client.gone or not daemon.alive or not self.rejoins:
            return
        client.gone = True
        newer = Client(
            ParticipantId(f"{self.rng.getrandbits(128):032x}"),
            msgspec.structs.replace(client.join, timeout_s=20.0),
            client.holder,
            client.runs_s,
        )
        self.join(client.host, newer)

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
            client.holder = holder
        self.clock.at(self.clock.now + client.runs_s + 2.0, lambda: self._ends(client, ended))
        self.beat(client)

    def _ends(self, client: Client, ended: Event) -> None:
        client.gone = True
        self.deliver(self.daemons[client.host], ended)

    def join(self, host: int, client: Client) -> None:
        """A client asks its daemon to take part; without a daemon it fails at once."""
        daemon = self.daemons[host]
        if not daemon.alive:
            return
        client.host = host
        self.clients[client.participant] = client
        self.deliver(
            daemon,
            events.JoinAsked(
                participant=client.participant, join=client.join, holder=client.holder
            ),
        )

    def _asked(self, daemon: Daemon, client: Client) -> None:
        """From now on its time runs."""
        client.joined_at = self.clock.now
        if client.join.timeout_s is not None:
            due = self.clock.now + client.join.timeout_s + 0.001
            self.clock.at(due, lambda: self._due(daemon, client))

    def _due(self, daemon: Daemon, client: Client) -> None:
        """Its time is over. Only while an outcome is open may it wait on, and not for long."""
        if client.waits and daemon.alive:
            if self.clock.now > daemon.frozen_until:
                self.checks.overdue(daemon, client)
            self.clock.at(self.clock.now + 0.5, lambda: self._due(daemon, client))

    def _vanishes(self) -> None:
        """Somebody who waits gives up, just now."""
        waiting = [c for c in self.clients.values() if c.waits]
        if waiting:
            client = self.rng.choice(waiting)
            client.gone = True
            vanished = events.ClientVanished(participant=client.participant)
            self.deliver(self.daemons[client.host], vanished)

    def finish(self, client: Client) -> None:
        """Its work is done; it stays."""
        finished = events.ClientFinished(participant=client.participant)
        self.deliver(self.daemons[client.host], finished)

    def beat(self, client: Client) -> None:
        """From now on it says that it lives, unless it is stopped."""
        every_s = client.join.heartbeat_s
        if every_s is None or client.gone:
            return

        def alive() -> None:
            if self.clock.now >= client.stopped_until:
                said = events.ClientAlive(participant=client.participant)
                self.deliver(self.daemons[client.host], said)
            self.beat(client)

        self.clock.at(self.clock.now + every_s, alive)

    def leave(self, client: Client, *, lost: bool = False, closes: bool = False) -> None:
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
                closes=closes,
            ),
        )

    def cancel(self, host: int, job: JobId, uid: int, user: str) -> int:
        """Somebody there ends the job. The number of the request, for its answer."""
        self._requests += 1
        self.checks.cancel_asked(self.daemons[host], self._requests, job, user)
        self.deliver(
            self.daemons[host],
            events.CancelAsked(request=self._requests, job=job, uid=uid, user=user, reason=""),
        )
        return self._requests

    def addresses(self, host: int) -> None:
        """All that it has: told to the daemon there."""
        daemon = self.daemons[host]
        if daemon.alive:
            every = addresses_of(host, self.air.networks)
            self.deliver(daemon, events.AddressesChanged(addresses=every))

    # ------------------------------------------------------------ discovery

    def others(self, daemon: Daemon) -> list[Daemon]:
        return [d for d in self.daemons if d is not daemon and d.alive]

    def _hears(self, a: Daemon, b: Daemon) -> bool:
        return self.air.meets(a.host, b.host) and not self.air.lost()

    def _spread(self, daemon: Daemon, advert: Advert) -> None:
        for other in self.others(daemon):
            for rung in RUNGS if self.duplicates else RUNGS[:1]:
                if self._hears(daemon, other):
                    self.soon(other, events.AdvertHeard(advert=advert, rung=rung))

    def gone(self, daemon: Daemon, label: Label, claim: Nonce) -> None:
        """Said on every rung."""
        for rung in RUNGS:
            self.soon(daemon, events.AdvertGone(label=label, claim=claim, rung=rung))

    def answer(self, other: Daemon, asker: Daemon, unicast: bool) -> None:
        for advert in list(other.adverts.values()) if other.alive else ():
            if not unicast:
                self._spread(other, advert)
            elif asker.alive and self._hears(other, asker):
                self.soon(asker, events.AdvertHeard(advert=advert, rung="mdns"))

    # ------------------------------------------------------------ links

    def _open(self, daemon: Daemon, action: actions.OpenLink) -> None:
        daemon.opening.add(action.link)
        slow = False
        for address in action.addresses:
            place = host_of(address)
            if (
                place is None
                or place[0] >= len(self.daemons)
                or place[0] in self.shut_in
                or not self.air.talks(daemon.host, place[0], place[1])
            ):
                slow = True
            elif self.daemons[place[0]].alive and action.port == LINK_PORT:
                connect = partial(self.connect, daemon, action.link, action.label, *place)
                late_s = self.air.anew(ANEW_S, 2)
                if late_s >= CONNECT_S:
                    slow = True
                    break
                self.clock.at(self.clock.now + late_s + self.air.delay(), connect)
                return
        wait_s = CONNECT_S if slow else self.air.delay()
        failed = partial(self.failed, daemon, action.link, answered=not slow)
        self.clock.at(self.clock.now + wait_s, failed)

    def failed(self, daemon: Daemon, link: int, *, answered: bool) -> None:
        if link in daemon.opening:
            daemon.opening.discard(link)
            reason = "refused" if answered else "no answer"
            failed = events.LinkFailed(link=link, reason=reason, answered=answered)
            self.deliver(daemon, failed)

    def connect(self, daemon: Daemon, number: int, label: Label, host: int, network: int) -> None:
        other = self.daemons[host]
        if number not in daemon.opening:
            return
        if not (daemon.alive and self.air.talks(daemon.host, host, network)):
            self.failed(daemon, number, answered=False)
            return
        if not other.alive or other.realms.get(label, b"") != daemon.realms[label]:
            self.failed(daemon, number, answered=True)
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
            events.LinkAccepted(
                link=acceptor.number, local=theirs, remote_address=mine.address, label=label
            ),
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
                late_s = min(self.air.anew(PROVE_ANEW_S, 3), PROVE_S)
                wait_s = late_s + self.air.delay()
                self.clock.at(self.clock.now + wait_s, lambda: self.prove(daemon, action, late_s))
            case _:
                assert_never(action)

    def prove(self, daemon: Daemon, action: actions.ProvePath, late_s: float) -> None:
        place = host_of(action.address)
        there = place is not None and place[0] < len(self.daemons) and place[1] < self.air.networks
        if place is not None and there and late_s < PROVE_S:
            target = self.daemons[place[0]]
            reached = self.air.talks(daemon.host, place[0], place[1])
            reached = reached and place[0] not in self.air.firewalled
            if reached and target.alive and self._listens(target, action):
                self.checks.proven(daemon, action)
                mine = addresses_of(daemon.host, self.air.networks)[place[1]]
                proven = events.PathProven(
                    job=action.job,
                    proof=action.proof,
                    address=action.address,
                    port=action.port,
                    local=mine,
                )
                self.soon(daemon, proven)
                return
        refuted = events.PathRefuted(
            job=action.job,
            proof=action.proof,
            address=action.address,
            port=action.port,
            reason="no answer",
        )
        self.soon(daemon, refuted)

    @staticmethod
    def _listens(target: Daemon, action: actions.ProvePath) -> bool:
        if action.port == RING_PORT:
            return action.word == target.node
        if not action.word:
            return action.port in target.stores
        listens = target.listening.get(action.proof) == action.port
        return listens and action.word == action.proof

    # ------------------------------------------------------------ crashes

    def crash(self, host: int, *, power: bool = False) -> None:
        """The daemon is no more; with `power` its host falls silent too."""
        daemon = self.daemons[host]
        if not daemon.alive:
            return
        self.note(host, "power loss" if power else "daemon crash")
        daemon.alive = False
        if power:
            self.harmed = True
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
            self.daemons[host] = daemon = self._daemon(host)
            self.note(host, "daemon starts")
            for client in self.clients.values():
                lives = client.host == host and client.config is not None and not client.gone
                if lives and self.rng.random() < self.reattaches:
                    again = partial(self.reattach, daemon, client)
                    self.clock.at(self.clock.now + self.rng.choice((0.1, 3.0)), again)

    def reattach(self, daemon: Daemon, client: Client) -> None:
        over = client.gone or client.failure is not None
        if over or client.config is None or client.join.adopt:  # a shell has no client that asks
            return
        self._requests += 1
        self.deliver(
            daemon,
            events.ReattachAsked(
                request=self._requests,
                participant=client.participant,
                join=client.join,
                config=client.config,
                holder=client.holder,
            ),
        )
        if client.finished:  # said again, as its client does
            self.finish(client)
