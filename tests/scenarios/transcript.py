"""A world's log as lines for people: who said what to whom, what was proven, who was told what.

Left out is what changes nothing: ticks, pings, closes, progress without news, and frames where
they arrive, since they are shown where they are sent. A path that cannot be proven is not shown
either: the NACK or ABORT says so.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

import msgspec

from mingled.core import actions, events, local, messages
from mingled.core.messages import Advert, Entry, Message
from mingled.core.words import Form, Nonce, ParticipantId, Standing
from mingled.wording import gone_line, waiting_line
from tests.scenarios.play import Play
from tests.sim.network import address_of, host_of
from tests.sim.world import RING_PORT

WIDTH = 100
TOGETHER_S = 0.25  #: news that reach several nodes within this are one line, with the first's time
INDENT = 12  #: of what does not fit in a line

_STANDING = {
    Standing.NEWCOMER: "elected",
    Standing.INCUMBENT: "elected, of the last round",
    Standing.EXPLICIT: "asked for rank 0",
}


class _Line(msgspec.Struct):
    """Several that differ in `who` alone become one."""

    at: float
    before: str
    who: list[str]
    after: str

    def __str__(self) -> str:
        return self.before + ", ".join(dict.fromkeys(self.who)) + self.after


class Transcript:
    """Of one play, from its log."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self._world = play.world
        self._lines: list[_Line] = []
        self._claims: dict[Nonce, str] = {}
        self._peers: dict[tuple[int, int], int] = {}  #: (host, link) -> host at its other end
        self._failures: set[tuple[int, str]] = set()  #: (host, why it cannot connect)
        self._newest: dict[str, ParticipantId] = {}  #: join, by its holder
        self._nack = ""  #: the last reason of one
        self._news: dict[ParticipantId, tuple[int, str]] = {}  #: the last progress told
        for at, host, _, what in self._world.log:
            self._add(at, host, what)

    def lines(self) -> list[str]:
        return [
            wrapped
            for line in self._lines
            for wrapped in textwrap.wrap(
                f"{line.at:8.3f}  {line}",
                WIDTH,
                subsequent_indent=" " * INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
        ]

    # ------------------------------------------------------------ names

    def _name(self, host: int) -> str:
        """The host name, with the address where two have the same."""
        names = self._play.names
        single = names.count(names[host]) == 1
        return names[host] if single else f"{names[host]} ({address_of(host, 0)})"

    def _at(self, address: str) -> str:
        place = host_of(address)
        return address if place is None else self._name(place[0])

    def _where(self, address: str) -> str:
        there = self._at(address)
        return there if address in there else f"{there} ({address})"

    def _claim(self, claim: Nonce) -> str:
        """A, B, C, in the order of appearance."""
        return "claim " + self._claims.setdefault(claim, chr(ord("A") + len(self._claims)))

    def _rank(self, participant: ParticipantId) -> str:
        config = self._world.clients[participant].config
        return "nobody's rank" if config is None else f"rank {config.rank}"

    # ------------------------------------------------------------ lines

    def _say(self, at: float, host: int, text: str) -> None:
        """Of one host."""
        self._lines.append(_Line(at, "", [self._name(host)], f" {text}"))

    def _user(self, at: float, host: int, who: ParticipantId, text: str) -> None:
        """What a daemon tells a person."""
        newest = self._newest[self._world.clients[who].holder.identity]
        whom = "the user" if newest == who else "the join before"
        self._put(_Line(at, "", [self._name(host)], f" to {whom}: {text}"))

    def _put(self, line: _Line) -> None:
        last = self._lines[-1] if self._lines else None
        if last and (last.at, last.before, last.after) == (line.at, line.before, line.after):
            last.who += line.who
        else:
            self._lines.append(line)

    def _add(self, at: float, host: int, what: object) -> None:
        match what:
            case str():
                if host < 0:  # else the world's own, which a story has put in its own words
                    self._lines.append(_Line(at, "-- ", [], what))
            case actions.Tell():
                self._told(at, host, what.participant, what.message)
            case actions.SendFrame():
                self._send(at, host, what.link, self._frame(what.message))
            case events.Event():
                self._event(at, host, what)
            case actions.Action():
                self._action(at, host, what)
            case _:
                raise TypeError(what)

    def _send(self, at: float, host: int, link: int, text: str) -> None:
        if not text:
            return
        name, peer = self._name(host), self._peers[host, link]
        last = self._lines[-1]
        there = self._where(address_of(peer, 0))
        if last == _Line(at, f"{name} connects to ", [there], ""):
            last.after = f": {text}"  # its first word
        else:
            self._put(_Line(at, f"{name} -> ", [self._name(peer)], f": {text}"))

    def _event(self, at: float, host: int, event: events.Event) -> None:
        match event:
            case events.JoinAsked():
                again = ", again" if event.holder.identity in self._newest else ""
                self._newest[event.holder.identity] = event.participant
                words = f": {event.holder.user} runs {_command(event.join)}{again}"
                self._put(_Line(at, "", [self._name(host)], words))
            case events.LinkAccepted():
                self._met(host, event.link, event.remote_address)
            case events.LinkOpened():
                self._met(host, event.link, event.remote_address)
                there = self._where(event.remote_address)
                self._put(_Line(at, f"{self._name(host)} connects to ", [there], ""))
            case events.LinkFailed():
                self._failed(at, host, event)
            case events.LinkClosed() if event.reason != "closed by the other side":
                there = self._name(self._peers[host, event.link])
                self._say(at, host, f"loses its link to {there}: {event.reason}")
            case events.PathProven():
                place = self._place(event.address, event.port)
                self._put(_Line(at, f"{self._name(host)} proves its path ", [place], ""))
            case events.ProofFailed():
                self._say(at, host, f"has no port: {event.reason}")
            case _:
                pass

    def _failed(self, at: float, host: int, event: events.LinkFailed) -> None:
        """Once: it is tried again and again."""
        if (host, event.reason) not in self._failures:
            self._failures.add((host, event.reason))
            self._say(at, host, f"cannot connect: {event.reason}")

    def _met(self, host: int, link: int, remote: str) -> None:
        place = host_of(remote)
        assert place is not None
        self._peers[host, link] = place[0]

    def _place(self, address: str, port: int) -> str:
        what = f"{self._at(address)} in the ring" if port == RING_PORT else "rank 0"
        return f"to {what} at {address}:{port}"

    def _action(self, at: float, host: int, action: actions.Action) -> None:
        match action:
            case actions.Advertise():
                self._say(at, host, f"leads, and advertises {self._advert(action.advert)}")
            case actions.Withdraw():
                self._say(at, host, f"withdraws {self._claim(action.claim)}")
            case _:
                pass

    def _advert(self, advert: Advert) -> str:
        return f"{self._claim(advert.claim)} at {', '.join(advert.addresses)}:{advert.port}"

    # ------------------------------------------------------------ daemon to daemon

    def _frame(self, message: Message) -> str:
        """Empty: not worth a line."""
        match message:
            case messages.Join():
                doubt = ", and asks for the outcome" if message.prepared else ""
                return f"Join {self._claim(message.claim)}, {_entries(message.entries)}{doubt}"
            case messages.Welcome():
                return "Welcome"
            case messages.Refuse():
                return f"Refuse ({message.code}): {message.sentence}"
            case messages.Prepare():
                roster = ", ".join(f"{m.rank} {m.host} {m.address}" for m in message.members)
                master = f"{message.master_addr}:{message.master_port}"
                return f"PREPARE round {message.round}: {roster}; MASTER {master}"
            case messages.Ack():
                return "ACK"
            case messages.Nack():
                self._nack = message.reason
                return f"NACK: {message.reason}"
            case messages.Commit():
                return f"COMMIT round {message.round}"
            case messages.Abort():
                known = message.reason == self._nack
                return f"ABORT: {'as above' if known else message.reason}"
            case _:
                return self._frame_between_rounds(message)

    def _frame_between_rounds(self, message: Message) -> str:
        match message:
            case messages.Admit():
                return f"Admit: rank 0's port is {message.master_port}"
            case messages.Rival():
                return f"Rival: {self._claim(message.advert.claim)} was heard, too"
            case messages.Contest():
                runs = ", a round runs" if message.sealed else ""
                standing = _STANDING[message.standing]
                return f"Contest: {self._claim(message.claim)} ({standing}{runs})"
            case messages.Redirect():
                return f"Redirect: {message.host} leads now, {self._advert(message.advert)}"
            case messages.Dismiss():
                return f"Dismiss: {message.reason}"
            case messages.Ended():
                return f"Ended: {self._rank(message.participant)} {message.how}, {message.reason}"
            case messages.Gone():
                return f"Gone: rank {message.rank} {message.how}, {message.reason}"
            case messages.Waiting():
                return f"Waiting for the round after {message.round}: {message.count}"
            case messages.Passed():
                return f"Passed: round {message.newer} has followed round {message.round}"
            case messages.Attach():
                return f"Attach to round {message.round}"
            case messages.Attached():
                return f"Attached to round {message.round}"
            case _:
                return ""

    # ------------------------------------------------------------ daemon to people

    def _told(self, at: float, host: int, who: ParticipantId, message: local.Local) -> None:
        form = self._world.clients[who].join.form
        match message:
            case local.Ready():
                self._say(at, host, _released(message))
            case local.Failed():
                self._user(at, host, who, f"FAILED ({message.code}): {message.sentence}")
            case local.Notice():
                self._user(at, host, who, f"{message.kind}: {message.sentence}")
            case local.OpenStore():
                self._user(at, host, who, "open the store")
            case local.Gone():
                line = gone_line(message, form)
                if line:
                    self._user(at, host, who, line)
            case local.Waiting():
                self._user(at, host, who, f"{message.count} wait for the next round")
            case local.Progress():
                self._progress(at, host, who, message)
            case _:
                raise TypeError(message)

    def _progress(self, at: float, host: int, who: ParticipantId, message: local.Progress) -> None:
        """Only with news: why it does not go on, or which round runs."""
        round_ = message.running.round if message.running else 0
        news = (round_, re.sub(r"\d+ s\b", "", message.note))
        if news != self._news.get(who, (0, "")):
            self._news[who] = news
            if any(news):
                line = waiting_line(message, self._world.clients[who].join.form)
                self._together(_Line(at, "", [self._name(host)], f" to the user: {line}"))

    def _together(self, line: _Line) -> None:
        """Progress comes to each node in its own time, but means the same on all."""
        for known in reversed(self._lines):
            if known.at < line.at - TOGETHER_S:
                break
            if known.after == line.after:
                known.who += line.who
                return
        self._lines.append(line)


def _command(join: local.Join) -> str:
    """As a person types it."""
    words = ["mingle-wait --job", join.job]
    size = (
        f"{join.size_min}" if join.size_min == join.size_max else f"{join.size_min}:{join.size_max}"
    )
    if join.form is not Form.PLAIN:
        words += ["--nnodes" if join.form is Form.LAUNCHER else "--world-size", size]
    if join.rank is not None:
        words += ["--node-rank" if join.form is Form.LAUNCHER else "--rank", str(join.rank)]
    if join.timeout_s is not None:
        words += ["--timeout", f"{join.timeout_s:g}s"]
    return " ".join(words)


def _entries(entries: Iterable[Entry]) -> str:
    return ", ".join(map(_entry, entries)) or "nobody"


def _entry(entry: Entry) -> str:
    rank = "any rank" if entry.rank is None else f"rank {entry.rank}"
    return rank if entry.before is None else f"{rank}, had {entry.before}"


def _released(message: local.Ready) -> str:
    config = message.config
    of = "" if config.form is Form.PLAIN else f" of {len(config.members)}, round {config.round}"
    return f"is released: rank {config.rank}{of}, MASTER {config.master_addr}:{config.master_port}"


def render(title: str, play: Play) -> str:
    """The whole text of a story."""
    return "\n".join([*textwrap.wrap(title, WIDTH), "", *Transcript(play).lines(), ""])
