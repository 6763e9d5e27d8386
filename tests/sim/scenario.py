"""From one seed: who joins what and when, and which faults come in between."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import msgspec

from mingled.core import events, local
from mingled.core.events import Holder
from mingled.core.messages import Advert
from mingled.core.software import Software
from mingled.core.words import Form, JobId, Nonce, ParticipantId
from tests.sim.clients import Client
from tests.sim.network import Air, addresses_of
from tests.sim.world import Daemon, World

FAULTS_END_S = 40.0
LEASES_END_S = 12.0
"""Leases kept for a shell that never came are over after this."""

LIVENESS_S = 60.0
"""Once the network is whole: a join that can succeed needs no longer than this."""

EMPTY_S = 60.0
"""Once everybody has left, nothing is kept for longer than this: silence is noticed by then."""

SOFTWARE = (
    *(Software(torch="2.13.0", git="a" * 40, dirty=False),) * 3,
    Software(torch="2.11.0", git="a" * 40, dirty=False),
    Software(torch="2.13.0", git="a" * 40, dirty=True),
    Software(torch="2.13.0", git="b" * 40, dirty=False),
    Software(why=(("torch", "no torch is found"),)),
    None,
)
"""That a participant runs, most of them the same."""

SHAPES = ("auto", "auto", "explicit", "mixed", "process", "range", "plain")


OLD, NEW = b"o" * 32, b"n" * 32
"""Cluster keys, of which one follows the other."""


class Scenario:
    """Plans one run. The faults stop at FAULTS_END_S; then everything heals and must converge."""

    def __init__(self, seed: int, hosts: int | None = None) -> None:
        self.rng = rng = random.Random(seed)
        #: for what came later, so that a seed that shows something goes on to show it
        self.extra = random.Random(f"{seed} extra")
        self.hosts = hosts or rng.randint(1, 6)
        self.air = Air(
            rng,
            networks=rng.choice((1, 1, 2)),
            loss=rng.choice((0.0, 0.0, 0.1, 0.3, 0.5)),
            delay_s=rng.choice((0.001, 0.005, 0.05, 0.3)),
        )
        self.world = World(rng, self.hosts, self.air)
        self.world.duplicates = rng.random() < 0.3
        self.world.portless = 0.02
        self.world.fickle = rng.choice((0.0, 0.3))
        self.world.brittle = rng.choice((0.0, 0.0, 0.05))
        self.world.rejoins = rng.choice((0.0, 0.5, 1.0))
        self.jobs = [JobId(f"job-{k}") for k in range(rng.choice((1, 1, 2)))]
        self.shape = {job: rng.choice(SHAPES) for job in self.jobs}
        self.size = {job: rng.randint(1, self.hosts + 1) for job in self.jobs}
        self.asked: list[tuple[JobId, int]] = []  #: jobs cancelled in the end, by which request
        self.fresh: list[Client] = []  #: of the last wave
        self._pids = 0
        # A source of its own, so that older seeds still play what they played.
        self._tastes = random.Random(f"software {seed}")
        self._keyring = random.Random(f"keys {seed}")
        self._cancels = random.Random(f"cancels {seed}")
        self.cancels = self._cancels.random() < 0.5  #: in the end, rather than everybody leaves
        self.choosy = self._tastes.choice((0.0, 0.0, 0.3))

    # ------------------------------------------------------------ clients

    def client(self, job: JobId, rank: int | None, timeout_s: float | None) -> Client:
        rng, size, shape = self.rng, self.size[job], self.shape[job]
        self._pids += 1
        low = high = size
        form = Form.PROCESS if shape == "process" else Form.LAUNCHER
        if shape == "range":
            low, high = max(1, size - 1), size + 1
        elif shape == "plain":
            form, low, high = Form.PLAIN, 0, 0
        if rank is not None and form is not Form.PLAIN and rank >= high:
            rank = None
        join = local.Join(
            job=job,
            form=form,
            size_min=low,
            size_max=high,
            rank=rank,
            nproc=2 if form is Form.LAUNCHER else 1,
            timeout_s=timeout_s,
            adopt=rng.random() < 0.2,
            wait=rng.random() < 0.95,
            store=form is not Form.PLAIN and rng.random() < 0.2,
            last_call_s=rng.choice((None, None, 0.5)),
            stop_grace_s=rng.choice((5.0, 10.0)),
            software=self._software(),
            require_same=self._requires(),
        )
        if not join.adopt and self.extra.random() < 0.25:
            join = msgspec.structs.replace(join, heartbeat_s=1.0)
        holder = Holder(
            pid=self._pids,
            identity=f"{self._pids}",
            uid=1000,
            user="ann",
            watched=rng.random() < 0.8,
        )
        participant = ParticipantId(f"{rng.getrandbits(128):032x}")
        return Client(participant, join, holder, runs_s=rng.choice((0.5, 5.0, 30.0)))

    def _software(self) -> Software | None:
        return self._tastes.choice(SOFTWARE) if self.choosy else SOFTWARE[0]

    def _requires(self) -> tuple[str, ...]:
        if self._tastes.random() >= self.choosy:
            return ()
        return self._tastes.choice((("torch",), ("git",), ("torch", "git")))

    def ranks(self, job: JobId) -> list[int | None]:
        """What each of one wave asks for."""
        size, shape = self.size[job], self.shape[job]
        if shape in ("explicit", "plain"):
            return list(range(size))
        if shape == "mixed":
            return [rank if self.rng.random() < 0.5 else None for rank in range(size)]
        return [None] * size

    def wave(self, job: JobId, start_s: float, spread_s: float, timeout_s: float | None) -> None:
        """One launch of a job, with the slips that people make."""
        for rank in self.ranks(job):
            self.plan_join(job, rank, start_s + self.rng.uniform(0, spread_s), timeout_s)

    def plan_join(self, job: JobId, rank: int | None, when: float, timeout_s: float | None) -> None:
        client = self.client(job, rank, timeout_s)
        host = self.rng.randrange(self.hosts)
        self.world.clock.at(when, lambda: self.world.join(host, client))

    def plan_clients(self) -> None:
        rng = self.rng
        for job in self.jobs:
            start_s = 0.0
            for _ in range(rng.randint(1, 3)):
                timeout_s = rng.choice((None, 3.0, 15.0, 60.0))
                self.wave(job, start_s, rng.choice((0.0, 0.1, 5.0)), timeout_s)
                start_s += rng.uniform(1.0, 12.0)
            for _ in range(rng.choice((0, 0, 1, 3))):  # one too many, or one who is wrong
                rank = rng.choice((None, 0, 0, 1, 2))
                if self.shape[job] == "plain" and rank is None:
                    rank = 1
                self.plan_join(job, rank, rng.uniform(0, 20), rng.choice((None, 10.0)))
        for _ in range(rng.choice((0, 1, 4))):
            self.world.clock.at(rng.uniform(0, FAULTS_END_S), self._somebody_ends)

    def _somebody_ends(self) -> None:
        rng, world = self.rng, self.world
        there = [c for c in world.clients.values() if not c.gone and c.failure is None]
        if not there:
            return
        client = rng.choice(there)
        daemon = world.daemons[client.host]
        how = rng.choice(("vanish", "leave", "kill", "again", "other size", "other user"))
        if self.extra.random() < 0.25:
            how = self.extra.choice(("finish", "stop"))
        world.note(client.host, f"{client}: {how}")
        if how == "leave":
            world.leave(client, lost=rng.random() < 0.5, closes=self.extra.random() < 0.2)
        elif how == "finish":
            client.finished = True
            world.finish(client)
        elif how == "stop":
            stop_s = self.extra.choice((3.0, 25.0))
            client.stopped_until = min(FAULTS_END_S, world.clock.now + stop_s)
        elif how in ("again", "other size", "other user"):
            self._join_beside(client, how)
        else:
            # A lease outlives its client's connection: the process goes on.
            client.gone = how == "kill" or client.waits
            if how == "vanish" or rng.random() < 0.5:
                world.deliver(daemon, events.ClientVanished(participant=client.participant))
            if how == "kill":
                killed = events.HolderEnded(participant=client.participant, status=9)
                world.soon(daemon, killed, 0.01)

    def _join_beside(self, client: Client, how: str) -> None:
        """A notebook cell run twice; the wrong number; somebody else's job."""
        job = JobId(client.join.job)
        newer = self.client(job, client.join.rank, 20.0)
        if how == "again":
            newer.holder = client.holder
        elif how == "other user":
            newer.holder = Holder(pid=9, identity="bob", uid=1001, user="bob", watched=True)
        elif newer.join.form is not Form.PLAIN:
            rank = newer.join.rank
            newer.join = local.Join(
                job=job, form=newer.join.form, size_min=20, size_max=20, rank=rank, timeout_s=5.0
            )
        self.world.join(
            self.rng.randrange(self.hosts) if how == "other size" else client.host, newer
        )

    # ------------------------------------------------------------ faults

    def plan_faults(self) -> None:
        kinds: tuple[Callable[[], None], ...] = (
            self._break_links,
            self._break_links,
            self._partition,
            self._partition,
            self._crash,
            self._power,
            self._stale_advert,
            self._forged_advert,
            self._forged_goodbye,
            self._firewall,
            self._new_addresses,
            self._moves,
            self._stop,
            self._one_way,
            self._freeze,
            self._suspend,
            self._other_version,
        )
        for _ in range(self.rng.choice((0, 1, 3, 8))):
            self.world.clock.at(self.rng.uniform(0, FAULTS_END_S), self.rng.choice(kinds))
        self._plan_keys()
        for _ in range(self._cancels.choice((0, 0, 0, 1, 2))):
            when = self._cancels.uniform(0.0, FAULTS_END_S)
            self.world.clock.at(when, self._somebody_cancels)

    def _plan_keys(self) -> None:
        """Now and then a host has another key for a while, or all of them change theirs."""
        keyring, world = self._keyring, self.world
        if keyring.random() < 0.1:
            when, host = keyring.uniform(0, FAULTS_END_S), keyring.randrange(self.hosts)
            world.clock.at(when, lambda: self._stranger(host))
        elif keyring.random() < 0.2:
            for host in range(self.hosts):
                world.rekey(host, (OLD,))
            start_s = keyring.uniform(0, FAULTS_END_S / 2)
            for n, keys in enumerate(((OLD, NEW), (NEW, OLD), (NEW,))):
                for host in range(self.hosts):
                    when = start_s + 5.0 * n + keyring.uniform(0.0, 4.0)
                    world.clock.at(when, partial(world.rekey, host, keys))

    def _stranger(self, host: int) -> None:
        self.world.harmed = True
        self.world.crash(host)
        self.world.keys[host] = (b"s" * 32,)
        self.world.restart(host)

    def _daemon(self) -> Daemon:
        return self.rng.choice(self.world.daemons)

    def _break_links(self) -> None:
        self.world.note(-1, "links break")
        self.world.harmed = True
        for daemon in self.world.daemons:
            for link, _ in list(daemon.ends.values()):
                if self.rng.random() < 0.5:
                    link.cut()

    def _partition(self) -> None:
        networks = [k for k in range(self.air.networks) if self.rng.random() < 0.7] or [0]
        side = {h for h in range(self.hosts) if self.rng.random() < 0.5}
        self.world.note(-1, f"partition: {sorted(side)} cut off on networks {networks}")
        self.world.harmed = True
        self.air.split(side, self.hosts, networks)
        self._later(self.rng.choice((0.5, 5.0, 30.0)), self.air.cut.clear, "partition heals")

    def _crash(self) -> None:
        host = self._daemon().host
        self.world.crash(host)
        self._later(self.rng.choice((0.05, 2.0)), lambda: self.world.restart(host), "")

    def _power(self) -> None:
        host = self._daemon().host
        self.world.harmed = True
        self.world.crash(host, power=True)
        self._later(self.rng.choice((5.0, 25.0)), lambda: self.world.restart(host), "")

    def _one_way(self) -> None:
        self.world.harmed = True
        host = self._daemon().host
        self.world.note(host, "is heard by nobody")
        self.air.one_way(host, self.hosts)
        self._later(self.rng.choice((2.0, 20.0)), self.air.cut.clear, "it is heard again")

    def _freeze(self) -> None:
        """The daemon alone is stopped: its host still takes connections."""
        self.world.harmed = True
        self.world.freeze(self._daemon(), self._pause_s())

    def _pause_s(self) -> float:
        left_s = FAULTS_END_S - self.world.clock.now
        return min(left_s, self.rng.choice((1.0, 4.0, 25.0)))

    def _suspend(self) -> None:
        """A lid is shut: nothing runs, nothing answers, and the clock goes on."""
        self.world.harmed = True
        daemon, seconds = self._daemon(), self._pause_s()
        self.air.down.add(daemon.host)
        self.world.freeze(daemon, seconds)
        self._later(seconds, lambda: self.air.down.discard(daemon.host), "the lid is open")

    def _other_version(self) -> None:
        daemon = self._daemon()
        self.world.note(daemon.host, "speaks another version")
        daemon.version = self.rng.choice(((2, 0), (1, 9)))

    def _stop(self) -> None:
        """An orderly end: the core is told, then the process goes."""
        daemon = self._daemon()
        if daemon.alive and self.world.clock.now >= daemon.frozen_until:
            self.world.deliver(daemon, events.Stopped(reason="SIGTERM"))
            self.world.checks.stopped(daemon)
            for link, side in list(daemon.ends.values()):
                link.close(side)
            self.world.crash(daemon.host)
            self._later(1.0, lambda: self.world.restart(daemon.host), "")

    def _stale_advert(self) -> None:
        if self.world.past_adverts:
            advert = self.rng.choice(self.world.past_adverts)
            for daemon in self.world.daemons:
                if advert.claim not in daemon.adverts and self.rng.random() < 0.7:
                    self.world.soon(daemon, events.AdvertHeard(advert=advert, rung="mdns"))

    def _forged_advert(self) -> None:
        """Of a job that is known, with a claim that nobody made, pointing anywhere."""
        if not self.world.past_adverts:
            return
        real = self.rng.choice(self.world.past_adverts)
        where = addresses_of(self.rng.randrange(self.hosts + 1), 1)
        claim = Nonce(f"{self.rng.getrandbits(120):032x}")
        forged = events.AdvertHeard(advert=_repoint(real, claim, where[0].address), rung="mdns")
        for daemon in self.world.daemons:
            self.world.soon(daemon, forged)

    def _forged_goodbye(self) -> None:
        if self.world.past_adverts:
            advert = self.rng.choice(self.world.past_adverts)
            for daemon in self.world.daemons:
                self.world.gone(daemon, advert.label, advert.claim)

    def _firewall(self) -> None:
        host = self._daemon().host
        self.world.note(host, "firewall on the master port")
        self.air.firewalled.add(host)
        self._later(self.rng.choice((2.0, 20.0)), self.air.firewalled.clear, "firewall gone")

    def _new_addresses(self) -> None:
        daemon = self._daemon()
        addresses = addresses_of(daemon.host, self.air.networks)
        self.world.deliver(daemon, events.AddressesChanged(addresses=addresses[::-1]))

    def _moves(self) -> None:
        """A cable is pulled: one of two addresses is gone, and its daemon alone is told."""
        if self.air.networks < 2:
            return
        daemon, network = self._daemon(), self.rng.randrange(self.air.networks)
        self.world.note(daemon.host, f"has no address on network {network}")
        pairs = {(daemon.host, h, network) for h in range(self.hosts) if h != daemon.host}
        pairs |= {(b, a, k) for a, b, k in pairs}
        self.air.cut |= pairs
        every = addresses_of(daemon.host, self.air.networks)
        left = tuple(a for k, a in enumerate(every) if k != network)
        self.world.deliver(daemon, events.AddressesChanged(addresses=left))

        def back() -> None:
            self.air.cut -= pairs
            self.world.addresses(daemon.host)

        self._later(self.rng.choice((2.0, 20.0)), back, "the address is back")

    def _later(self, wait_s: float, what: Callable[[], None], note: str) -> None:
        def happen() -> None:
            if note:
                self.world.note(-1, note)
            what()

        self.world.clock.at(self.world.clock.now + wait_s, happen)

    # ------------------------------------------------------------ then everything must converge

    def heal(self) -> None:
        self.world.note(-1, "everything heals")
        self.air.heal()
        self.world.mine = None
        self.world.brittle = self.world.rejoins = self.world.fickle = 0.0
        for host in range(self.hosts):
            self.world.restart(host)
            self.world.daemons[host].version = None
            if self.world.keys.get(host, ())[:1] == (b"s" * 32,):  # as its administrator mends it
                self.world.crash(host)
                self.world.keys[host] = ()
                self.world.restart(host)
            self.world.addresses(host)

    def clear_away(self) -> dict[JobId, list[Client]]:
        """Everybody leaves, except those waiting who are topped up to a whole job, by job."""
        kept: dict[JobId, list[Client]] = {}
        for job in self.jobs:
            clients = [c for c in self.world.clients.values() if c.join.job == job and not c.gone]
            patient = [c for c in clients if c.waits and c.join.timeout_s is None]
            plain = [c for c in patient if self._ordinary(c, job)]
            top_up = self.shape[job] in ("auto", "process") and self.rng.random() < 0.6
            kept[job] = plain[: self.size[job]] if top_up else []
            for client in clients:
                if client not in kept[job] and client.failure is None:
                    self.world.leave(client)
        return kept

    def last_wave(self, kept: dict[JobId, list[Client]]) -> list[Client]:
        """Each job is launched once more, or topped up; whoever this gives must be released."""
        expected: list[Client] = []
        for job in self.jobs:
            keep = [c for c in kept[job] if c.waits]
            fresh = [self.client(job, r, LIVENESS_S) for r in self.ranks(job)[len(keep) :]]
            self.fresh += fresh
            for client in fresh:
                client.runs_s = 3 * LIVENESS_S
                join = msgspec.structs.replace(client.join, wait=True, software=SOFTWARE[0])
                if keep:  # which run this or that, and may not fit
                    join = msgspec.structs.replace(join, require_same=())
                client.join = join
                self._start(client)
            together = [*keep, *fresh]
            # With a range, a round of the first few is right, and the last waits for the next.
            expected += together if self.shape[job] != "range" else []
        return expected

    def told_of_waiters(self) -> list[Client]:
        """Whoever of the last wave is in a running round although somebody of it still waits, and
        does not know that."""
        uninformed = []
        for job in self.jobs:
            wave = [c for c in self.fresh if c.join.job == job and not c.gone]
            if not any(c.waits for c in wave):
                continue
            news = (local.Waiting, local.Gone)
            uninformed += [
                c
                for c in wave
                if c.config is not None and not any(isinstance(m, news) for m in c.heard)
            ]
        return uninformed

    def _somebody_cancels(self) -> None:
        """A job's owner, or an administrator, where somebody of it is; or somebody else."""
        job = self._cancels.choice(self.jobs)
        there = [
            c
            for c in self.world.clients.values()
            if c.join.job == job
            and not c.gone
            and c.failure is None
            and self.world.daemons[c.host].alive
        ]
        if not there:
            return
        client = self._cancels.choice(there)
        holder = client.holder
        uid, user = self._cancels.choice(
            ((holder.uid, holder.user), (holder.uid, holder.user), (0, "root"), (1007, "eve"))
        )
        self.world.note(client.host, f"{user} cancels {job}")
        self.world.cancel(client.host, job, uid, user)

    def everybody_is_cancelled(self) -> None:
        """Each job by its owner, from any of its hosts."""
        for job in self.jobs:
            there = [d for d in self.world.daemons if job in d.core.jobs and d.core.jobs[job].seats]
            if there:
                daemon = self._cancels.choice(there)
                holder = next(iter(daemon.core.jobs[job].seats.values())).holder
                request = self.world.cancel(daemon.host, job, holder.uid, holder.user)
                self.asked.append((job, request))

    def everybody_leaves(self) -> None:
        for client in self.world.clients.values():
            if not client.gone:
                self.world.leave(client)

    def _ordinary(self, client: Client, job: JobId) -> bool:
        join = client.join
        return join.rank is None and join.size_min == self.size[job] and not join.require_same

    def _start(self, client: Client) -> None:
        host = self.rng.randrange(self.hosts)
        when = self.world.clock.now + self.rng.uniform(0.0, 3.0)
        self.world.clock.at(when, lambda: self.world.join(host, client))


def _repoint(advert: Advert, claim: Nonce, address: str) -> Advert:
    return msgspec.structs.replace(advert, claim=claim, addresses=(address,))
