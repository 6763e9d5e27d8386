"""Is the other side still there? Silence makes suspect, fresh connections decide.

One link's silence proves nothing: at 30% packet loss most are silent for seconds now and then, and
one that training traffic saturates is, too. So a silent peer is asked anew, over one connection
after another. An answer, even a refusal, shows that its host is there; only if none comes, and the
silence has lasted, is it lost. A peer whose daemon is gone while its host answers stays watched in
the same way, until it attaches again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core import actions, messages
from mingled.core.messages import ADDRESSES_MAX
from mingled.core.reach import bare
from mingled.core.settings import doubled_s
from mingled.core.words import Label, Nonce

if TYPE_CHECKING:
    from mingled.core.job import Job

RoundKey = tuple[Nonce, int]
"""A claim, and the number of a round of it."""


class Watch:
    """One other daemon. Mutable."""

    __slots__ = (
        "addresses",
        "answers",
        "backoff",
        "claim",
        "failures",
        "heard_at",
        "hinted",
        "hints",
        "label",
        "link",
        "next_at",
        "node",
        "opened",
        "pings",
        "port",
        "probe",
        "probe_until",
        "reached",
        "rounds",
        "sign_at",
        "strayed",
    )

    def __init__(
        self,
        *,
        link: int | None,
        node: str,
        addresses: tuple[str, ...],
        port: int,
        label: Label,
        claim: Nonce,
        pings: bool,
        now: float,
    ) -> None:
        self.label = label  #: under which it was met
        self.link = link  #: None: its daemon is gone
        self.node = node
        self.addresses = addresses
        self.port = port
        self.claim = claim
        self.pings = pings  #: we ask; the other side does not
        self.heard_at = now  #: over the link
        self.sign_at = now  #: of its host, in whatever way
        self.failures = 0
        self.hinted: int | None = None  #: a port at which an advert says that it came back
        self.strayed = False  #: the last connection went to such a one
        self.hints: tuple[str, ...] = ()  #: a leader's other addresses, as adverts have them
        self.reached = ""  #: where the fresh connection leads
        self.probe: int | None = None  #: a fresh connection, being opened or asked
        self.probe_until = 0.0
        self.opened = False  #: ... is being asked
        self.answers = 0  #: ... and still owes so many
        self.next_at = now  #: the next one, where the link is gone
        self.backoff = 0
        self.rounds: frozenset[RoundKey] = frozenset()  #: why it is watched without a link


class Watches:
    """Of one job on one node."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ctx = job.ctx
        self._links: dict[int, Watch] = {}
        self._absent: dict[str, Watch] = {}  #: by node
        self._probes: dict[int, Watch] = {}
        self._ping_at = 0.0
        self._due: float | None = None

    # ------------------------------------------------------------ who is watched

    def add(
        self,
        link: int,
        node: str,
        addresses: tuple[str, ...],
        port: int,
        label: Label,
        claim: Nonce,
        *,
        pings: bool,
        now: float,
    ) -> None:
        """From now on, or still: a link that stands."""
        known = self._links.get(link)
        if known is not None:
            known.heard_at = known.sign_at = now
            return
        self._links[link] = Watch(
            link=link,
            node=node,
            addresses=addresses,
            port=port,
            label=label,
            claim=claim,
            pings=pings,
            now=now,
        )
        if pings and self._ping_at <= now:
            self._ping_at = now + self._ctx.settings.heartbeat_every_s
        self._due_by(now + self._ctx.settings.suspect_after_s)
        if pings:
            self._due_by(self._ping_at)

    def add_absent(
        self,
        node: str,
        addresses: tuple[str, ...],
        port: int,
        label: Label,
        claim: Nonce,
        rounds: frozenset[RoundKey],
        now: float,
    ) -> None:
        """A daemon of these rounds that we have no link to, and that may come back."""
        watch = Watch(
            link=None,
            node=node,
            addresses=addresses,
            port=port,
            label=label,
            claim=claim,
            pings=False,
            now=now,
        )
        watch.rounds = rounds
        self._set_absent(watch, now)

    def _set_absent(self, watch: Watch, now: float) -> None:
        old = self._absent.get(watch.node)
        if old is not None:
            self._end_probe(old)
            watch.rounds |= old.rounds
        self._absent[watch.node] = watch
        watch.next_at = now + self._ctx.settings.attach_min_s
        self._due_by(watch.next_at)

    def unlink(self, link: int, rounds: frozenset[RoundKey], now: float) -> None:
        """The link is gone. While rounds need that node, its host stays watched."""
        watch = self._links.pop(link, None)
        if watch is None:
            return
        self._end_probe(watch)
        if rounds:
            watch.link, watch.rounds, watch.backoff = None, rounds, 0
            self._set_absent(watch, now)

    def advertised(self, advert: messages.Advert, now: float) -> None:
        """Where a daemon that came back listens now, perhaps: at another port than before. Or our
        leader has other addresses; should its link fall silent now, it is looked for there."""
        for watch in self._links.values():
            known = {bare(a) for a in advert.addresses}
            if watch.claim == advert.claim and bare(watch.addresses[0]) not in known:
                watch.hints, watch.next_at = advert.addresses, now
                self._due_by(self._due_of(watch))
        for watch in self._absent.values():
            if watch.probe is not None or not set(watch.addresses) & set(advert.addresses):
                continue
            # Anybody can name a port: each other time it is looked for where it was.
            elsewhere = advert.port != watch.port and not watch.strayed
            watch.hinted = advert.port if elsewhere else None
            watch.next_at, watch.backoff = now, 0
            self._due_by(now)

    def back(self, node: str, key: RoundKey) -> None:
        """For this round it is linked again."""
        watch = self._absent.get(node)
        if watch is not None:
            watch.rounds -= {key}
            self._drop_unneeded(watch)

    def attached_over(self, link: int, message: messages.Attached, now: float) -> None:
        """... over a link that stands already, for another round or another participant."""
        watch = self._links.get(link)
        if watch is None or not self._job.rounds.need(link):
            return
        if self._job.attachments.attached(link, message, now):
            for absent in list(self._absent.values()):
                if absent.addresses == watch.addresses:
                    self.back(absent.node, (message.claim, message.round))

    def _drop_unneeded(self, watch: Watch) -> None:
        if not watch.rounds:
            self._absent.pop(watch.node, None)
            self._end_probe(watch)

    def prune(self, rounds: frozenset[RoundKey]) -> None:
        """Only these rounds still concern anybody here."""
        for watch in list(self._absent.values()):
            watch.rounds &= rounds
            self._drop_unneeded(watch)

    def expect(self, key: RoundKey) -> bool:
        """May a daemon come back to that round?"""
        return any(key in watch.rounds for watch in self._absent.values())

    def ago_s(self, link: int, now: float) -> float:
        """Seconds since that link's host gave a sign of life."""
        watch = self._links.get(link)
        return 0.0 if watch is None else now - watch.sign_at

    # ------------------------------------------------------------ signs of life

    def heard(self, link: int, now: float) -> None:
        """A frame came."""
        watch = self._links.get(link)
        if watch is not None:
            watch.heard_at = watch.sign_at = now
            watch.failures = 0
            watch.hints = ()

    def owns(self, link: int) -> bool:
        return link in self._probes

    def probe_opened(self, link: int, remote: str, now: float) -> None:
        """Its host answers. Who is it?"""
        watch = self._probes[link]
        watch.reached = bare(remote)
        watch.opened = True
        if watch.link is not None:
            self._ctx.send(link, messages.Ping(claim=watch.claim))
            return
        attaches = self._job.attachments.wanted(watch)
        watch.answers = len(attaches)
        for attach in attaches:
            self._ctx.send(link, attach)
        if not attaches:
            self._there(watch, now)

    def probe_received(self, link: int, message: messages.Message, now: float) -> None:
        watch = self._probes[link]
        match message:
            case messages.Pong() if watch.link is not None and message.node != watch.node:
                if watch.reached not in {bare(a) for a in watch.addresses}:
                    self._end_probe(watch)  # an advert alone had named it: that proves nothing
                    self._failed(watch, now)
                    return
                self._end_probe(watch)
                self._job.links.give_up(watch.link, "its daemon was started anew", now)
            case messages.Pong() if watch.link is not None and self._moved(watch, message):
                self._end_probe(watch)
                self._job.links.give_up(watch.link, "it has other addresses now", now)
            case messages.Pong() if watch.link is not None and (
                watch.reached not in {bare(a) for a in watch.addresses}
            ):
                self._end_probe(watch)  # somebody passes on what is not his: an advert led us there
                watch.hints = ()
                watch.next_at = now
                self._due_by(self._due_of(watch))
            case messages.Pong():
                self._there(watch, now)
            case messages.Refuse():
                watch.answers -= 1
                if watch.answers <= 0:
                    self._there(watch, now)
            case messages.Passed() if watch.link is None:
                self._job.rounds.passed_by((message.claim, message.round), message.newer, now)
                watch.answers -= 1
                if watch.answers <= 0:
                    self._there(watch, now)
            case messages.Attached() if watch.link is None:
                self._attached(link, message, watch, now)
            case _:
                pass

    @staticmethod
    def _moved(watch: Watch, message: messages.Pong) -> bool:
        """It says itself that it no longer has the address that the link leads to, and it has been
        reached at one that it has."""
        own = {bare(a) for a in message.addresses}
        return watch.reached in own and bare(watch.addresses[0]) not in own

    def _attached(self, link: int, message: messages.Attached, watch: Watch, now: float) -> None:
        """The probe is the link from now on. Other rounds' answers follow on it, or another try."""
        if not self._job.attachments.attached(link, message, now):
            self._there(watch, now)
            return
        self._probes.pop(link, None)
        watch.probe = None
        self.add(
            link,
            message.node,
            watch.addresses,
            watch.port,
            watch.label,
            watch.claim,
            pings=False,
            now=now,
        )
        self.back(watch.node, (message.claim, message.round))

    def probe_failed(
        self, link: int, reason: str, *, answered: bool, shed: bool, now: float
    ) -> None:
        """It could not be opened, or ended without an answer."""
        watch = self._probes.pop(link)
        watch.probe = None
        if not answered:
            self._failed(watch, now)
        elif watch.hints and not watch.opened:  # perhaps there, where anybody can have sent us to
            watch.hints = ()
            watch.next_at = now
            self._due_by(self._due_of(watch))
        elif watch.link is None or watch.opened or shed:
            self._there(watch, now)
        else:
            self._job.links.give_up(
                watch.link, f"its daemon is gone, its host answers: {reason}", now
            )

    def _there(self, watch: Watch, now: float) -> None:
        settings = self._ctx.settings
        self._end_probe(watch)
        watch.sign_at = now
        watch.failures = 0
        if watch.link is None:
            pause = settings.absent_every_s
            if self._job.attachments.wanted(watch):
                pause = doubled_s(settings.attach_min_s, watch.backoff, pause)
            elif watch.backoff:  # else it may just be on its way
                reason = "its daemon has not come back"
                self._job.rounds.daemonless(watch.node, watch.rounds, reason, now)
            watch.backoff += 1
            watch.next_at = now + pause
            self._job.rounds.prune(now)  # what could not be said is not kept for ever
        else:
            watch.next_at = now + settings.probe_s
        self._due_by(watch.next_at)

    def _failed(self, watch: Watch, now: float) -> None:
        settings = self._ctx.settings
        watch.failures += 1
        watch.next_at = max(now, watch.probe_until)
        self._due_by(watch.next_at)
        silence_s = now - watch.sign_at
        if watch.failures < settings.probe_failures or silence_s < self._patience_s(watch):
            return
        reason = f"silent for {silence_s:.0f} s, and {watch.failures} fresh connections failed"
        self._ctx.book.failed(watch.label, watch.claim, now)  # if it was advertised
        if watch.link is not None:
            self._job.links.give_up(watch.link, reason, now, lost=True)
        else:
            self._absent.pop(watch.node, None)
            self._job.rounds.lost(watch.node, watch.rounds, reason, silence_s, now)

    def _patience_s(self, watch: Watch) -> float:
        settings = self._ctx.settings
        sealed = watch.link is None or self._job.rounds.need(watch.link)
        return settings.silence_sealed_s if sealed else settings.suspect_after_s

    def _end_probe(self, watch: Watch) -> None:
        if watch.probe is not None:
            self._probes.pop(watch.probe, None)
            self._ctx.do(actions.CloseLink(link=watch.probe))
            watch.probe = None

    # ------------------------------------------------------------ time

    def tick(self, now: float) -> None:
        if self._due is None or now < self._due:
            return
        self._due = None
        settings = self._ctx.settings
        asks = [w for w in self._links.values() if w.pings]
        if asks and now >= self._ping_at:
            self._ping_at = now + settings.heartbeat_every_s
            for watch in asks:
                assert watch.link is not None
                self._ctx.send(watch.link, messages.Ping(claim=watch.claim))
        for watch in [*self._links.values(), *self._absent.values()]:
            if self._links.get(watch.link or 0) is watch or self._absent.get(watch.node) is watch:
                self._look(watch, now)  # else the end of another one took it along
        if any(w.pings for w in self._links.values()):
            self._due_by(self._ping_at)
        for watch in [*self._links.values(), *self._absent.values()]:
            self._due_by(self._due_of(watch))

    def _look(self, watch: Watch, now: float) -> None:
        settings = self._ctx.settings
        if watch.link is not None and now - watch.heard_at >= settings.link_stale_s:
            reason = f"its link was silent for {settings.link_stale_s:g} s, its host answers"
            self._job.links.give_up(watch.link, reason, now)
        elif watch.probe is not None and now >= watch.probe_until:
            self._end_probe(watch)
            self._failed(watch, now)
        elif now >= self._due_of(watch):
            places = tuple(dict.fromkeys(watch.addresses + watch.hints))[:ADDRESSES_MAX]
            watch.strayed = watch.hinted is not None
            port, watch.hinted = watch.hinted or watch.port, None
            watch.probe = self._job.home.open(watch.label, places, port)
            watch.probe_until = now + settings.probe_s
            watch.opened = False
            self._probes[watch.probe] = watch

    def _due_of(self, watch: Watch) -> float:
        """When it is to be looked at again."""
        if watch.probe is not None:
            return watch.probe_until
        if watch.link is None:
            return watch.next_at
        settings = self._ctx.settings
        patience_s = settings.moved_after_s if watch.hints else settings.suspect_after_s
        suspect_at = watch.sign_at + patience_s
        stale_at = watch.heard_at + settings.link_stale_s
        return min(max(suspect_at, watch.next_at), stale_at)

    def _due_by(self, when: float) -> None:
        self._due = when if self._due is None else min(self._due, when)

    def deadline(self) -> float | None:
        return self._due if self._links or self._absent else None

    def close(self) -> None:
        """The job is over here."""
        for watch in [*self._links.values(), *self._absent.values()]:
            self._end_probe(watch)
        self._links.clear()
        self._absent.clear()
