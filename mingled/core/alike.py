"""The leader's comparison of what its participants would run, and what people are told of it.

Whoever is here stays, and the later comer is refused, whichever of the two asks for the same. So
each two participants of a round have been compared in all that one of them requires. Here are those
who wait, and who runs in the newest round: a newcomer that fits nobody there must not wait for the
next one, and keep them out of it. Its members themselves may come back with something else, so that
a script can be mended between two rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mingled.core.messages import Entry
from mingled.core.roster import Present
from mingled.core.seat import Seat
from mingled.core.software import Party, differences, same_conflict
from mingled.core.words import Form, ParticipantId

if TYPE_CHECKING:
    from mingled.core.claim import Claim, Session


class Alike:
    """Owned by a claim."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._sealed: dict[ParticipantId, tuple[Entry, str]] = {}  #: the newest round's, and where

    def sealed(self, chosen: Iterable[Present]) -> None:
        """A round of these runs."""
        where = self._claim.where
        self._sealed = {p.entry.participant: (p.entry, where(p)) for p in chosen}

    def conflict(self, entry: Entry, there: str) -> str | None:
        """Why this one cannot be with those who are released and still there, naming both sides."""
        for other, here in (*self._members(entry), *self._plain()):
            if other.participant != entry.participant:
                sentence = same_conflict(other.stated, entry.stated, here=here, there=there)
                if sentence is not None:
                    return sentence
        return None

    def _members(self, entry: Entry) -> Iterator[tuple[Entry, str]]:
        """Of the newest round, to be compared with a newcomer."""
        newest = self._claim.job.rounds.newest
        if newest is None or entry.before is not None:
            return
        for member in newest.members.values():
            known = self._sealed.get(ParticipantId(member.participant))
            if known is not None and newest.fates[member.rank] in ("running", "unwatched"):
                yield known

    def _plain(self) -> Iterator[tuple[Entry, str]]:
        """Admitted in the plain form, which makes no round."""
        for seat in self._plain_seats():
            yield seat.entry(), self._claim.job.home.here()
        for session in self._claim.sessions.values():
            for entry in session.plain:
                yield entry, session.there

    def _plain_seats(self) -> list[Seat]:
        """Of this node, and released."""
        seats = self._claim.job.seats.values()
        return [s for s in seats if s.config is not None and s.config.form is Form.PLAIN]

    # ------------------------------------------------------------ for the people

    def between(self, chosen: Iterable[Present]) -> tuple[str, ...]:
        """What differs in a round of these."""
        own = self._claim.job.home.first_address()
        return differences([_party(p.entry, p.host, p.address or own) for p in chosen])

    def from_us(self, session: Session, entries: Iterable[Entry]) -> tuple[str, ...]:
        """In the plain form, where followers know of rank 0 alone: what differs between those on
        this node and these. Ours are told here."""
        job, seats = self._claim.job, self._plain_seats()
        own = job.home.first_address()
        parties = [_party(seat.entry(), job.ctx.host, own) for seat in seats]
        theirs = [_party(e, session.card.host, session.address) for e in entries]
        found = differences([*parties, *theirs]) if theirs else ()
        for seat in seats:
            for sentence in found:
                job.warn(seat, sentence)
        return found


def _party(entry: Entry, host: str, address: str) -> Party:
    return Party(host=host, address=address, pid=entry.pid, software=entry.software)
