"""The pure core of a daemon: events in, actions out.

    core = Rendezvous(...)
    while True:
        event = next event, or Ticked() once core.deadline() has come
        for action in core.handle(event, now):
            perform(action)                 # what comes of it returns as an event

No clock, no randomness, no input or output in here; the simulator runs thousands of these.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from mingled.core import actions, events, local, lookalikes, messages, quotas
from mingled.core.context import Context
from mingled.core.events import Address, Event
from mingled.core.hail import Hails
from mingled.core.job import Job
from mingled.core.links import stale
from mingled.core.seat import Seat, failed_by, tell_failed
from mingled.core.secrets import node_realms_of, realms_of
from mingled.core.settings import Settings
from mingled.core.stream import Stream
from mingled.core.words import JobId, Label, NodeId, ParticipantId
from mingled.errors import DaemonError, NotPermitted, Refused


class _Unbound(msgspec.Struct, kw_only=True):
    """An accepted link that has not said what it wants."""

    local: Address
    remote: str
    label: Label  #: of the realm that it is in
    until: float


class Rendezvous:
    """Every job of one daemon.

    `seed`: 32 random bytes, from which all nonces and jitter come. `node`: drawn at the daemon's
    start. `link_port`: where the peer link listens; `ring_port`: an ephemeral one that says the
    node id, by which others prove their path to this node. `addresses`: candidates, best first;
    `own`: every address of this machine; `restricted`: a user has chosen among them.
    The first event is KeysChanged; without it nobody but this machine is let in.
    Times are seconds of one monotonic clock that the caller keeps.
    """

    def __init__(
        self,
        *,
        seed: bytes,
        node: NodeId,
        host: str,
        link_port: int,
        ring_port: int,
        addresses: tuple[Address, ...],
        own: frozenset[str] = frozenset(),
        restricted: bool = False,
        settings: Settings | None = None,
    ) -> None:
        self._ctx = Context(
            settings=settings or Settings(),
            stream=Stream(seed),
            node=node,
            host=host,
            link_port=link_port,
            ring_port=ring_port,
            addresses=addresses,
            own=own,
            restricted=restricted,
        )
        self.jobs: dict[JobId, Job] = {}
        #: what the last event has changed: job, kind and text, in order
        self.story: list[tuple[JobId, actions.StoryKind, str]] = []
        self._unbound: dict[int, _Unbound] = {}
        self._ends: dict[int, tuple[Address, str]] = {}  #: of each link, ours and the other
        self._leaving: dict[Label, float] = {}  #: realms of jobs that are over, and until when
        self._hails = Hails(self._ctx, lambda: self.jobs.values())

    @property
    def idle(self) -> bool:
        """No local participant, and no cancel that others are still to hear of: a private daemon
        may end."""
        return not any(job.seats or job.cancels.open for job in self.jobs.values())

    @property
    def counts(self) -> dict[str, int]:
        """What is held in memory just now."""
        return {
            "jobs": len(self.jobs),
            "seats": sum(len(job.seats) for job in self.jobs.values()),
            "adverts heard": len(self._ctx.book),
            "links without a job": len(self._unbound),
        }

    def handle(self, event: Event, now: float) -> list[actions.Action]:
        """Take one event; the actions to perform, in order. Never raises for what a user or a
        peer sent. `now` must not go back."""
        self._dispatch(event, now)
        for job in [j for j in self.jobs.values() if j.over]:
            job.watches.close()
            del self.jobs[job.job]
            for label in job.labels:
                self._leaving[label] = now + self._ctx.settings.realm_kept_s
        self.story, self._ctx.story = self._ctx.story, []
        out, self._ctx.out = self._ctx.out, []
        for action in out:
            if isinstance(action, actions.CloseLink):  # no LinkClosed follows
                self._ends.pop(action.link, None)
        return out

    def deadline(self) -> float | None:
        """When to hand in `Ticked`, at the latest; None: not before the next event."""
        times = [job.deadline() for job in self.jobs.values()]
        times += [u.until for u in self._unbound.values()]
        times += self._leaving.values()
        return min((t for t in times if t is not None), default=None)

    def _dispatch(self, event: Event, now: float) -> None:
        match event:
            case events.JoinAsked():
                self._join(event, now)
            case events.ClientVanished():
                found = self._seat(event.participant)
                if found:
                    found[0].desk.vanished(found[1], now)
            case events.ClientAlive():
                found = self._seat(event.participant)
                if found:
                    found[1].alive(now)
            case events.ClientFinished():
                found = self._seat(event.participant)
                if found:
                    found[0].rounds.finished(event.participant, now)
            case events.HolderEnded():
                found = self._seat(event.participant)
                if found:
                    found[0].desk.holder_ended(found[1], event.status, now)
            case events.ReattachAsked():
                self._reattach(event, now)
            case events.StoreOpened() | events.StoreFailed():
                self._store(event, now)
            case events.LeaveAsked() | events.AdoptAsked() | events.StatusAsked():
                self._request(event, now)
            case events.CancelAsked():
                self._cancel(event, now)
            case events.LogsAsked():
                recount = actions.Recount(
                    request=event.request, job=event.job, uid=event.uid, after=event.after
                )
                self._ctx.do(recount)
            case events.MetricsAsked():
                self._ctx.do(actions.Measure(request=event.request))
            case events.AdvertHeard() | events.AdvertGone() | events.AddressesChanged():
                self._discovery(event, now)
            case events.DiscoveryNoted():
                for job in self.jobs.values():
                    if event.label is None or event.label in job.labels:
                        job.views.discovery_noted(event.sentence)
            case events.NameRefused():
                found = self._seat(event.participant)
                if found:
                    found[0].warn(found[1], f"{event.name} is not answered: {event.reason}")
            case events.PlacesTried():
                self._hails.tried(event)
            case events.LinkOpened() | events.LinkFailed() | events.LinkAccepted():
                self._link(event, now)
            case events.FrameReceived():
                self._frame(event, now)
            case events.LinkClosed():
                self._link_lost(event, now)
            case events.ProofOpened() | events.ProofFailed():
                self._proof(event, now)
            case events.PathProven() | events.PathRefuted():
                self._path(event, now)
            case events.KeysChanged():
                self._keys_changed(event)
            case events.Ticked():
                self._tick(now)
            case events.Stopped():
                for job in list(self.jobs.values()):
                    job.desk.stop(event.reason, now)
            case _:
                raise TypeError(type(event).__name__)  # its fields may hold secrets

    # ------------------------------------------------------------ local

    def _join(self, event: events.JoinAsked, now: float) -> None:
        refused = self._no_place(event.join.job, event.holder)
        if refused is not None:
            self._ctx.do(tell_failed(event.participant, refused))
            self._ctx.do(actions.Release(participant=event.participant))
            return
        job = self.jobs.get(event.join.job)
        if job is None:
            job = self._job(event.join)
        job.desk.join(event, now)
        lookalikes.warn(self.jobs.values(), job, event.holder)

    def _no_place(self, job: JobId, holder: events.Holder) -> Refused | None:
        return quotas.no_place(self.jobs, job, holder, self._ctx.settings, self._ctx.host)

    def _job(self, join: local.Join) -> Job:
        job = self.jobs[join.job] = Job(self._ctx, join.job, join.secret)
        return job

    def _reattach(self, event: events.ReattachAsked, now: float) -> None:
        job = self.jobs.get(event.join.job)
        found = self._seat(event.participant)
        if found is not None and found[0] is not job:
            sentence = f"job {event.join.job}: this participant is in another job here"
            answer = failed_by(NotPermitted(sentence))
            self._ctx.do(actions.Answer(request=event.request, message=answer))
            return
        refused = None if found else self._no_place(event.join.job, event.holder)
        if refused is not None:
            self._ctx.do(actions.Answer(request=event.request, message=failed_by(refused)))
            return
        if job is None:
            job = self._job(event.join)
        job.desk.reattach(event, now)

    def _store(self, event: events.StoreOpened | events.StoreFailed, now: float) -> None:
        found = self._seat(event.participant)
        claim = found[0].claim if found else None
        if claim is None or not claim.seal.owns(event.participant, event.proof):
            return  # it was asked for by an attempt that is over
        if isinstance(event, events.StoreOpened):
            claim.seal.port_opened(event.proof, event.port, now)
        else:
            claim.seal.port_failed(event.proof, event.reason, now)

    def _seat(self, participant: ParticipantId) -> tuple[Job, Seat] | None:
        for job in self.jobs.values():
            if participant in job.seats:
                return job, job.seats[participant]
        return None

    def _request(
        self, event: events.LeaveAsked | events.AdoptAsked | events.StatusAsked, now: float
    ) -> None:
        match event:
            case events.LeaveAsked():
                job = self.jobs.get(event.job)
                count = (
                    job.desk.leave(
                        event.uid,
                        event.participant,
                        event.lost,
                        event.reason,
                        now,
                        closes=event.closes,
                    )
                    if job
                    else 0
                )
                self._ctx.do(actions.Answer(request=event.request, message=local.Done(count=count)))
            case events.AdoptAsked():
                self._ctx.do(actions.Answer(request=event.request, message=self._adopt(event, now)))
            case events.StatusAsked():
                jobs = tuple(
                    job.views.report(now)
                    for job in self.jobs.values()
                    if event.uid == 0 or any(s.holder.uid == event.uid for s in job.seats.values())
                )
                self._ctx.do(actions.Describe(request=event.request, jobs=jobs))
            case _:
                assert_never(event)

    def _cancel(self, event: events.CancelAsked, now: float) -> None:
        job = self.jobs.get(event.job)
        if job is not None and job.cancels.concerned:
            job.cancels.asked(event, now)
            return
        labels = [realm.label for realm in realms_of(event.job, self._ctx.keys)]
        led = dict.fromkeys(
            h.advert.addresses[0] for h in self._ctx.book.of(*labels) if h.advert.addresses
        )
        answer = local.Cancelled(job=event.job, nodes=(), elsewhere=tuple(led))
        self._ctx.do(actions.Answer(request=event.request, message=answer))

    def _adopt(self, event: events.AdoptAsked, now: float) -> local.Local:
        for job in self.jobs.values():
            for seat in list(job.seats.values()):
                if seat.token is not None and seat.token == event.token:
                    return job.desk.adopt(seat, event, now)
        return local.Failed(
            code=DaemonError.code,
            sentence=f"no lease on {self._ctx.host} waits for that token; it is kept for "
            f"{self._ctx.settings.adopt_s:g} s: run mingle-wait again",
        )

    # ------------------------------------------------------------ discovery

    def _discovery(
        self, event: events.AdvertHeard | events.AdvertGone | events.AddressesChanged, now: float
    ) -> None:
        match event:
            case events.AdvertHeard():
                job = self._by_label(event.advert.label)
                own = job is not None and job.claim is not None
                if own and job and job.claim and job.claim.nonce == event.advert.claim:
                    return
                if self._ctx.book.add(event.advert, event.rung) and job is not None:
                    job.advert_heard(event.advert, now)
            case events.AdvertGone():
                job = self._by_label(event.label)
                gone = self._ctx.book.gone(event.label, event.claim, event.rung)
                if gone and job is not None:
                    job.advert_gone(event.claim)
            case events.AddressesChanged():
                self._addresses_changed(event, now)
            case _:
                assert_never(event)

    def _addresses_changed(self, event: events.AddressesChanged, now: float) -> None:
        """A cable was pulled, a lease renewed. Links that began at an address that is gone are dead
        although nobody has said so."""
        ctx, before = self._ctx, self._ctx.own
        changed = event.addresses != ctx.addresses
        ctx.addresses = event.addresses
        ctx.own = event.own | {a.address for a in event.addresses}
        for link, (local_, _) in list(self._ends.items()):
            if local_.address in before and local_.address not in ctx.own:
                job = self._owner(link)
                if job is not None:
                    reason = f"the address {local_.address} of this node is gone"
                    job.links.give_up(link, reason, now)
                elif self._unbound.pop(link, None) is not None:
                    ctx.do(actions.CloseLink(link=link))
        if changed:
            for job in self.jobs.values():
                job.addresses_changed(before - ctx.own, now)

    def _by_label(self, label: Label) -> Job | None:
        return next((j for j in self.jobs.values() if label in j.labels), None)

    # ------------------------------------------------------------ keys

    def _keys_changed(self, event: events.KeysChanged) -> None:
        """Jobs that are here go on with what they began with, and take what is new as well."""
        ctx = self._ctx
        ctx.keys = event.keys
        before, ctx.nodes = ctx.nodes, {r.label: r for r in node_realms_of(event.keys)}
        for label in before.keys() - ctx.nodes.keys():
            ctx.do(actions.Distrust(label=label))
        for label, realm in ctx.nodes.items():
            if label not in before:
                ctx.do(actions.Trust(realm=realm))
        for job in self.jobs.values():
            job.trust()

    # ------------------------------------------------------------ peers

    def _link(
        self, event: events.LinkOpened | events.LinkFailed | events.LinkAccepted, now: float
    ) -> None:
        match event:
            case events.LinkOpened():
                local_ = self._ctx.own_end(event.local)
                self._ends[event.link] = (local_, event.remote_address)
                job = self._owner(event.link)
                if job is not None:
                    job.links.opened(event.link, local_, event.remote_address, now)
                else:
                    self._ctx.do(actions.CloseLink(link=event.link))
            case events.LinkFailed():
                self._link_lost(event, now)
            case events.LinkAccepted():
                if len(self._unbound) >= self._ctx.settings.links_unbound_max:
                    oldest = next(iter(self._unbound))
                    del self._unbound[oldest]
                    self._ctx.do(actions.CloseLink(link=oldest))
                local_ = self._ctx.own_end(event.local)
                self._ends[event.link] = (local_, event.remote_address)
                self._unbound[event.link] = _Unbound(
                    local=local_,
                    remote=event.remote_address,
                    label=event.label,
                    until=now + self._ctx.settings.first_frame_s,
                )
            case _:
                assert_never(event)

    def _owner(self, link: int) -> Job | None:
        return next((j for j in self.jobs.values() if j.links.owns(link)), None)

    def _link_lost(self, event: events.LinkFailed | events.LinkClosed, now: float) -> None:
        self._unbound.pop(event.link, None)
        self._ends.pop(event.link, None)
        self._hails.closed(event.link)
        job = self._owner(event.link)
        if job is not None:
            shed = isinstance(event, events.LinkFailed) and event.shed
            job.links.failed(event.link, event.reason, answered=event.answered, shed=shed, now=now)

    def _frame(self, event: events.FrameReceived, now: float) -> None:
        unbound = self._unbound.pop(event.link, None)
        if unbound is None:
            job, ends = self._owner(event.link), self._ends.get(event.link)
            if job is not None and ends is not None:  # else it was on its way when we closed
                job.links.received(event.link, *ends, event.message, now)
            return
        message = event.message
        if unbound.label in self._ctx.nodes:  # nobody's job: that belongs to who knows its secrets
            if self._hails.received(event.link, unbound.remote, message):
                unbound.until = now + self._ctx.settings.hail_s
                self._unbound[event.link] = unbound  # more may follow
                return
        elif isinstance(message, messages.Ping):
            job = self._by_label(unbound.label)
            pong = messages.Pong(
                claim=message.claim,
                node=self._ctx.node,
                addresses=job.home.candidates() if job is not None else (),
            )
            self._ctx.send(event.link, pong)
        elif isinstance(message, messages.Join | messages.Contest | messages.Attach) and (
            message.label != unbound.label
        ):
            pass  # it speaks of another job than the one that it has shown to be in
        elif isinstance(message, messages.Join | messages.Contest):
            self._first_frame(event.link, unbound, message, now)
            return
        elif isinstance(message, messages.Attach):
            job = self._by_label(message.label)
            if job is None or not job.attachments.attach(
                event.link, message, unbound.local, unbound.remote, now
            ):
                if job is not None:
                    job.attachments.refuse(event.link, message)
                else:
                    self._ctx.send(event.link, stale(message.claim, self._ctx.host))
                self._unbound[event.link] = unbound  # it may ask for another round
            return
        self._ctx.do(actions.CloseLink(link=event.link))

    def _first_frame(
        self,
        link: int,
        unbound: _Unbound,
        message: messages.Join | messages.Contest,
        now: float,
    ) -> None:
        job = self._by_label(message.label)
        wanted = message.claim if isinstance(message, messages.Join) else message.rival
        other = job is None or job.job != message.job
        if other or job is None or job.claim is None or job.claim.nonce != wanted:
            self._ctx.send(link, stale(wanted, self._ctx.host))
            self._ctx.do(actions.CloseLink(link=link))
        elif isinstance(message, messages.Join):
            job.claim.joined(link, unbound.local, unbound.remote, message, now)
        else:
            job.claim.contests.asked(link, message, unbound.local, unbound.remote, now)
            self._ctx.do(actions.CloseLink(link=link))

    # ------------------------------------------------------------ the proof

    def _proof(self, event: events.ProofOpened | events.ProofFailed, now: float) -> None:
        job = self.jobs.get(event.job)
        if job is None or job.claim is None:
            self._ctx.do(actions.CloseProof(proof=event.proof, keep=False))
            return
        plain, seal = job.claim.plain, job.claim.seal
        if isinstance(event, events.ProofOpened):
            if plain.owns(event.proof):
                plain.opened(event.port, now)
            else:
                seal.port_opened(event.proof, event.port, now)
        elif plain.owns(event.proof):
            plain.failed(event.reason, now)
        else:
            seal.port_failed(event.proof, event.reason, now)

    def _path(self, event: events.PathProven | events.PathRefuted, now: float) -> None:
        job = self.jobs.get(event.job)
        if job is None:
            return
        if isinstance(event, events.PathProven):
            if job.pursuit is not None:
                job.pursuit.path_proven(event)
            if job.claim is not None:
                job.claim.seal.path_proven(event, now)
        else:
            if job.pursuit is not None:
                job.pursuit.path_refuted(event, now)
            if job.claim is not None:
                job.claim.seal.path_refuted(event, now)

    # ------------------------------------------------------------ time

    def _tick(self, now: float) -> None:
        for label in [label for label, until in self._leaving.items() if now >= until]:
            del self._leaving[label]
            if self._by_label(label) is None:
                self._ctx.do(actions.Distrust(label=label))
        for link, unbound in list(self._unbound.items()):
            if now >= unbound.until:
                del self._unbound[link]
                self._ctx.do(actions.CloseLink(link=link))
        for job in list(self.jobs.values()):
            job.tick(now)
