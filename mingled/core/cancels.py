"""`mingle cancel`: a job is ended on all its nodes, and whoever asked learns where.

Daemons of a job are linked to their leader's alone. So an order goes from the daemon that is asked
to the leader's, and from there to all others. Each ends what it may, passes the order on to whom it
is linked to, gathers the answers, and answers itself. Every order has a number, so that it is
obeyed once, by whichever ways it comes.

Whose word counts? An order comes over a link of the job's own realm, so from a machine that knows
its secrets. There participants are ended of the same user (by name, as `owner_conflict` compares),
of anybody where root asks, and of anybody where the owner of rank 0 does: that the leader's daemon
knows, and says (`everyone`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mingled.core import actions, local, messages
from mingled.core.events import CancelAsked
from mingled.core.held import ENDED, Held
from mingled.core.messages import PIDS_MAX, NodeCancelled
from mingled.core.seat import Seat, failed_by
from mingled.core.words import SIZE_MAX, Form, Nonce
from mingled.errors import Cancelled, NotPermitted

if TYPE_CHECKING:
    from mingled.core.job import Job

ROOT = "root"

ELSEWHERE = "elsewhere"
"""For the host of whoever is not known by name."""

SEEN_MAX = 64
"""Orders of one job that are remembered: more than people give in the seconds that one takes."""


class _Order:
    """One cancel, from when it is heard of here until it is answered. Mutable."""

    def __init__(self, cancel: messages.Cancel, now: float) -> None:
        self.cancel = cancel
        self.until = now + cancel.patience_s
        self.request: int | None = None  #: of the client that asked
        self.sender: int | None = None  #: or the link that it came by
        self.asked: dict[int, NodeCancelled] = {}  #: who owes an answer, by link
        self.behind: dict[int, list[NodeCancelled]] = {}  #: whom only that one reaches
        self.nodes: list[NodeCancelled] = []
        self.links: set[int] = set()  #: that it came or went by, and that stand

    def missed(self, link: int, why: str) -> None:
        """No answer will come over this link."""
        there = self.asked.pop(link)
        self.nodes.append(msgspec.structs.replace(there, flaw=why))
        self.nodes += self.behind.pop(link, [])

    def outcome(self) -> tuple[NodeCancelled, ...]:
        """Each node once: what is known of it rather than that nothing is."""
        known = [n for n in self.nodes if not n.flaw]
        names = {n.node for n in known} | {(n.host, n.address) for n in known}
        found = {(n.host, n.address, n.node): n for n in known}
        for node in self.nodes:
            if node.flaw and node.node not in names and (node.host, node.address) not in names:
                found.setdefault((node.host, node.address, ""), node)
        return tuple(found.values())[:SIZE_MAX]


class Cancels:
    """Of one job on one node."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ctx = job.ctx
        self._orders: dict[Nonce, _Order] = {}
        self._seen: dict[Nonce, None] = {}
        #: what some node has not confirmed, by claim, and until when it is told on its return
        self._owed: dict[Nonce, tuple[messages.Cancel, float]] = {}

    @property
    def open(self) -> bool:
        return bool(self._orders or self._owed)

    @property
    def concerned(self) -> bool:
        """Somebody takes part here, or a round is watched over for others."""
        return bool(self._job.seats) or any(h.leads for h in self._job.rounds.helds)

    def needs(self, link: int) -> bool:
        return any(link in o.asked or link == o.sender for o in self._orders.values())

    # ------------------------------------------------------------ an order comes

    def asked(self, event: CancelAsked, now: float) -> None:
        """By a user of this machine."""
        settings, job = self._ctx.settings, self._job
        owner = self._owner()
        foreign = any(s.holder.uid != event.uid for s in job.seats.values())
        if event.uid != 0 and (foreign or (not job.seats and owner != event.user)):
            error = NotPermitted(
                f"job {job.job} on {self._ctx.host} belongs to {owner}, you are {event.user}; ask "
                f"{owner}, or an administrator (sudo mingle cancel)"
            )
            self._ctx.do(actions.Answer(request=event.request, message=failed_by(error)))
            return
        cancel = messages.Cancel(
            claim=self._ctx.stream.nonce(),
            order=self._ctx.stream.nonce(),
            user=ROOT if event.uid == 0 else event.user,
            host=self._ctx.host,
            reason=event.reason,
            patience_s=settings.cancel_s,
        )
        order = _Order(cancel, now)
        order.request = event.request
        self._obey(order, now)

    def heard(self, link: int, message: messages.Cancel, now: float) -> None:
        """By another daemon of this job."""
        known = self._job.links.in_use(link) or message.claim in self._claims()
        if not known or message.order in self._seen:
            self._answer(link, message, ())
            return
        settings = self._ctx.settings
        if not 0.0 <= message.patience_s <= settings.cancel_s:
            message = msgspec.structs.replace(message, patience_s=settings.cancel_s)
        if self._follows(link):  # it may not say that itself
            message = msgspec.structs.replace(message, everyone=False)
        order = _Order(message, now)
        order.sender = link
        order.links.add(link)
        self._obey(order, now)

    def _follows(self, link: int) -> bool:
        """Is that one of those whom this node leads?"""
        claim = self._job.claim
        led = any(h.leads and link in h.links.values() for h in self._job.rounds.helds)
        return led or (claim is not None and link in claim.sessions)

    def _claims(self) -> set[Nonce]:
        """Of rounds here. Over a fresh connection, only whoever knows one is listened to."""
        return {held.claim for held in self._job.rounds.helds}

    def _owner(self) -> str:
        """Whose the job is, as far as this node can say: all its participants here are one user's,
        and where none is left, rank 0's."""
        seat = next(iter(self._job.seats.values()), None)
        newest = self._job.rounds.newest
        if seat is not None:
            return seat.holder.user
        return newest.members[0].user if newest is not None and 0 in newest.members else ""

    # ------------------------------------------------------------ what is done about it

    def _obey(self, order: _Order, now: float) -> None:
        job = self._job
        leads = job.claim is not None or any(h.leads for h in job.rounds.helds)
        if order.cancel.user == ROOT or (leads and order.cancel.user == self._owner()):
            order.cancel = msgspec.structs.replace(order.cancel, everyone=True)
        self._seen[order.cancel.order] = None
        while len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        led = {held.claim for held in job.rounds.helds if held.leads}
        self._pass_on(order)
        self._orders[order.cancel.order] = order  # so that its links outlive what ends now
        order.nodes.append(self._end_seats(order.cancel, now))
        if order.cancel.everyone:  # else rank 0 goes on, and may seal more rounds of that claim
            until = now + self._ctx.settings.cancel_kept_s
            self._owed |= dict.fromkeys(led, (order.cancel, until))
        self._finish(order, now)

    def _pass_on(self, order: _Order) -> None:
        """To everybody that this node is linked to; whom it is not, is noted."""
        job, settings = self._job, self._ctx.settings
        patience_s = max(0.5, order.cancel.patience_s - settings.cancel_step_s)
        if job.claim is not None:
            for link, session in job.claim.sessions.items():
                there = NodeCancelled(
                    host=session.card.host, address=session.remote_address, node=session.card.node
                )
                self._send(order, link, job.claim.nonce, there, patience_s)
        for held in job.rounds.helds:
            self._round(order, held, patience_s)
        pursuit = job.pursuit
        if pursuit is not None and pursuit.leader is not None:
            there = NodeCancelled(
                host=pursuit.leader.host, address=pursuit.remote, node=pursuit.leader.node
            )
            self._send(order, pursuit.link, pursuit.claim, there, patience_s)
            progress = pursuit.progress
            for seen in progress.present if progress is not None else ():
                if seen.host not in (self._ctx.host, there.host):
                    flaw = f"{there.host} did not answer, which leads the job"
                    beyond = NodeCancelled(host=seen.host, address=seen.address, flaw=flaw)
                    order.behind.setdefault(pursuit.link, []).append(beyond)

        for address in job.claim.contests.places() if job.claim is not None else ():
            flaw = "another leader of this job, on its own: run mingle cancel there, too"
            order.nodes.append(NodeCancelled(host=ELSEWHERE, address=address, flaw=flaw))
        if self._astray():
            flaw = "in the plain form rank 0 alone knows the others, and it is not there any more"
            order.nodes.append(NodeCancelled(host=ELSEWHERE, address="", flaw=flaw))

    def _astray(self) -> bool:
        """Somebody here was admitted by a rank 0 that is no more."""
        job = self._job
        led = job.claim.lineage if job.claim is not None else set()
        followed = {job.pursuit.claim} if job.pursuit is not None else set()
        configs = (s.config for s in job.seats.values())
        plain = {c.claim for c in configs if c is not None and c.form is Form.PLAIN}
        return not plain <= led | followed

    def _round(self, order: _Order, held: Held, patience_s: float) -> None:
        """Whoever is in it still, or may be."""
        for member in held.members.values():
            node = held.home[member.rank]
            link = held.links.get(node)
            hub = link is not None and link == held.hub  # it tells all, whatever became of rank 0
            over = held.fates[member.rank] in ENDED and not hub
            if node == self._ctx.node or over:
                continue
            there = NodeCancelled(host=member.host, address=member.address, node=node)
            if link is not None:
                self._send(order, link, held.claim, there, patience_s)
            elif held.hub is not None:  # which tells everybody
                flaw = "rank 0's daemon did not answer, which would have told it"
                beyond = msgspec.structs.replace(there, flaw=flaw)
                order.behind.setdefault(held.hub, []).append(beyond)
            else:
                flaw = "no link to its daemon: its participants may go on"
                order.nodes.append(msgspec.structs.replace(there, flaw=flaw))

    def _send(
        self, order: _Order, link: int, claim: Nonce, there: NodeCancelled, patience_s: float
    ) -> None:
        if link in order.asked or link == order.sender:
            return
        order.asked[link] = there
        order.links.add(link)
        cancel = msgspec.structs.replace(order.cancel, claim=claim, patience_s=patience_s)
        self._ctx.send(link, cancel)

    def _end_seats(self, cancel: messages.Cancel, now: float) -> NodeCancelled:
        """Waiting ones fail; of released ones the client is told, to end what runs in them."""
        job, by = self._job, _by(cancel)
        mine = [s for s in job.seats.values() if s.ending is None]
        ended = [s for s in mine if cancel.everyone or s.holder.user == cancel.user]
        outcome = NodeCancelled(
            host=self._ctx.host,
            address=job.home.first_address(),
            node=self._ctx.node,
            ended=len(ended),
            unheard=tuple(s.holder.pid for s in ended if _deaf(s))[:PIDS_MAX],
            kept=len(mine) - len(ended),
        )
        for seat in ended:
            when = "before it started" if seat.waiting else "while it ran"
            error = Cancelled(f"job {job.job}: cancelled on {self._ctx.host} {when} by {by}")
            failed = local.Failed(code=error.code, sentence=str(error), stop=True)
            self._ctx.do(actions.Tell(participant=seat.participant, message=failed))
        for seat in ended:
            job.end_seat(seat, left=True, reason=f"cancelled by {by}", now=now)
        return outcome

    # ------------------------------------------------------------ answers

    def answered(self, link: int, message: messages.Cancelled, now: float) -> None:
        order = self._orders.get(message.order)
        if order is None or link not in order.asked:
            return
        del order.asked[link]
        order.behind.pop(link, None)
        room = SIZE_MAX - len(order.nodes)
        order.nodes += message.nodes[:room]
        self._finish(order, now)

    def link_closed(self, link: int, reason: str, now: float) -> None:
        for order in list(self._orders.values()):
            order.links.discard(link)
            if order.sender == link:
                order.sender = None
            if link in order.asked:
                order.missed(link, f"its link ended before it answered: {reason}")
            self._finish(order, now)

    def tick(self, now: float) -> None:
        for order in list(self._orders.values()):
            if now >= order.until:
                for link in list(order.asked):
                    order.missed(link, f"no answer within {order.cancel.patience_s:g} s")
                self._finish(order, now)
        self._owed = {c: owed for c, owed in self._owed.items() if now < owed[1]}

    def deadline(self) -> float | None:
        times = [order.until for order in self._orders.values()]
        times += [until for _, until in self._owed.values()]
        return min(times, default=None)

    def _finish(self, order: _Order, now: float) -> None:
        """Once nobody owes an answer any more: give ours."""
        if order.asked or self._orders.pop(order.cancel.order, None) is None:
            return
        nodes = order.outcome()
        if not any(node.flaw for node in nodes):
            self._owed = {
                c: owed for c, owed in self._owed.items() if owed[0].order != order.cancel.order
            }
        if order.request is not None:
            answer = local.Cancelled(job=self._job.job, nodes=nodes)
            self._ctx.do(actions.Answer(request=order.request, message=answer))
        if order.sender is not None:
            self._answer(order.sender, order.cancel, nodes)
        for link in order.links:
            if not self._job.links.owns(link):  # it was kept for the answer alone
                self._job.links.close(link, now)

    def _answer(self, link: int, cancel: messages.Cancel, nodes: tuple[NodeCancelled, ...]) -> None:
        answer = messages.Cancelled(claim=cancel.claim, order=cancel.order, nodes=nodes)
        self._ctx.send(link, answer)

    # ------------------------------------------------------------ who could not be told

    def remind(self, link: int, claim: Nonce) -> None:
        """A daemon is back, and asks for a round that was cancelled without it."""
        owed = self._owed.get(claim)
        if owed is not None:
            self._ctx.send(link, msgspec.structs.replace(owed[0], claim=claim))


def _deaf(seat: Seat) -> bool:
    """It was released, and what runs in it hears of no cancel."""
    return not seat.waiting and not (seat.join.listens and seat.connected)


def _by(cancel: messages.Cancel) -> str:
    """Who ended it, for sentences."""
    reason = f": {cancel.reason}" if cancel.reason else ""
    return f"{cancel.user} on {cancel.host}{reason}"
