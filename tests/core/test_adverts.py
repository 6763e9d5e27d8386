"""The advert book: what was heard, within bounds."""

from __future__ import annotations

import msgspec

from mingled.core.adverts import AdvertBook
from mingled.core.messages import Advert
from mingled.core.settings import Settings
from mingled.core.words import Label, Nonce
from tests.core.samples import ADVERT, LABEL

SETTINGS = Settings(adverts_per_label_max=3, adverts_max=5)


def advert(k: int, label: Label = LABEL) -> Advert:
    return msgspec.structs.replace(ADVERT, claim=Nonce(f"{k:032x}"), label=label)


def label(k: int) -> Label:
    return Label(f"{'abcdefghij'[k] * 26}")


def test_only_news_is_news() -> None:
    book = AdvertBook(SETTINGS)
    assert book.add(advert(1), "mdns")
    assert not book.add(advert(1), "mdns")
    assert book.add(msgspec.structs.replace(advert(1), port=1), "mdns")
    assert [h.advert.port for h in book.of(LABEL)] == [1]


def test_repeating_an_advert_does_not_clear_its_failures() -> None:
    book = AdvertBook(SETTINGS)
    book.add(advert(1), "mdns")
    pauses = [book.failed(LABEL, advert(1).claim, 0.0) for _ in range(12)]
    book.add(advert(1), "mdns")
    assert book.of(LABEL)[0].failures == 12
    assert pauses == sorted(pauses)
    assert pauses[0] == SETTINGS.retry_min_s
    assert pauses[-1] == SETTINGS.retry_max_s
    book.held(LABEL, advert(1).claim)
    assert (book.of(LABEL)[0].failures, book.of(LABEL)[0].retry_at) == (0, 0.0)


def test_trusted_first_then_the_smaller_claim() -> None:
    book = AdvertBook(SETTINGS)
    for k in (3, 1, 2):
        book.add(advert(k), "mdns")
    book.failed(LABEL, advert(1).claim, 0.0)
    assert [int(h.advert.claim, 16) for h in book.of(LABEL)] == [2, 3, 1]


def test_one_job_has_a_bound_and_suspects_go_first() -> None:
    book = AdvertBook(SETTINGS)
    for k in (1, 2, 3):
        book.add(advert(k), "mdns")
    book.failed(LABEL, advert(2).claim, 0.0)
    book.add(advert(4), "mdns")
    assert [int(h.advert.claim, 16) for h in book.of(LABEL)] == [1, 3, 4]


def test_all_jobs_have_a_bound_and_the_oldest_go_first() -> None:
    book = AdvertBook(SETTINGS)
    for k in range(8):
        book.add(advert(k, label(k)), "mdns")
        assert len(book) <= SETTINGS.adverts_max
    assert [k for k in range(8) if book.of(label(k))] == [3, 4, 5, 6, 7]


def test_removing_what_is_not_there_is_nothing() -> None:
    book = AdvertBook(SETTINGS)
    book.remove(LABEL, advert(1).claim)
    book.add(advert(1), "mdns")
    book.remove(LABEL, advert(1).claim)
    assert (len(book), book.of(LABEL)) == (0, [])
    assert book.failed(LABEL, advert(1).claim, 7.0) == 7.0
