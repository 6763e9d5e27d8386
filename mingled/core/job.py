"""One job on one node: its local seats, and whether this node searches, follows or leads."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from mingled.core import actions, local
from mingled.core.attach import Attachments
from mingled.core.cancels import Cancels
from mingled.core.claim import Claim
from mingled.core.config import Config
from mingled.core.context import Context
from mingled.core.desk import Desk
from mingled.core.held import Held
from mingled.core.home import Home
from mingled.core.links import Links
from mingled.core.messages import Advert, Contest
from mingled.core.pursuit import Pursuit
from mingled.core.rounds import Rounds
from mingled.core.search import Search
from mingled.core.seat import Seat, tell_failed
from mingled.core.secrets import Realm, realms_of
from mingled.core.table import BETWEEN, OUTCOME_OPEN, State, Trigger, step
from mingled.core.views import Views
from mingled.core.watch import Watches
from mingled.core.words import Form, JobId, Label, Nonce, ParticipantId, host_label
from mingled.errors import Conflict, Indeterminate


class Job:
    """Mutable; lives from its first seat to the end of its last round here. Every change of
    `state` goes through `to`, hence through the one table."""

    def __init__(self, ctx: Context, job: JobId, secret: str = "") -> None:
        self.ctx = ctx
        self.job = job
        self.secret = secret  #: its own, that every participant must bring
        self.claim: Claim | None = None
        self.realms: dict[Label, Realm] = {}  #: under each key; the one to present first
        self.trust()
        self.state = State.IDLE
        self.seats: dict[ParticipantId, Seat] = {}
        self.home = Home(self)
        self.pursuit: Pursuit | None = None
        self.rounds = Rounds(self)
        self.attachments = Attachments(self)
        self.watches = Watches(self)
        self.links = Links(self)
        self.cancels = Cancels(self)
        self.desk = Desk(self)
        self.search = Search(self)
        self.views = Views(self)
        self.misleading: set[str] = set()  #: addresses that pass on what is sent to another host
        self.unreached: set[Nonce] = set()  #: claims whose daemon could not be connected to
        self.unreachable = False  #: others could not connect to ours: it must not lead
        self.note_text = ""
        self.story: deque[str] = deque(maxlen=ctx.settings.story_max)

    @property
    def over(self) -> bool:
        """Nothing is left to do here."""
        idle = self.state is State.IDLE and not self.seats and not self.rounds.helds
        return idle and not self.cancels.open

    @property
    def label(self) -> Label:
        """Under which it is advertised."""
        return next(iter(self.realms))

    @property
    def labels(self) -> Collection[Label]:
        """Under which others may advertise it: while keys change, not all present the same."""
        return self.realms.keys()

    def trust(self) -> None:
        """Take part under the keys that there are now, beside those that it knows already."""
        before = self.realms
        now = {r.label: r for r in realms_of(self.job, self.ctx.keys, self.secret)}
        self.realms = now | before
        for label, realm in now.items():
            if label not in before:
                self.ctx.do(actions.Trust(realm=realm, soon=True))
        if self.claim is not None:
            self.claim.rekey()

    def to(self, trigger: Trigger) -> None:
        before, self.state = self.state, step(self.state, trigger)
        self.story.append(f"{before} --{trigger}--> {self.state}")
        self.ctx.story.append((self.job, "state", self.story[-1]))

    def waiting(self) -> list[Seat]:
        return [s for s in self.seats.values() if s.waiting and s.ending is None]

    def peers(self) -> tuple[str, ...]:
        """Hosts that those who wait here named: to be asked where multicast does not reach."""
        return tuple(dict.fromkeys(p for s in self.waiting() for p in s.join.peers))

    def addresses(self) -> set[str]:
        """Of every node that is known to be in this job."""
        found = {m.address for held in self.rounds.helds for m in held.members.values()}
        if self.claim is not None:
            for session in self.claim.sessions.values():
                found.add(session.address)
        if self.pursuit is not None:
            found.add(self.pursuit.remote)
            if self.pursuit.progress is not None:
                found.update(seen.address for seen in self.pursuit.progress.present)
        return found

    def note(self, text: str, now: float) -> None:
        """A sentence about the wait, shown to everybody who waits."""
        if text != self.note_text:
            self.note_text = text
            self.ctx.story.append((self.job, "note", text))
            self.progressed(now)

    def warn(self, seat: Seat, sentence: str) -> None:
        if sentence:
            notice = local.Notice(kind="warning", sentence=f"job {self.job}: {sentence}")
            self.ctx.do(actions.Tell(participant=seat.participant, message=notice))

    def found(self, now: float) -> None:
        """Another node is in touch."""
        for seat in self.seats.values():
            if seat.found_at is None:
                seat.found_at = now

    def progressed(self, now: float) -> None:
        self.views.progressed(now)

    # ------------------------------------------------------------ seats go

    def end_seat(
        self,
        seat: Seat,
        *,
        left: bool,
        reason: str,
        now: float,
        again: bool = False,
        closes: bool = False,
    ) -> None:
        """Out with it, unless an outcome is open: then as soon as that is known. `again`: its
        process has joined anew; `closes`: with it the run is over."""
        if seat.waiting and self.state in OUTCOME_OPEN:
            seat.ending = reason
            return
        if self.seats.pop(seat.participant, None) is None:
            return
        self.ctx.do(actions.Release(participant=seat.participant))
        if seat.join.named and not seat.waiting:
            self.ctx.do(actions.WithdrawName(participant=seat.participant))
        if seat.waiting:
            if self.claim is not None:
                self.claim.seal.local_ended(seat.participant, now)
            if self.pursuit is not None:
                self.pursuit.seat_ended(seat.participant, f"{self.ctx.host}: {reason}")
            self.progressed(now)
        else:
            self.rounds.seat_ended(seat.participant, left, reason, now, again=again, closes=closes)
            if self.pursuit is not None:
                self.pursuit.entries_changed()
        if not again:  # else the new seat comes at once, and wants to know whom to expect
            self.rounds.prune(now)
            self.settle(now)

    def settle_open_endings(self, now: float) -> None:
        """The outcome is known: seats that ended meanwhile are told of now."""
        for seat in [s for s in self.seats.values() if s.ending is not None]:
            reason, seat.ending = seat.ending or "", None
            self.end_seat(seat, left=False, reason=reason, now=now)
        self.rounds.prune(now)
        self.settle(now)

    def fail_waiting(
        self, code: str, sentence: str, now: float, only: Iterable[ParticipantId] = ()
    ) -> None:
        """The other side said no: to some, or to all."""
        chosen = set(only) or set(self.seats)
        for seat in self.waiting():
            if seat.participant in chosen:
                failed = local.Failed(code=code, sentence=sentence)
                self.ctx.do(actions.Tell(participant=seat.participant, message=failed))
                self.end_seat(seat, left=False, reason=sentence, now=now)

    # ------------------------------------------------------------ seats are released

    def sealed(self, held: Held, now: float) -> None:
        """A round is sealed: watch over it, and remember who had which rank."""
        self.rounds.add(held, now)
        self.attachments.remember(held)

    def release(self, seat: Seat, config: Config, now: float) -> None:
        """The rendezvous is done for this one. If it ended while that was open, it has been told
        so, and the round is about to be."""
        seat.config = config
        seat.deadline = seat.hint_at = None
        seat.alive(now)
        if seat.ending is not None:
            return
        if seat.join.adopt:
            seat.token = self.ctx.stream.nonce()
            seat.adopt_by = now + self.ctx.settings.adopt_s
        ready = local.Ready(
            participant=seat.participant,
            config=config,
            token=seat.token,
            found_s=(now if seat.found_at is None else seat.found_at) - seat.since,
            waited_s=now - seat.since,
        )
        self.ctx.do(actions.Tell(participant=seat.participant, message=ready))
        self.name(seat)

    def name(self, seat: Seat) -> None:
        """Let the network resolve JOB-RANK.local to this node, if that was asked for."""
        config = seat.config
        if not seat.join.named or config is None:
            return
        # Rank 0 of the plain form may not know its own interface, but others know its address.
        address = config.address or (config.master_addr if config.rank == 0 else None)
        if address is not None:
            name = host_label(self.job, config.rank)
            self.ctx.do(
                actions.PublishName(participant=seat.participant, name=name, address=address)
            )

    # ------------------------------------------------------------ what to do next

    def settle(self, now: float) -> None:
        """Bring the state in line with who waits here. Never while an outcome is open."""
        if self.state in BETWEEN:
            return
        waiting = self.waiting()
        explicit = any(s.join.rank == 0 for s in waiting)
        orphan = self._orphan()
        if orphan is not None:
            self._inherit(orphan, now)
        elif self.state is State.LEADING:
            self._settle_leading(now)
        elif explicit:
            self.search.close()
            self.drop_pursuit(now)
            self.start_claim(now)
        elif self.state is State.IDLE and waiting:
            self.to(Trigger.SEARCH)
            self.search.begin(now)
        elif not waiting and self.state in (State.SEARCHING, State.CONNECTING):
            self._rest(now)
        elif not waiting and self.state is State.FOLLOWING:
            assert self.pursuit is not None
            claim = self.pursuit.claim
            if not any(s.config and s.config.claim == claim for s in self.seats.values()):
                self._rest(now)

    def _orphan(self) -> Config | None:
        """Rank 0 of a running round is here, and no claim stands for it: its daemon was started
        anew."""
        for seat in self.seats.values():
            if seat.config is not None and seat.config.rank == 0:
                led = self.claim is not None and (
                    seat.config.claim in self.claim.lineage or self.claim.sealed()
                )
                if not led:
                    return seat.config
        return None

    def _inherit(self, config: Config, now: float) -> None:
        plain_port = config.master_port if config.form is Form.PLAIN else None
        if self.claim is None:
            self.search.close()
            self.drop_pursuit(now)
            self.start_claim(now, inherits=config.claim, plain_port=plain_port)
        else:
            self.claim.lineage.add(config.claim)
            self.claim.plain.port = self.claim.plain.port or plain_port
            self._settle_leading(now)

    def _settle_leading(self, now: float) -> None:
        claim = self.claim
        assert claim is not None
        if claim.leader_seat() is not None or claim.holds():
            claim.consider(now)
            return
        claim.end(f"rank 0 of job {self.job} on {self.home.here()} has ended")
        self.drop_claim(now)
        if self.waiting():
            self.to(Trigger.SEARCH)
            self.search.begin(now)
        else:
            self.to(Trigger.REST)

    def _rest(self, now: float) -> None:
        self.search.close()
        self.drop_pursuit(now)
        self.to(Trigger.REST)
        self.note_text = ""

    def drop_pursuit(self, now: float) -> None:
        pursuit, self.pursuit = self.pursuit, None
        if pursuit is None:
            return
        if self.links.in_use(pursuit.link):
            pursuit.abandon()
        else:
            self.links.close(pursuit.link, now)

    def drop_claim(self, now: float) -> None:
        """Its followers were told where to go; links that a sealed round needs stay."""
        claim, self.claim = self.claim, None
        self.rounds.prune(now)
        for link in claim.sessions if claim is not None else ():
            if not self.links.in_use(link):
                self.links.close(link, now)

    def open_proof(self, proof: Nonce) -> None:
        """Ask for rank 0's port: near torch's own default, and from the job's name, so that the
        logs of one job agree. ProofOpened or ProofFailed comes."""
        base, count = self.ctx.settings.port_first, self.ctx.settings.port_count
        self.ctx.do(
            actions.OpenProof(
                job=self.job,
                proof=proof,
                first=base + sum(self.label.encode()) * 7919 % count,
                base=base,
                count=count,
                avoid=frozenset(self.ctx.ports),
            )
        )

    def start_claim(
        self, now: float, *, inherits: Nonce | None = None, plain_port: int | None = None
    ) -> None:
        """Lead: rank 0 is asked for here, or nobody else was heard, or rank 0 of a running round
        (`inherits`, or in the plain form with `plain_port`) is here and its daemon is a new one."""
        if self.state is not State.SEARCHING:
            self.search.ask_anew(now)
        self.to(Trigger.CLAIM)
        self.note_text = ""
        self.claim = Claim(self, now, inherits)
        self.claim.plain.port = plain_port
        for heard in self.ctx.book.of(*self.labels):
            self.claim.contests.heard(heard.advert, now)
        self.progressed(now)
        self.claim.consider(now)

    def lose_leader(self, reason: str, now: float) -> None:
        """The leader is gone or never was: search on."""
        led = self.pursuit is not None and self.pursuit.leader is not None
        self.drop_pursuit(now)
        self.to(Trigger.LOSE)
        self.note(reason, now)
        if led:
            self.search.begin(now)
        else:  # a ghost: the search goes on, or enough of them would keep us from ever leading
            self.search.try_adverts(now)
        self.settle(now)

    def follow_instead(self, advert: Advert, note: str, now: float) -> None:
        """Our leader yielded."""
        self.drop_pursuit(now)
        self.to(Trigger.CONNECT)
        self.search.follow(advert, now)
        self.note(note, now)
        self.settle(now)

    def yield_to(self, advert: Advert, winner: Contest, remote: str, now: float) -> None:
        """A rival leads. An explicit rank 0 here has lost its place, and is told to whom."""
        assert self.claim is not None
        self.claim.yield_to(advert, winner.node.host)
        self.drop_claim(now)
        self.to(Trigger.YIELD)
        self.search.follow(advert, now)
        if winner.unreached:
            self.unreachable = True
            port = self.ctx.link_port
            where = f"{winner.node.host} ({remote})"
            self.note(f"{where} cannot connect to {self.home.here()} port {port}: a firewall?", now)
        sentence = (
            f"job {self.job}: rank 0 is {winner.node.host} ({remote}), claimed there by "
            f"{winner.user or 'somebody'}; this claim on {self.ctx.host} yields: give this node "
            "another rank, or this job another ID"
        )
        explicit = [s.participant for s in self.waiting() if s.join.rank == 0]
        if explicit:
            self.fail_waiting(Conflict.code, sentence, now, only=explicit)
        self.settle(now)

    def outcome_unknown(self, where: str, now: float) -> None:
        """Acknowledged, and then no word: neither success nor failure may be said."""
        assert self.pursuit is not None
        assert self.pursuit.prepare is not None
        round_ = self.pursuit.prepare.round
        members = {m.participant for m in self.pursuit.prepare.members}
        error = Indeterminate(
            f"job {self.job}, round {round_}: the link to {where} broke after this node had "
            "agreed, so nobody here knows whether the round was sealed; look at rank 0 before "
            "you start again"
        )
        self.drop_pursuit(now)
        for seat in [s for s in self.waiting() if s.participant in members]:
            self.ctx.do(tell_failed(seat.participant, error))
            seat.ending = "indeterminate"
        self.to(Trigger.GIVE_UP)
        self.search.begin(now)
        self.settle_open_endings(now)

    # ------------------------------------------------------------ discovery

    def advert_heard(self, advert: Advert, now: float) -> None:
        """New or changed; it is in the book."""
        self.watches.advertised(advert, now)
        if self.claim is not None:
            self.claim.contests.heard(advert, now)
        elif self.state in (State.SEARCHING, State.CONNECTING):
            self.search.try_adverts(now)
        elif self.state is State.FOLLOWING and self.pursuit is not None:
            self.pursuit.rival(advert)

    def advert_gone(self, claim: Nonce) -> None:
        if self.claim is not None:
            self.claim.contests.gone(claim)

    def addresses_changed(self, gone: frozenset[str], now: float) -> None:
        """This node's, and `gone` are no more. Sealed rounds stay as they are."""
        if self.claim is not None:
            self.claim.survey.forget_all()
            self.claim.advertise()
        elif self.pursuit is not None:
            self.pursuit.moved()
        for seat in self.seats.values():
            if seat.config is not None and seat.config.address in gone:
                notice = local.Notice(
                    kind="warning",
                    sentence=f"job {self.job}: the address {seat.config.address} of "
                    f"{self.ctx.host} is gone, and round {seat.config.round} uses it: training "
                    f"will hang unless it comes back; now there is {self.home.listening_on()}",
                )
                self.ctx.do(actions.Tell(participant=seat.participant, message=notice))
        self.progressed(now)

    # ------------------------------------------------------------ time

    def tick(self, now: float) -> None:
        self.desk.tick(now)
        if self.state in (State.SEARCHING, State.CONNECTING):
            self.search.tick(now)
        if self._asks():
            self.search.ask(now)
        if self.pursuit is not None:
            self.pursuit.tick(now)
        if self.claim is not None:
            self.claim.tick(now)
        self.watches.tick(now)
        self.cancels.tick(now)
        self.views.tick(now)

    def _asks(self) -> bool:
        """Somebody waits, and it is not known that one leader has everybody: a leader asks too,
        since the announcements of two may both have been lost."""
        asks = (State.SEARCHING, State.CONNECTING, State.LEADING)
        return self.state in asks and bool(self.waiting())

    def deadline(self) -> float | None:
        times: list[float | None] = [
            self.views.deadline(),
            self.watches.deadline(),
            self.cancels.deadline(),
        ]
        for seat in self.seats.values():
            times += [seat.adopt_by, seat.hint_at, seat.expect_at]
            if self.state not in BETWEEN:
                times.append(seat.deadline)
        if self.state in (State.SEARCHING, State.CONNECTING):
            times.append(self.search.deadline())
        if self._asks():
            times.append(self.search.asks_at)
        if self.pursuit is not None:
            times.append(self.pursuit.deadline())
        if self.claim is not None:
            times.append(self.claim.deadline())
        return min((t for t in times if t is not None), default=None)
