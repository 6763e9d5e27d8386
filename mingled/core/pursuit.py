"""The follower's side of one job: reach a leader, join it, prove the path, hold to its word.

A follower is locked to one leader at a time. Before PREPARE it is let go by the leader's word or
the loss of the link; after its ACK by ABORT or COMMIT only, and if the link is lost for good then,
the outcome cannot be known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core import actions, messages
from mingled.core.codec import check_version
from mingled.core.events import Address, PathProven, PathRefuted
from mingled.core.held import Held
from mingled.core.messages import Advert, Entry
from mingled.core.paths import Paths
from mingled.core.reach import (
    NAT_ADVICE,
    bare,
    bare_advert,
    behind_nat,
    parsed,
    scoped,
    scoped_advert,
    subnet_of,
    ways,
)
from mingled.core.roster import config_of, plain_config
from mingled.core.software import ITEMS_MAX
from mingled.core.survey import Surveyed
from mingled.core.table import State, Trigger
from mingled.core.words import Form, Nonce, ParticipantId, Standing
from mingled.errors import MingleError

if TYPE_CHECKING:
    from mingled.core.job import Job


class Pursuit:
    """One leader being followed, from the first connection to the end of its claim."""

    def __init__(
        self, job: Job, advert: Advert, link: int, local: Address, remote: str, now: float
    ) -> None:
        """`link` stands, from `local` here to `remote` there."""
        self._job = job
        self._ctx = job.ctx
        self.advert = advert
        self.link = link
        self.local = local
        self.remote = remote  #: the leader's address as we reached it
        self.leader: messages.NodeCard | None = None
        self.progress: messages.Progress | None = None
        self.prepare: messages.Prepare | None = None
        self.paths: Paths | None = None  #: that PREPARE asks us to prove
        self.unsure_until: float | None = None
        self.retry_at: float | None = None  #: of the link, while unsure
        self._joined_at = now
        self._told: tuple[Entry, ...] | None = None  #: what the last Join said
        self._rivals_told: set[Nonce] = set()
        self._surveyed = Surveyed(self)
        self._wished = False  #: what the user allows here leads elsewhere, and that was said
        self._translated = False  #: our address is, on the way to the leader, and that was said
        self._send_join()

    @property
    def claim(self) -> Nonce:
        return self.advert.claim

    def where(self) -> str:
        """The leader, for sentences."""
        if self.leader is not None:
            return f"{self.leader.host} ({self.remote})"
        return f"{', '.join(self.advert.addresses)} port {self.advert.port}"

    # ------------------------------------------------------------ the link

    def reopened(self, local: Address, remote_address: str, now: float) -> None:
        """The link stands again, while we do not know the outcome: ask for it."""
        assert self.prepare is not None
        self.local, self.remote = local, remote_address
        self._joined_at = now
        self._send_join(prepared=self.prepare.proof)

    def failed(self, reason: str, now: float) -> None:
        """The link is gone, or could not be opened again."""
        job = self._job
        if job.state is State.PREPARED:
            job.to(Trigger.DOUBT)
            self.unsure_until = now + self._ctx.settings.unsure_s
        if job.state is State.UNSURE:
            self.retry_at = now + self._ctx.settings.retry_min_s
            return
        self._ctx.book.failed(self.advert.label, self.claim, now)
        if self.leader is None:
            self._ctx.do(actions.Doubt(label=self.advert.label, claim=self.claim))
        job.lose_leader(f"{self.where()}: {reason}", now)

    def tick(self, now: float) -> None:
        if self._job.state is State.UNSURE:
            assert self.unsure_until is not None
            if now >= self.unsure_until:
                self._job.outcome_unknown(self.where(), now)
            elif self.retry_at is not None and now >= self.retry_at:
                self.retry_at = None
                self.link = self._job.home.open(
                    self.advert.label, self.advert.addresses, self.advert.port
                )
        elif self.leader is None and now >= self._joined_at + self._patience_s():
            self._job.links.give_up(self.link, f"no word for {self._patience_s():g} s", now)

    def _patience_s(self) -> float:
        """A leader answers a Join at once; what only listens there must not keep us from another
        that does."""
        settings = self._ctx.settings
        others = self._job.search.others(self.advert)
        return settings.first_word_s if others else settings.first_frame_s

    def deadline(self) -> float | None:
        if self._job.state is State.UNSURE:
            times = (self.unsure_until, self.retry_at)
            return min(t for t in times if t is not None)
        return self._joined_at + self._patience_s() if self.leader is None else None

    # ------------------------------------------------------------ what we tell the leader

    def tell(self, message: messages.Message) -> None:
        self._ctx.send(self.link, message)

    def prove(self, proof: Nonce, place: tuple[str, int], word: str) -> None:
        self._job.home.prove(self._job.job, proof, place, word)

    def moved(self) -> None:
        """This node has other addresses now."""
        if self._job.state is State.FOLLOWING:
            self._send_join()

    def seat_ended(self, participant: ParticipantId, reason: str) -> None:
        """A waiting seat here is no more: a round with it must not be sealed."""
        proving = self._job.state is State.PROVING and self.prepare is not None
        members = self.prepare.members if proving and self.prepare is not None else ()
        if any(m.participant == participant for m in members):
            self._nack(reason)
        self.entries_changed()

    def entries_changed(self) -> None:
        """Local seats may have come or gone: say so, unless an outcome is open. Then it is said
        as soon as that is known."""
        if self._job.state is State.FOLLOWING and self._entries() != self._told:
            self._send_join()

    def abandon(self) -> None:
        """We go elsewhere, over a link that a sealed round still needs: nobody here follows."""
        self._send_join(())

    def _entries(self) -> tuple[Entry, ...]:
        """Who follows, and who was admitted in the plain form and keeps its rank. Rank 0 never
        does: it is about to claim."""
        return tuple(
            s.entry()
            for s in self._job.seats.values()
            if s.join.rank != 0
            and s.ending is None
            and (s.config is None or (s.config.form is Form.PLAIN and s.config.claim == self.claim))
        )

    def rival(self, advert: Advert) -> None:
        """Another leader was heard; only leaders settle that."""
        if advert.claim != self.claim and advert.claim not in self._rivals_told:
            self._rivals_told.add(advert.claim)
            told = bare_advert(advert)
            self._ctx.send(self.link, messages.Rival(claim=self.claim, advert=told))

    def _send_join(
        self, entries: tuple[Entry, ...] | None = None, *, prepared: Nonce | None = None
    ) -> None:
        self._told = self._entries() if entries is None else entries
        self._ctx.send(
            self.link,
            messages.Join(
                label=self.advert.label,
                claim=self.claim,
                job=self._job.job,
                node=self._job.home.card(),
                entries=self._told,
                source=self.local.address,
                prepared=prepared,
            ),
        )

    # ------------------------------------------------------------ what the leader tells us

    def received(self, message: messages.Message, now: float) -> None:
        job = self._job
        match message:
            case messages.Welcome() if message.claim == self.claim:
                self._welcome(message, now)
            case messages.Refuse():
                self._refused(message, now)
            case messages.Ping():
                self._ctx.send(self.link, messages.Pong(claim=self.claim, node=self._ctx.node))
            case messages.Reach() if message.claim == self.claim and self.leader is not None:
                self._surveyed.asked(message)
            case messages.Progress() if message.claim == self.claim:
                self.progress = message
                job.progressed(now)
            case messages.Prepare() if message.claim == self.claim and self.leader is not None:
                self._prepare(message, now)
            case messages.Commit() if self._concerns(message) and job.state is not State.PROVING:
                self._commit(now)
            case messages.Abort() if self._concerns(message):
                self.prepare = self.unsure_until = self.retry_at = None
                job.to(Trigger.ABORT)
                self._gather_on(now)  # the leader's Progress brings the reason
            case messages.Admit() if message.claim == self.claim:
                self._admitted(message, now)
            case messages.Redirect() if job.state is State.FOLLOWING and (
                message.claim == self.claim and message.advert.label in job.labels
            ):
                self._ctx.book.remove(self.advert.label, self.claim)
                where = ", ".join(message.advert.addresses[:1])
                advert = scoped_advert(message.advert, self.local.interface)
                job.follow_instead(advert, f"{message.host} ({where}) leads now", now)
            case messages.Dismiss() if job.state in (State.FOLLOWING, State.PROVING):
                self._ctx.book.remove(self.advert.label, self.claim)
                job.lose_leader(message.reason[: messages.TEXT_CHARS_MAX], now)
            case _:
                pass  # late, or for another claim: it changes nothing

    def _concerns(self, message: messages.Commit | messages.Abort) -> bool:
        """Is this the outcome of the attempt that is open here?"""
        return (
            self._job.state in (State.PROVING, State.PREPARED, State.UNSURE)
            and self.prepare is not None
            and (message.claim, message.proof) == (self.claim, self.prepare.proof)
        )

    def _welcome(self, message: messages.Welcome, now: float) -> None:
        try:
            check_version(message.version, f"job {self._job.job}: the leader on {self.where()}")
        except MingleError as error:
            self._job.fail_waiting(error.code, str(error), now)
            return
        fresh = self.leader is None or self._job.state is State.UNSURE  # else it is that link still
        if fresh and behind_nat(message.met_address, self.remote):
            self._misled(message.node, now)
            return
        self.leader = message.node
        self._ctx.book.vouch(self.advert, message.node)
        addresses = ways(self.remote, message.node.addresses, self.local.interface)
        self._job.watches.add(
            self.link,
            message.node.node,
            addresses,
            message.node.port,
            self.advert.label,
            self.claim,
            pings=False,
            now=now,
        )
        self._warn_of_nat(message)
        self._warn_of_wish()
        self._job.note_text = ""  # what stood in the way of finding it
        self._job.found(now)
        self._ctx.book.held(self.advert.label, self.claim)
        incumbent = any(s.can_lead and s.before is not None for s in self._job.waiting())
        newcomer = message.standing is Standing.NEWCOMER and not self._job.unreachable
        if incumbent and newcomer and self._job.state is State.FOLLOWING:
            # Rank 0 is for those who were in the last round: a newcomer lacks the checkpoint.
            self._job.drop_pursuit(now)
            self._job.start_claim(now)
            return
        for heard in self._ctx.book.of(*self._job.labels):
            if not heard.failures:
                self.rival(heard.advert)
        self._job.progressed(now)

    def _misled(self, card: messages.NodeCard, now: float) -> None:
        """The address that we have connected to is not the one at which the leader was met. An
        advert can lead anywhere, also to somebody who passes on every byte to the leader, and would
        then be in the middle of what torch says. So look for it where it says that it is."""
        job = self._job
        if len(job.misleading) < messages.ADDRESSES_MAX:
            job.misleading.add(bare(self.remote))
        self._ctx.book.vouch(self.advert, card)
        self._ctx.do(actions.CloseLink(link=self.link))
        if job.state is State.UNSURE:  # who it is, is known: it is asked for the outcome elsewhere
            self.retry_at = now + self._ctx.settings.retry_min_s
            return
        reason = (
            f"{self.remote} led to {card.host}, which was met at another one ("
            f"{', '.join(card.addresses) or 'none'}): {NAT_ADVICE} there, or somebody passes on "
            "what is not his"
        )
        job.lose_leader(reason, now)

    def _warn_of_nat(self, message: messages.Welcome) -> None:
        if self._translated or not behind_nat(message.seen_address, self.local.address):
            return
        self._translated = True
        sentence = self._rewritten(message)
        for seat in self._job.waiting():
            self._job.warn(seat, sentence)

    def _warn_of_wish(self) -> None:
        """Linux answers for all of its addresses on every interface, so that a way which the user
        forbids here may seem to work."""
        home, ip = self._job.home, parsed(self.remote)

        def near(address: Address) -> bool:
            net = subnet_of(address)
            return net is not None and ip is not None and ip in net

        forbidden = next((a for a in home.left_out if near(a)), None)
        if forbidden is None or self._wished or any(near(a) for a in home.addresses):
            return
        self._wished = True
        for seat in self._job.waiting():
            self._job.warn(
                seat,
                f"rank 0 on {self.where()} is in {subnet_of(forbidden)}, this node's "
                f"{forbidden.interface}, "
                "which --interface or --subnet leave out here; name the same network on every "
                "machine",
            )

    def _rewritten(self, message: messages.Welcome) -> str:
        return (
            f"this node is {self.local.address}, and {message.node.host} sees "
            f"{message.seen_address}: {NAT_ADVICE}"
        )

    def _refused(self, message: messages.Refuse, now: float) -> None:
        job = self._job
        if message.code == "stale":
            self._ctx.book.remove(self.advert.label, self.claim)
            if job.state is State.PREPARED:
                job.to(Trigger.DOUBT)
            if job.state is State.UNSURE:
                # A leader that no longer knows the claim cannot tell what became of the round.
                job.outcome_unknown(self.where(), now)
            else:
                job.lose_leader(f"{self.where()} does not lead this job any more", now)
        else:
            sentence = message.sentence[: messages.TEXT_CHARS_MAX]
            job.fail_waiting(message.code, sentence, now, only=message.participants)

    def _prepare(self, message: messages.Prepare, now: float) -> None:
        job = self._job
        if job.state is State.PROVING:
            # The leader gave up the last attempt and its ABORT crossed our proof.
            self.prepare = None
            job.to(Trigger.ABORT)
        if job.state is not State.FOLLOWING:
            return
        self.prepare = message
        job.to(Trigger.PREPARE)
        flaw = self._flaw(message)
        if flaw is not None:
            self._nack(f"{self._job.home.here()}: {flaw}")
            self._gather_on(now)
            return
        self.paths = Paths(job.job, job.home, self._ctx.node, self.local.interface)
        self.paths.prepare(message)

    def _flaw(self, message: messages.Prepare) -> str | None:
        """Why this roster cannot be ours; None if it can."""
        members = message.members
        if [m.rank for m in members] != list(range(len(members))):
            return "the roster's ranks are not 0, 1, 2 and so on"
        if len({m.participant for m in members}) != len(members):
            return "the roster names a participant twice"
        waiting = {s.participant: s for s in self._job.waiting()}
        mine = [m for m in members if m.node == self._ctx.node]
        seats = [waiting.get(ParticipantId(m.participant)) for m in mine]
        if not mine or None in seats:
            return "a participant has just ended"
        if any(s and s.join.rank not in (None, m.rank) for m, s in zip(mine, seats, strict=True)):
            return "the roster gives a participant another rank than it asked for"
        if len(message.ring_ports) != len(members):
            return "the roster names no port for some of its nodes"
        known = {self.remote, members[0].address, *(self.leader.addresses if self.leader else ())}
        if message.master_addr not in known:
            return f"MASTER_ADDR {message.master_addr} is not rank 0's {members[0].address}"
        return None

    def path_proven(self, event: PathProven) -> None:
        """Once all are: ACK."""
        if event.proof == self.claim:
            self._surveyed.ended(event.address, event.local)
        if not self._proving(event.proof):
            return
        assert self.prepare is not None
        assert self.paths is not None
        if self.paths.proven(event.address, event.port, event.local):
            self._job.to(Trigger.ACK)
            ack = messages.Ack(claim=self.claim, round=self.prepare.round, proof=event.proof)
            self._ctx.send(self.link, ack)

    def path_refuted(self, event: PathRefuted, now: float) -> None:
        if event.proof == self.claim:
            self._surveyed.ended(event.address, None)
        if self._proving(event.proof):
            assert self.paths is not None
            reason = self.paths.refuted(event.address, event.port, event.reason)
            self._nack(reason, master=self.paths.is_master(event.address, event.port))
            self._gather_on(now)

    def _proving(self, proof: Nonce) -> bool:
        return (
            self._job.state is State.PROVING
            and self.prepare is not None
            and self.prepare.proof == proof
        )

    def _nack(self, reason: str, *, master: bool = False) -> None:
        assert self.prepare is not None
        nack = messages.Nack(
            claim=self.claim,
            round=self.prepare.round,
            proof=self.prepare.proof,
            reason=reason,
            master=master,
        )
        self._ctx.send(self.link, nack)
        self.prepare = None
        self._job.to(Trigger.NACK)

    def _gather_on(self, now: float) -> None:
        """An attempt is over here: what was put off meanwhile is done and said now."""
        self._job.settle_open_endings(now)
        if self._job.pursuit is self:
            self.entries_changed()

    def _commit(self, now: float) -> None:
        prepare, job, leader = self.prepare, self._job, self.leader
        assert prepare is not None
        assert leader is not None
        proven = self.paths.master if self.paths is not None else None
        self.paths = None
        self.prepare = self.unsure_until = self.retry_at = None
        job.to(Trigger.COMMIT)
        held = Held(
            self._ctx,
            job.job,
            self.claim,
            prepare.round,
            prepare.members,
            master=(prepare.master_addr, prepare.master_port),
            leads=False,
            links={prepare.members[0].node: self.link},
            proof=None,
            now=now,
        )
        job.sealed(held, now)
        for member in prepare.members:
            seat = job.seats.get(ParticipantId(member.participant))
            if seat is not None and seat.waiting:
                config = config_of(
                    member,
                    prepare.members,
                    job=job.job,
                    form=seat.join.form,
                    round_=held.round,
                    claim=self.claim,
                    master_addr=scoped(
                        prepare.master_addr, proven.interface if proven else self.local.interface
                    ),
                    master_port=prepare.master_port,
                    local=proven,
                    leader_link=(scoped(self.remote, self.local.interface), leader.port),
                )
                for sentence in (prepare.warning, *_shown(prepare.differences)):
                    job.warn(seat, sentence)
                job.release(seat, config, now)
        released = {m.participant for m in prepare.members}
        self._told = tuple(e for e in self._told or () if e.participant not in released)
        self._gather_on(now)

    def _admitted(self, message: messages.Admit, now: float) -> None:
        if self.leader is None:
            return
        for seat in self._job.waiting():
            if seat.join.form is Form.PLAIN and seat.join.rank is not None:
                config = plain_config(
                    job=self._job.job,
                    claim=self.claim,
                    rank=seat.join.rank,
                    master_addr=scoped(self.remote, self.local.interface),
                    master_port=message.master_port,
                    local=self.local,
                    leader_host=self.leader.host,
                )
                for sentence in _shown(message.differences):
                    self._job.warn(seat, sentence)
                self._job.release(seat, config, now)


def _shown(sentences: tuple[str, ...]) -> list[str]:
    """From a peer: not more than there can be, nor longer."""
    return [s[: messages.TEXT_CHARS_MAX] for s in sentences[:ITEMS_MAX]]
