"""The adverts that were heard: hints about who may lead what, bounded against a hostile network."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from itertools import zip_longest

import msgspec

from mingled.core.events import Rung
from mingled.core.messages import ADDRESSES_MAX, Advert, NodeCard
from mingled.core.settings import Settings, doubled_s
from mingled.core.words import Label, Nonce

OTHERS_MAX = 4
"""Other keys worth naming to a person."""


class Heard:
    """One claim's advert, from whichever rungs, and what came of trying it."""

    __slots__ = ("advert", "by_rung", "failures", "place", "retry_at", "vouched")

    def __init__(self, advert: Advert, rung: Rung, place: bytes) -> None:
        self.place = place  #: in an order that nobody else can foresee
        self.vouched: tuple[str, ...] = ()  #: addresses that its leader has named over a link
        self.by_rung: dict[Rung, Advert] = {rung: advert}
        self.advert = advert
        self.failures = 0
        self.retry_at = 0.0  #: not before; 0: at once

    def merge(self) -> bool:
        """What all rungs say together; True where that is news. Each may know addresses of its
        own (multicast knows which interface a link-local one belongs to), and what was heard last
        knows best."""
        newest = list(reversed(self.by_rung.values()))
        # In turn, so that what one rung says cannot push out what the others do.
        in_turn = zip_longest(*(advert.addresses for advert in newest))
        heard = (a for some in in_turn for a in some if a is not None)
        addresses = tuple(dict.fromkeys((*self.vouched, *heard)))
        merged = msgspec.structs.replace(newest[0], addresses=addresses[:ADDRESSES_MAX])
        before, self.advert = self.advert, merged
        same = merged.port == before.port and set(merged.addresses) == set(before.addresses)
        return not same


class AdvertBook:
    """All adverts on the LAN, by label and claim. Suspects (their connection failed) stay, since a
    live leader behind a lossy link looks the same; they are tried again ever more rarely."""

    def __init__(self, settings: Settings, salt: bytes = b"") -> None:
        self._settings = settings
        self._salt = salt
        self._by_label: dict[Label, dict[Nonce, Heard]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, advert: Advert, rung: Rung) -> bool:
        """Note an advert; True if it is new or says something new. A repeated one clears nothing:
        a ghost in many caches would else be tried at full speed for ever."""
        claims = self._by_label.setdefault(advert.label, {})
        known = claims.get(advert.claim)
        if known is not None:
            known.by_rung.pop(rung, None)
            known.by_rung[rung] = advert
            if not known.merge():
                return False
            known.failures, known.retry_at = 0, 0.0
            return True
        if len(claims) >= self._settings.adverts_per_label_max:
            # Whoever floods us with claims must not push out the one that is true: what has failed
            # goes first, then what came last; what a leader has vouched for stays.
            loose = [c for c in claims if not claims[c].vouched] or list(claims)
            worst = max(loose, key=lambda c: claims[c].failures)
            if not claims[worst].failures:
                return False
            self._drop(advert.label, worst)
        elif self._count >= self._settings.adverts_max:
            oldest = next(iter(self._by_label))
            self._drop(oldest, next(iter(self._by_label[oldest])))
        place = hashlib.sha256(self._salt + advert.claim.encode()).digest()
        heard = Heard(advert, rung, place)
        self._by_label.setdefault(advert.label, {})[advert.claim] = heard
        self._count += 1
        return True

    def gone(self, label: Label, claim: Nonce, rung: Rung) -> bool:
        """A rung no longer has it; True if none has."""
        known = self._by_label.get(label, {}).get(claim)
        if known is None:
            return True
        known.by_rung.pop(rung, None)
        known.by_rung.pop("told", None)  # whoever told had it from a rung that heard the same
        if known.by_rung:
            known.merge()
            return False
        self._drop(label, claim)
        return True

    def vouch(self, advert: Advert, card: NodeCard) -> None:
        """Over an authenticated link its leader has said where it is. That comes first from now
        on, whatever else is heard."""
        known = self._by_label.get(advert.label, {}).get(advert.claim)
        if known is not None:
            known.vouched = card.addresses
            known.merge()
            known.failures, known.retry_at = 0, 0.0

    def remove(self, label: Label, claim: Nonce) -> None:
        if claim in self._by_label.get(label, {}):
            self._drop(label, claim)

    def _drop(self, label: Label, claim: Nonce) -> None:
        claims = self._by_label[label]
        del claims[claim]
        self._count -= 1
        if not claims:
            del self._by_label[label]

    def of(self, *labels: Label) -> list[Heard]:
        """Every advert of one job: what has failed least first, of these what a leader has vouched
        for; then at random, so that whoever forges claims does not choose what is tried first."""
        found = [h for label in labels for h in self._by_label.get(label, {}).values()]
        return sorted(found, key=lambda h: (h.failures, not h.vouched, h.place))

    def others(self, key_ids: Collection[str]) -> dict[str, str]:
        """An address of each key that was heard of and is none of these, at most OTHERS_MAX."""
        found: dict[str, str] = {}
        for claims in self._by_label.values():
            for heard in claims.values():
                if heard.advert.key_id not in key_ids and len(found) < OTHERS_MAX:
                    found.setdefault(heard.advert.key_id, next(iter(heard.advert.addresses), "?"))
        return found

    def failed(self, label: Label, claim: Nonce, now: float) -> float:
        """The advert's address did not answer as its leader would. Returns when to try again."""
        known = self._by_label.get(label, {}).get(claim)
        if known is None:
            return now
        settings = self._settings
        pause = doubled_s(settings.retry_min_s, known.failures, settings.retry_max_s)
        known.failures += 1
        known.retry_at = now + pause
        return known.retry_at

    def held(self, label: Label, claim: Nonce) -> None:
        """Its leader answered: whatever failed before is forgiven."""
        known = self._by_label.get(label, {}).get(claim)
        if known is not None:
            known.failures = 0
            known.retry_at = 0.0
