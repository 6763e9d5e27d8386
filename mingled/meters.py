"""What a daemon counts, at this one place, from the events and actions of its loop.

Plain numbers: `mingled.metrics` gives them their names when somebody asks. No job, user or host is
counted by name, so that anybody may read them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque

from mingled.core import actions, events, local, messages
from mingled.core.words import Form, Nonce, ParticipantId

WAITS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 3600.0)
"""Upper bounds of the histogram of rendezvous, in seconds: half a second is usual, and ten minutes
the default of --timeout."""

ROUNDS_KEPT = 1_024
"""The last rounds, so that each is counted once for all its members here: as many as jobs."""


class Meters:
    """Mutable; counts from the daemon's start."""

    def __init__(self) -> None:
        self.joins: Counter[str] = Counter()  #: by form
        self.seals: Counter[str] = Counter()  #: by this node's part in it, leader or member
        self.failures: Counter[str] = Counter()  #: by code of `mingled.errors`
        self.ends: Counter[str] = Counter()  #: released participants, by how
        self.adverts: Counter[str] = Counter()  #: heard, by rung
        self.frames: Counter[str] = Counter()  #: of the peer link, by direction
        self.links: Counter[str] = Counter()  #: by what became of them
        self.waits = [0] * (len(WAITS_S) + 1)  #: rendezvous by bucket, each once
        self.waited_s = 0.0  #: all of them together
        self._leaving: tuple[ParticipantId, str] | None = None  #: by its own word, and how it went
        self._open: dict[int, str] = {}  #: links that stand, and whose daemon is there, if known
        self._rounds: deque[tuple[Nonce, int]] = deque(maxlen=ROUNDS_KEPT)

    @property
    def open_links(self) -> int:
        return len(self._open)

    @property
    def nodes(self) -> int:
        """Other daemons that are linked with."""
        return len(set(self._open.values()) - {""})

    def took(self, event: events.Event) -> None:
        """An event goes to the core."""
        self._leaving = None
        match event:
            case events.JoinAsked():
                self.joins[event.join.form.value] += 1
            case events.HolderEnded():
                self.ends["well" if event.status == 0 else "badly"] += 1
            case events.LeaveAsked() if event.participant is not None:
                self._leaving = event.participant, "badly" if event.lost else "well"
            case events.AdvertHeard():
                self.adverts[event.rung] += 1
            case events.LinkOpened() | events.LinkAccepted():
                self.links["opened" if isinstance(event, events.LinkOpened) else "accepted"] += 1
                self._open[event.link] = ""
            case events.LinkFailed():
                self.links["failed"] += 1
            case events.LinkClosed():
                self._open.pop(event.link, None)
            case events.FrameReceived():
                self.frames["received"] += 1
                if event.link in self._open:
                    self._open[event.link] = _node(event.message) or self._open[event.link]
            case _:
                pass

    def did(self, action: actions.Action) -> None:
        """An action is performed."""
        match action:
            case actions.SendFrame():
                self.frames["sent"] += 1
            case actions.CloseLink():
                self._open.pop(action.link, None)
            case actions.Tell(message=local.Ready() as ready):
                self._released(ready)
            case actions.Tell(message=local.Failed() as failed):
                if self._leaving is not None and action.participant == self._leaving[0]:
                    self.ends[self._leaving[1]] += 1
                else:
                    self.failures[failed.code] += 1
            case actions.Answer(message=local.Failed() as failed):
                self.failures[failed.code] += 1
            case _:
                pass

    def _released(self, ready: local.Ready) -> None:
        self.waits[bisect_left(WAITS_S, ready.waited_s)] += 1
        self.waited_s += ready.waited_s
        config = ready.config
        key = (config.claim, config.round)
        if config.form is not Form.PLAIN and key not in self._rounds:
            self._rounds.append(key)
            # Rank 0 is released first, where it is here.
            self.seals["leader" if config.rank == 0 else "member"] += 1


def _node(message: messages.Message) -> str:
    """Whose daemon says that, where it does."""
    match message:
        case messages.Join() | messages.Welcome() | messages.Attach():
            return str(message.node.node)
        case messages.Attached() | messages.Pong():
            return str(message.node)
        case _:
            return ""
