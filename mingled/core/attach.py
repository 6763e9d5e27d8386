"""Daemons of a sealed round that come back: after a break of their link, or started anew.

The round is as it was; only who speaks for whom has changed. Whoever is not rank 0's daemon goes to
it, says which members are here, and is told what became of the others meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core import messages
from mingled.core.config import Config, Member
from mingled.core.events import Address
from mingled.core.held import Held
from mingled.core.links import stale
from mingled.core.reach import scoped, ways
from mingled.core.words import Form, Label, NodeId, ParticipantId

if TYPE_CHECKING:
    from mingled.core.job import Job
    from mingled.core.watch import RoundKey, Watch


class Attachments:
    """Of one job on one node."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ctx = job.ctx

    # ------------------------------------------------------------ whoever goes to rank 0's daemon

    def wanted(self, watch: Watch) -> list[messages.Attach]:
        """What to say to the daemon of rank 0 once it answers: of each round that runs here, or
        has ended here unsaid, and has lost it."""
        found = []
        for held in self._job.rounds.helds:
            if held.key in watch.rounds and not held.leads and held.home[0] == watch.node:
                mine = self._mine(held)
                if mine or held.unsaid:
                    found.append(self._attach(held, mine, watch.label))
        return found

    def _mine(self, held: Held) -> tuple[Member, ...]:
        mine = (held.member(participant) for participant in self._job.seats)
        return tuple(m for m in mine if m is not None and held.fates[m.rank] != "lost")

    def _attach(self, held: Held, members: tuple[Member, ...], label: Label) -> messages.Attach:
        return messages.Attach(
            label=label,
            claim=held.claim,
            round=held.round,
            node=self._job.home.card(),
            members=members,
        )

    def attached(self, link: int, message: messages.Attached, now: float) -> bool:
        """Rank 0's daemon has taken us back over this link. False: we do not ask for that."""
        held = self._job.rounds.get((message.claim, message.round))
        if held is None or held.leads:
            return False
        held.attached(link, message, self._job.seats.values(), now)
        self.remember(held)
        self._job.rounds.prune(now)
        self._job.progressed(now)
        self._job.settle(now)
        return True

    # ------------------------------------------------------------ rank 0's daemon

    def attach(
        self, link: int, message: messages.Attach, local: Address, remote: str, now: float
    ) -> bool:
        """A daemon is here again. False: no such round is led here."""
        held = self._job.rounds.get((message.claim, message.round))
        if held is None or not held.leads:
            return False
        card = message.node
        addresses = ways(remote, card.addresses, local.interface)
        self._job.watches.add(
            link, card.node, addresses, card.port, message.label, held.claim, pings=True, now=now
        )
        self._take(held, link, card.node, message.members, now)
        self._ctx.send(
            link,
            messages.Attached(
                claim=held.claim,
                round=held.round,
                node=self._ctx.node,
                members=tuple(held.members.values()),
                fates=tuple(held.fates[rank] for rank in held.members),
                returning=tuple(sorted(held.returning)),
            ),
        )
        held.say_waiting(link)
        return True

    def refuse(self, link: int, message: messages.Attach) -> None:
        """Say why `attach` was False; and that the job was cancelled, if it was."""
        self._job.cancels.remind(link, message.claim)
        self._ctx.send(link, self._refusal(message))

    def _refusal(self, message: messages.Attach) -> messages.Message:
        """Whoever asks comes to where its round was led: if a newer one is known here, rank 0 is
        in that."""
        newest = self._job.rounds.newest
        if newest is not None and newest.round > message.round:
            return messages.Passed(claim=message.claim, round=message.round, newer=newest.round)
        return stale(message.claim, self._ctx.host)

    def relink(self, key: RoundKey, link: int, node: NodeId, now: float) -> None:
        """A daemon that asked for the outcome of a seal is here over another link."""
        held = self._job.rounds.get(key)
        if held is not None:
            self._take(held, link, node, held.of_node(node), now)

    def _take(
        self, held: Held, link: int, node: NodeId, members: tuple[Member, ...], now: float
    ) -> None:
        old = held.links.get(node)
        replaced = held.attach(link, node, members, self._job.seats.values(), now)
        for gone in (*replaced, node):
            self._job.watches.back(gone, held.key)
        if old not in (None, link) and not self._job.links.in_use(old):
            self._job.links.close(old, now)
        self._job.progressed(now)

    # ------------------------------------------------------------ a daemon that was started anew

    def take_up(self, config: Config, participant: ParticipantId, now: float) -> None:
        """A participant of a round that an earlier daemon here watched is here. Members that its
        config does not name are learnt from the others."""
        mine = next((m for m in config.members if m.participant == participant), None)
        zero = next((m for m in config.members if m.rank == 0), None)
        if mine is None or zero is None:
            return
        held = self._job.rounds.get((config.claim, config.round))
        if held is None:
            held = self._handed_down(config, zero, leads=zero.node == mine.node, now=now)
            for member in held.of_node(mine.node):  # until they say that they are here
                held.fates[member.rank] = "unwatched"
        held.learn(config.members)
        known = held.member(participant)
        if known is None:
            return
        held.home[known.rank] = self._ctx.node
        held.note(known.rank, "running", "its daemon is back", self._job.seats.values(), now)
        self.remember(held)
        if held.hub is not None:  # the others of this node are attached already
            self._ctx.send(held.hub, self._attach(held, self._mine(held), self._job.label))

    def _handed_down(self, config: Config, zero: Member, *, leads: bool, now: float) -> Held:
        size = config.nnodes if config.form is Form.LAUNCHER else config.world_size
        held = Held(
            self._ctx,
            self._job.job,
            config.claim,
            config.round,
            config.members,
            master=(config.master_addr, config.master_port),
            leads=leads,
            links={},
            proof=None,
            now=now,
            size=size,
        )
        self._job.rounds.keep(held)
        # Go to rank 0's daemon; or be it, and wait for the others. Whether the host of one that
        # does not come is there is asked at the port that daemons share.
        places: dict[str, tuple[str, int]] = {}
        if leads:
            others = (m for m in held.members.values() if m.node != zero.node)
            places = {m.node: (m.address, self._ctx.link_port) for m in others}
        elif config.leader_link is not None:
            places = {zero.node: config.leader_link}
        for node, (address, port) in places.items():
            rounds = frozenset({held.key})
            way = (scoped(address, config.interface or ""),)
            self._job.watches.add_absent(node, way, port, self._job.label, held.claim, rounds, now)
        return held

    def remember(self, held: Held) -> None:
        """Whoever joins again gets the rank that it had."""
        mine = {p: s for p, s in self._job.seats.items() if held.member(p) is not None}
        holders = {p: s.holder.identity for p, s in mine.items()}
        form = next((s.join.form for s in mine.values()), Form.LAUNCHER)
        self._ctx.former.remember(self._job.job, form, held.members.values(), holders)
