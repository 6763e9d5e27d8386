"""A daemon's shell around one core, that reports whatever a real one could: in any order, at any
time, of anybody. Bytes choose. What the core must keep, whatever it is told, is checked here."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable
from typing import Any, get_args

from mingled.core import actions, codec, events, local, messages
from mingled.core.rendezvous import Rendezvous
from mingled.core.settings import Settings
from mingled.core.words import Label, Nonce, ParticipantId
from mingled.errors import BadInput
from tests.fuzz.answers import PEER, to_action
from tests.fuzz.choices import Choices
from tests.fuzz.values import OWN_ADDRESSES, OWN_NODE, Values

SETTINGS = Settings(
    seats_max=3,
    jobs_max=3,
    jobs_per_user_max=2,
    seats_per_user_max=4,
    links_unbound_max=4,
    adverts_per_label_max=3,
    adverts_max=6,
    former_max=2,
    story_max=8,
)
"""Limits so low that a short run meets them."""

STEPS_MAX = 400
"""Of one run, however long the input is."""

SPINS_MAX = 12
"""Ticks that one core may need at one instant, as in the simulator; more is a busy loop."""

TICKS_MAX = 64
"""Of one step; then time jumps, as it does for a machine that was suspended."""

DUE_MAX = 64
"""Answers that a well-behaved world still has to give; the oldest are lost."""

STORY_LINES = 12
"""Told with a failure."""

DRAIN_S = 120.0
"""Longer than the core remembers anything of a job that has ended."""

PAUSES_S = (0.0, 0.01, 0.3, 1.0, 3.0, 16.0, 40.0, 700.0)

FRAMES: tuple[type[messages.Message], ...] = get_args(messages.type_of_peer_messages)

OF_ONE_LABEL = frozenset({messages.Join, messages.Contest, messages.Attach})
"""Taken only over links of the realm that they name."""

OF_A_PARTICIPANT: tuple[type[events.Event], ...] = (
    events.ClientVanished,
    events.HolderEnded,
    events.ClientAlive,
    events.ClientFinished,
    events.NameRefused,
    events.StoreOpened,
    events.StoreFailed,
)

REQUESTS: tuple[type[events.Event], ...] = (
    events.LeaveAsked,
    events.ReattachAsked,
    events.AdoptAsked,
    events.StatusAsked,
    events.CancelAsked,
    events.LogsAsked,
    events.MetricsAsked,
)

OTHERS: tuple[type[events.Event], ...] = (
    events.PathRefuted,
    events.PathProven,
    events.ProofFailed,
    events.ProofOpened,
    events.AddressesChanged,
    events.KeysChanged,
    events.DiscoveryNoted,
    events.PlacesTried,
    events.Ticked,
    events.Stopped,
)


class Broken(AssertionError):
    """The core does what it never may."""


def ensure(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


class Shell:
    """`log`: what went in and what came out, for whoever looks at a failure."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.values = Values(choices)
        self.now = 100.0
        addresses = tuple(
            events.Address(address=a, interface=i, prefix=24, virtual=i == "docker0")
            for a, i in zip(OWN_ADDRESSES, ("eth0", "eth0", "docker0"), strict=True)
        )
        self.core = Rendezvous(
            seed=bytes(32),
            node=OWN_NODE,
            host="gpu1",
            link_port=29_490,
            ring_port=41_873,
            addresses=addresses,
            own=frozenset(OWN_ADDRESSES),
            settings=SETTINGS,
        )
        self.log: deque[tuple[float, str, object]] = deque(maxlen=400)
        self.due: deque[events.Event] = deque(maxlen=DUE_MAX)
        self.opening: dict[int, actions.OpenLink] = {}
        self.links: list[int] = []  #: that stand
        self.trusted: dict[Label, None] = {}  #: realms whose members are let in
        self.labels: dict[int, Label] = {}  #: of links that were accepted
        self.closed_by_core: list[int] = []  #: what was received before may still be handed in
        self.requests: set[int] = set()  #: not answered yet
        self.cancels: set[int] = set()  #: the same, of those that may take a while
        self.ready: set[ParticipantId] = set()
        self.failed: set[ParticipantId] = set()
        self._accepted = 0
        self._asked = 0
        self._joined = 0
        self._last_tick = -1.0
        self._spins = 0
        self.deliver(events.KeysChanged(keys=()))

    # ------------------------------------------------------------ one step

    def run(self) -> None:
        """Until the input is used up."""
        for _ in range(STEPS_MAX):
            if not self.choices.left:
                break
            self.step()

    def drain(self) -> None:
        """Everybody goes and time passes: nothing is kept then."""
        self.due.clear()
        for participant in [p for job in self.core.jobs.values() for p in list(job.seats)]:
            self.deliver(events.HolderEnded(participant=participant, status=0))
            self.deliver(events.ClientVanished(participant=participant))
        for link in list(self.links):
            self.deliver(events.LinkClosed(link=link, reason="hung up", answered=True))
        for link in list(self.opening):
            self.deliver(events.LinkFailed(link=link, reason="no answer", answered=False))
        self.pass_time(DRAIN_S)
        core = self.core
        stories = {job.job: [*job.story] for job in core.jobs.values()}
        ensure(not core.jobs, f"jobs are kept: {stories}")
        ensure(core.deadline() is None, f"something is still due at {core.deadline()}")
        ensure(not core._ctx.ports, f"ports are kept: {core._ctx.ports}")
        ensure(set(self.trusted) == set(core._ctx.nodes), f"still let in: {self.trusted}")
        ensure(not core._hails._refused, f"visits are kept: {core._hails._refused}")

    def step(self) -> None:
        self.pass_time(self.choices.pick(PAUSES_S) if self.choices.chance(40) else 0.001)
        if self.due and self.choices.chance(112):
            self.deliver(self._altered(self.due.popleft()))
            return
        # What was chosen may be nothing that can exist: then nothing has happened.
        with contextlib.suppress(BadInput):
            event = self.choices.pick(HAPPENINGS)(self)
            if event is not None:
                self.deliver(event)

    def pass_time(self, pause_s: float) -> None:
        """Until then, with every tick that is due; a real loop is late now and then."""
        until = self.now + pause_s
        for _ in range(TICKS_MAX):
            deadline = self.core.deadline()
            if deadline is None or deadline > until:
                ensure(deadline is None or math.isfinite(deadline), f"a deadline of {deadline}")
                break
            self.now = max(self.now, deadline)
            self._spins = self._spins + 1 if self.now == self._last_tick else 0
            self._last_tick = self.now
            ensure(self._spins <= SPINS_MAX, f"busy loop: the deadline stays at {deadline}")
            self.deliver(events.Ticked())
        self.now = max(self.now, until)

    def deliver(self, event: events.Event) -> None:
        self.log.append((round(self.now, 3), "<-", event))
        if isinstance(event, events.LinkClosed | events.LinkFailed):
            self._forget(event.link)
            # Nothing is received on a link after its end.
            kept = [e for e in self.due if getattr(e, "link", None) != event.link]
            self.due = deque(kept, maxlen=DUE_MAX)
        for action in self.core.handle(event, self.now):
            self.log.append((round(self.now, 3), "->", action))
            self._perform(action)
        self._check()

    # ------------------------------------------------------------ what may happen

    def _altered(self, event: events.Event) -> events.Event:
        """Now and then almost right: what a liar says who knows the claim."""
        if isinstance(event, events.FrameReceived) and self.choices.chance(112):
            fields = event.message.__struct_fields__
            roster = isinstance(event.message, messages.Prepare) and self.choices.chance(128)
            name = "members" if roster else self.choices.pick(fields)
            with contextlib.suppress(BadInput):
                message = self.values.altered(event.message, name)
                return events.FrameReceived(link=event.link, message=message)
        return event

    def _join(self) -> events.Event:
        self._joined += 1
        participant = ParticipantId(f"{self._joined:032x}")
        join = self.values.struct(local.Join)
        holder = self.values.struct(events.Holder)
        self.values.learn(self.values.participants, participant)
        return events.JoinAsked(participant=participant, join=join, holder=holder)

    def _advert(self) -> events.Event:
        if self.choices.chance(200):
            return self.values.struct(events.AdvertHeard)
        return self.values.struct(events.AdvertGone)

    def _accept(self) -> events.Event:
        """Somebody who has shown to be in a realm that is let in."""
        self._accepted += 2
        self.links.append(self._accepted)
        label = self.labels[self._accepted] = self.choices.pick(list(self.trusted))
        return self.values.struct(events.LinkAccepted, link=self._accepted, label=label)

    def _opened(self) -> events.Event | None:
        if not self.opening:
            return None
        link = self.choices.pick(list(self.opening))
        asked = self.opening.pop(link)
        if self.choices.chance(64):
            return self.values.struct(events.LinkFailed, link=link)
        self.links.append(link)
        remote = asked.addresses[0] if asked.addresses else "10.0.0.2"
        return self.values.struct(events.LinkOpened, link=link, remote_address=remote)

    def _frame(self) -> events.Event | None:
        links = self.links or self.closed_by_core
        if not links:
            return None
        if self.closed_by_core and self.choices.chance(16):
            links = self.closed_by_core
        link = self.choices.pick(links)
        return events.FrameReceived(link=link, message=self._message(link))

    def _message(self, link: int) -> messages.Message:
        kind = self.choices.pick(FRAMES)
        fixed: dict[str, Any] = {}
        if kind in OF_ONE_LABEL and link in self.labels and self.choices.chance(232):
            fixed = {"label": self.labels[link]}
        if kind is messages.Join and self.choices.chance(160):
            # As a follower would put it: of the claim that is advertised, with one participant.
            entry = self.values.struct(messages.Entry, nproc=1, user="ann", any_user=True)
            fixed |= {"node": PEER, "entries": (entry,), "version": codec.VERSION}
        return self.values.struct(kind, **fixed)

    def _lost(self) -> events.Event | None:
        if not self.links:
            return None
        return self.values.struct(events.LinkClosed, link=self.choices.pick(self.links))

    def _known(self) -> events.Event:
        """Of a participant."""
        return self.values.struct(self.choices.pick(OF_A_PARTICIPANT))

    def _local(self) -> events.Event:
        """A request on a connection of its own."""
        kind = self.choices.pick(REQUESTS)
        fixed: dict[str, Any] = {}
        if kind is events.ReattachAsked:
            asked = self.values.struct(local.Reattach)
            fixed = {"join": asked.join, "config": asked.config, "participant": asked.participant}
            self.values.learn(self.values.participants, asked.participant)
        self._asked += 1
        event = self.values.struct(kind, request=self._asked, **fixed)
        # A cancel is answered once the other nodes have said what came of it.
        (self.cancels if kind is events.CancelAsked else self.requests).add(self._asked)
        return event

    def _else(self) -> events.Event:
        kind = self.choices.pick(OTHERS)
        if kind is events.Stopped and not self.choices.chance(64):
            kind = events.Ticked
        return self.values.struct(kind)

    # ------------------------------------------------------------ what comes of it

    def _perform(self, action: actions.Action) -> None:
        match action:
            case actions.OpenLink():
                ensure(action.link % 2 == 1, f"{action} is no link of the core's own")
                self.opening[action.link] = action
            case actions.CloseLink():
                if action.link in self.links:
                    self.closed_by_core.append(action.link)
                    del self.closed_by_core[:-4]
                self._forget(action.link)
            case actions.SendFrame():
                if isinstance(action.message, messages.Join | messages.Contest):
                    self.values.learn(self.values.claims, action.message.claim)
                line = codec.encode(action.message)
                ensure(len(line) <= messages.FRAME_SIZE_BYTES_MAX, f"a frame of {len(line)} bytes")
                messages.peer_decoder.decode(line)
            case actions.Tell():
                self._told(action.participant, action.message)
            case actions.Answer():
                self._answered(action.request)
                local.reply_decoder.decode(codec.encode(action.message))
            case actions.Describe() | actions.Recount() | actions.Measure():
                self._answered(action.request)
            case actions.Seated():  # a new life, whatever it was told before
                self.ready.discard(action.participant)
                self.failed.discard(action.participant)
            case actions.Advertise():
                self.values.learn(self.values.claims, action.advert.claim)
            case actions.Trust():
                self.trusted[action.realm.label] = None
                if action.realm.label not in self.core._ctx.nodes:
                    self.values.learn(self.values.labels, action.realm.label)
            case actions.Distrust():
                del self.trusted[action.label]
                with contextlib.suppress(ValueError):  # a node's, or of longer ago
                    self.values.labels.remove(action.label)
            case actions.OpenProof() | actions.ProvePath():
                self.values.learn(self.values.proofs, action.proof)
            case _:
                pass
        self.due.extend(to_action(action))

    def _told(self, participant: ParticipantId, message: local.Local) -> None:
        local.reply_decoder.decode(codec.encode(message))
        match message:
            case local.Ready():
                ensure(participant not in self.ready, f"{participant} is released twice")
                ensure(participant not in self.failed, f"{participant} is released, having failed")
                ensure(message.participant == participant, f"{participant}: another's config")
                self.ready.add(participant)
                if message.token is not None:
                    self.values.learn(self.values.tokens, message.token)
            case local.Failed():
                ended = message.code == "cancelled"  # its lease, after its release
                released = participant in self.ready
                ensure(ended or not released, f"{participant} fails, being released: {message}")
                ensure(participant not in self.failed, f"{participant} fails twice: {message}")
                self.failed.add(participant)
            case local.OpenStore():
                self.values.learn(self.values.proofs, Nonce(message.proof))
            case _:
                pass

    def _answered(self, request: int) -> None:
        known = self.requests | self.cancels
        ensure(request in known, f"request {request} is answered twice, or was never made")
        self.requests.discard(request)
        self.cancels.discard(request)

    def _forget(self, link: int) -> None:
        self.opening.pop(link, None)
        self.labels.pop(link, None)
        if link in self.links:
            self.links.remove(link)

    # ------------------------------------------------------------ what must hold

    def _check(self) -> None:
        ensure(not self.requests, f"requests {self.requests} are not answered")
        core, limits = self.core, SETTINGS
        ctx = core._ctx
        ensure(len(core.jobs) <= limits.jobs_max, f"{len(core.jobs)} jobs")
        ensure(len(core._unbound) <= limits.links_unbound_max, f"{len(core._unbound)} unbound")
        ensure(len(ctx.book) <= limits.adverts_max, f"{len(ctx.book)} adverts")
        ensure(len(ctx.former._jobs) <= limits.former_max, f"{len(ctx.former._jobs)} former jobs")
        ensure(set(core._ends) <= set(self.links), f"links {set(core._ends)} of {self.links}")
        ensure(len(ctx.ports) <= limits.jobs_max, f"ports {ctx.ports}")
        for job in core.jobs.values():
            ensure(len(job.seats) <= limits.seats_max, f"{len(job.seats)} seats of {job.job}")
            ensure(
                len(job.unreached) <= limits.adverts_per_label_max, f"unreached: {job.unreached}"
            )
        for label, claims in ctx.book._by_label.items():
            ensure(len(claims) <= limits.adverts_per_label_max, f"{len(claims)} adverts: {label}")


HAPPENINGS: tuple[Callable[[Shell], events.Event | None], ...] = (
    Shell._join,
    Shell._frame,
    Shell._frame,
    Shell._advert,
    Shell._accept,
    Shell._opened,
    Shell._lost,
    Shell._known,
    Shell._local,
    Shell._else,
)


def play(data: bytes) -> Shell:
    """One run. Raises whatever the core raises, and `Broken`, with what happened last."""
    shell = Shell(Choices(data))
    try:
        shell.run()
    except Exception as error:
        for line in [*shell.log][-STORY_LINES:]:
            error.add_note(str(line))
        raise
    return shell
