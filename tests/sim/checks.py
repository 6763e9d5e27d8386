"""The design's invariants, asserted at every step of a simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core import actions, local, messages
from mingled.core.config import Config
from mingled.core.messages import Advert
from mingled.core.table import BETWEEN
from mingled.core.words import Form, JobId, NodeId, Nonce, ParticipantId
from tests.sim.network import host_of

if TYPE_CHECKING:
    from tests.sim.clients import Client
    from tests.sim.world import Daemon, World

GRACE_S = 40.0
"""A join may outlast its timeout while an outcome is open: PREPARE (6 s), silence (15 s), the
search for the outcome (5 to 11 s), and what packet loss adds."""

CANCEL_S = 8.5
"""`Settings.cancel_s`, and the way of the last answer."""


class Violation(AssertionError):
    """An invariant does not hold."""


def ensure(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)


class Checks:
    """What the world has seen, as evidence that no core can touch."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._claimants: dict[str, str] = {}  #: claim -> node
        self._rosters: dict[tuple[str, int], Config] = {}
        self._sealed_in: dict[str, tuple[str, int]] = {}  #: participant -> (claim, round)
        self._prepared: dict[str, messages.Prepare] = {}  #: by proof
        self._asked: dict[tuple[str, str], messages.Prepare] = {}  #: (node, proof)
        self._paths: dict[tuple[str, str], set[tuple[str, int]]] = {}  #: (node, proof), proven
        self._acked: set[tuple[str, Nonce]] = set()  #: (node, proof), arrived at the leader
        self._sent: set[tuple[str, str, int]] = set()
        self._waiting_since: dict[str, float] = {}
        self._cancels: dict[
            int, tuple[float, JobId, str]
        ] = {}  #: by request: when, of what, by whom
        self.released = 0

    # ------------------------------------------------------------ evidence

    def claimed(self, daemon: Daemon, advert: Advert) -> None:
        other = self._claimants.setdefault(advert.claim, daemon.node)
        ensure(other == daemon.node, f"two nodes lead claim {advert.claim}")

    def proven(self, daemon: Daemon, action: actions.ProvePath) -> None:
        place = (action.address, action.port)
        self._paths.setdefault((daemon.node, action.proof), set()).add(place)

    def frame_sent(self, daemon: Daemon, message: messages.Message) -> None:
        if isinstance(message, messages.Prepare):
            self._prepared[message.proof] = message
        elif isinstance(message, messages.Ack):
            prepare = self._asked[daemon.node, message.proof]
            wanted = self._ring(daemon.node, prepare)
            wanted.add((prepare.master_addr, prepare.master_port))
            self._has_proven(daemon, wanted, message.proof)
        elif isinstance(message, messages.Commit):
            self._has_proven(
                daemon, self._ring(daemon.node, self._prepared[message.proof]), message.proof
            )

    def _ring(self, node: str, prepare: messages.Prepare) -> set[tuple[str, int]]:
        """Where the ranks after this node's own are, on other nodes."""
        members = prepare.members
        places = set()
        for member in members:
            after = members[(member.rank + 1) % len(members)]
            if member.node == node and after.node != node:
                home = after.node == members[0].node
                address = prepare.master_addr if home else after.address
                places.add((address, prepare.ring_ports[after.rank]))
        return places

    def _has_proven(self, daemon: Daemon, wanted: set[tuple[str, int]], proof: str) -> None:
        lacks = wanted - self._paths.get((daemon.node, proof), set())
        ensure(not lacks, f"gpu{daemon.host + 1} agrees with {lacks} unproven")

    def frame_arrived(self, at: Daemon, sender: Daemon, message: messages.Message) -> None:
        if isinstance(message, messages.Prepare):
            self._asked[at.node, message.proof] = message
        elif isinstance(message, messages.Ack) and at.alive:
            self._acked.add((sender.node, message.proof))

    # ------------------------------------------------------------ what clients hear

    def told(self, daemon: Daemon, participant: ParticipantId, message: local.Local) -> None:
        client = self._world.clients[participant]
        if isinstance(message, local.Ready):
            ensure(client.failure is None, f"{client}: released after it failed")
            ensure(client.config is None, f"{client}: released twice")
            ensure(message.participant == participant, f"{client}: another's config")
            self._released(daemon, participant, message.config)
        elif isinstance(message, local.Failed):
            ended = message.code == "cancelled"  # its lease, after its release
            ensure(client.config is None or ended, f"{client}: fails after its release: {message}")
            ensure(client.failure is None, f"{client}: fails twice: {message.sentence}")
            ensure(client.join.job in message.sentence, f"no job named in {message.sentence!r}")
            if message.stop:
                self._cancelled(client)
        elif isinstance(message, local.Gone) and message.how == "lost":
            self._lost(client, message)

    def _lost(self, client: Client, message: local.Gone) -> None:
        """Nobody is called lost for silence who runs on a host that was in reach all the time, nor
        as stopped who was not; and what was said to be finished cannot be lost any more."""
        if client.config is None:
            return  # it ended while the outcome of its round was open
        finished = [m for m in client.heard if isinstance(m, local.Gone) and m.how == "finished"]
        known = (message.round, message.rank) in [(m.round, m.rank) for m in finished]
        ensure(not known, f"{client}: told that it is lost after it had finished: {message}")
        participant = client.config.members[message.rank].participant
        member = self._world.clients[ParticipantId(participant)]
        if message.reason.startswith("stopped"):
            ensure(member.gone or member.stopped_until > 0, f"{client}: told a lie: {message}")
        elif message.reason.startswith("silent"):
            excused = self._world.harmed or self._world.air.loss > 0.3
            ensure(member.gone or excused, f"{client}: told a lie: {message}")

    # ------------------------------------------------------------ cancels

    def cancel_asked(self, daemon: Daemon, request: int, job: JobId, user: str) -> None:
        self._cancels[request] = (self._world.clock.now, job, user)

    def _cancelled(self, client: Client) -> None:
        """Nobody is told of a cancel that nobody asked for, or of a stranger's."""
        leads = {
            self._world.clients[ParticipantId(c.members[0].participant)].holder.user
            for c in self._rosters.values()
            if c.job == client.join.job
        }
        askers = {user for _, job, user in self._cancels.values() if job == client.join.job}
        # Where no round is sealed yet, rank 0's owner is whoever was first there.
        allowed = {client.holder.user, "root"} | leads | {"ann"}
        ensure(bool(askers & allowed), f"{client}: cancelled by {askers}, not by {allowed}")

    def answered(self, daemon: Daemon, action: actions.Answer | actions.Describe) -> None:
        """In time; and where a node is said to have obeyed, nobody is left who was there then."""
        asked = self._cancels.get(action.request)
        message = action.message if isinstance(action, actions.Answer) else None
        if asked is None or not isinstance(message, local.Cancelled):
            return
        since, job, _ = asked
        took_s = self._world.clock.now - since
        ensure(took_s < CANCEL_S or self._world.harmed, f"a cancel took {took_s:g} s")
        for node in message.nodes:
            if node.host == "elsewhere":
                continue
            host = int(node.host.removeprefix("gpu")) - 1
            there = self._world.daemons[host]
            if node.flaw or node.kept or there.node != node.node or job not in there.core.jobs:
                continue
            for seat in there.core.jobs[job].seats.values():
                late = seat.since > since + there.boot or seat.ending is not None
                ensure(late, f"{node.host} has not ended {self._world.clients[seat.participant]}")

    def confirmed(self, job: JobId, request: int) -> None:
        """All was well when the job was cancelled: it is over everywhere, and that is said."""
        answers = [a for a in self._world.answers if a.request == request]
        nodes = [
            node
            for answer in answers
            if isinstance(answer, actions.Answer) and isinstance(answer.message, local.Cancelled)
            for node in answer.message.nodes
        ]
        ensure(bool(nodes), f"no answer to the cancel of {job}: {answers}")
        if any(node.host == "elsewhere" for node in nodes):
            return  # a plain job without rank 0, or two leaders, each with a round of its own
        flaws = [node for node in nodes if node.flaw or node.kept]
        air = self._world.air
        if flaws and (air.loss or air.delay_s >= 0.3):
            return  # an answer came late, after the peer's job was over: that is said
        ensure(not flaws, f"{job} is whole, and these did not end: {flaws}")
        for daemon in self._world.daemons:
            known = daemon.core.jobs.get(job)
            left = [self._world.clients[p] for p in known.seats] if known is not None else []
            ensure(not left, f"gpu{daemon.host + 1} keeps {[str(c) for c in left]} of {job}")

    def let_go(self, participant: ParticipantId) -> None:
        pass

    def stopped(self, daemon: Daemon) -> None:
        """An orderly stop has answered everybody who waited there."""
        for client in self._world.clients.values():
            if client.host == daemon.host:
                ensure(not client.waits, f"{client}: the daemon stops and does not say so")

    def overdue(self, daemon: Daemon, client: Client) -> None:
        """Called every so often for a client that waits although its timeout is over."""
        job = daemon.core.jobs.get(JobId(client.join.job))
        undecided = job is not None and job.state in BETWEEN
        ensure(undecided, f"{client}: without an outcome after its timeout")
        late_s = self._world.clock.now - client.joined_at - (client.join.timeout_s or 0.0)
        ensure(late_s < GRACE_S, f"{client}: {late_s:g} s late")

    def empty(self) -> None:
        """Long after everybody has left: no job, link, port, listener, advert or timer is kept."""
        for daemon in self._world.daemons:
            where, core = f"gpu{daemon.host + 1}, empty,", daemon.core
            jobs = {
                j: (
                    job.state.value,
                    [*job.story][-5:],
                    [(h.key, h.fates, h.links, h.leads) for h in job.rounds.helds],
                    [*job.seats],
                )
                for j, job in core.jobs.items()
            }
            ensure(not jobs, f"{where} keeps jobs {jobs}")
            ensure(not daemon.ends, f"{where} keeps links {sorted(daemon.ends)}")
            ensure(not daemon.listening, f"{where} listens on {daemon.listening}")
            ensure(not daemon.reserved, f"{where} keeps ports {daemon.reserved}")
            ensure(not core._ctx.ports, f"{where} avoids ports {core._ctx.ports}")
            ensure(not core._ends, f"{where} remembers links {core._ends}")
            ensure(not daemon.adverts, f"{where} advertises {list(daemon.adverts)}")
            ensure(core.deadline() is None, f"{where} waits for {core.deadline()}")

    def _released(self, daemon: Daemon, participant: ParticipantId, config: Config) -> None:
        self.released += 1
        ensure(config.claim in self._claimants, f"released by an unknown claim {config.claim}")
        if config.form is Form.PLAIN:
            self._plain(daemon, participant, config)
            return
        key = (config.claim, config.round)
        known = self._rosters.get(key)
        if known is None:
            self._sealed(key, config)
            ensure(config.rank == 0, f"rank {config.rank} is released before rank 0")
            self._acknowledged(daemon, config)
        else:
            for field in ("members", "master_port", "nnodes", "world_size"):
                same = getattr(known, field) == getattr(config, field)
                ensure(same, f"two rosters of one round differ in {field}: {known} {config}")
            places = (host_of(c.master_addr) for c in (known, config))
            hosts = {place[0] for place in places if place is not None}
            ensure(len(hosts) <= 1, f"rank 0 of one round is on two hosts: {known} {config}")
        self._warned(self._world.clients[participant], config)
        me = config.members[config.rank]
        ensure(me.participant == participant, f"{participant} got the rank of {me}")
        ensure(me.node == daemon.node, f"{participant} is said to be on {me.node}")
        ensure(config.local_rank < config.local_world_size, f"local rank {config}")

    def _sealed(self, key: tuple[str, int], config: Config) -> None:
        """The first release of a round: is its roster sound?"""
        self._rosters[key] = config
        members = config.members
        ensure([m.rank for m in members] == list(range(len(members))), f"ranks of {members}")
        ensure(len({m.participant for m in members}) == len(members), f"twice in {members}")
        ensure(members[0].node == self._claimants[key[0]], f"rank 0 is not the leader: {members}")
        ensure(config.master_addr == members[0].address, "MASTER_ADDR is not rank 0's address")
        keys = [self._world.had[NodeId(m.node)] for m in members]
        ensure(bool(set.intersection(*keys)), f"without a key that all have: {members}")
        several = len({m.node for m in members}) > 1
        ensure(not several or not config.master_addr.startswith("127."), "loopback for others")
        for member in members:
            client = self._world.clients[ParticipantId(member.participant)]
            join = client.join
            ensure(join.rank in (None, member.rank), f"{client} asked for {join.rank}: {member}")
            ensure(join.job == config.job, f"{client} is in a roster of {config.job}")
            size_ok = join.size_min <= len(members) <= join.size_max
            ensure(size_ok, f"{client} wants {join.size_min}:{join.size_max}, not {len(members)}")
            earlier = self._sealed_in.setdefault(member.participant, key)
            ensure(earlier == key, f"{client} is in two sealed rounds: {earlier} and {key}")
        self._alike([self._world.clients[ParticipantId(m.participant)] for m in members])

    def _alike(self, clients: list[Client]) -> None:
        """Nobody is in a round with somebody whose software differs, or may differ, in what one of
        the two requires. Written anew, by none of the core's own means."""
        for one in clients:
            for item in one.join.require_same:
                for other in clients:
                    values = [self._certain(c, item) for c in (one, other)]
                    same = values[0] is not None and values[0] == values[1]
                    ensure(same, f"{one} requires the same {item} as {other}: {values}")

    @staticmethod
    def _certain(client: Client, item: str) -> str | None:
        """What it surely runs."""
        software = client.join.software
        if software is None or (item == "git" and software.dirty is not False):
            return None
        value: str | None = getattr(software, item)
        return value

    def _warned(self, client: Client, config: Config) -> None:
        """It was told of two versions of torch in its round before it starts."""
        members = (self._world.clients[ParticipantId(m.participant)] for m in config.members)
        versions = {self._certain(c, "torch") for c in members} - {None}
        said = [m.sentence for m in client.heard if isinstance(m, local.Notice)]
        for version in versions if len(versions) > 1 else ():
            told = any("torch" in s and str(version) in s for s in said)
            ensure(told, f"{client}: not told that somebody runs torch {version}: {said}")

    def _acknowledged(self, daemon: Daemon, config: Config) -> None:
        """Nobody is released before every other node of the roster proved the path and said so."""
        nodes = {m.node for m in config.members if m.node != daemon.node}
        if not nodes:
            return
        proofs = [
            proof
            for proof, prepare in self._prepared.items()
            if (prepare.claim, prepare.round) == (config.claim, config.round)
            and prepare.members == config.members
        ]
        complete = any(all((node, Nonce(p)) in self._acked for node in nodes) for p in proofs)
        ensure(complete, f"released before all had acknowledged: {config.members}")

    def _plain(self, daemon: Daemon, participant: ParticipantId, config: Config) -> None:
        rank = self._world.clients[participant].join.rank
        ensure(config.rank == rank, f"{participant} asked for rank {rank}, got {config.rank}")
        leads = self._claimants[config.claim] == daemon.node
        ensure(rank != 0 or leads, "rank 0 of the plain form is not the leader")
        ensure(bool(config.master_addr) and config.master_port > 0, f"no master in {config}")
