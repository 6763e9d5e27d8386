"""The advert book: what was heard, within bounds."""

from __future__ import annotations

import msgspec

from mingled.core.adverts import AdvertBook
from mingled.core.messages import Advert
from mingled.core.settings import Settings
from mingled.core.words import Label, Nonce
from tests.core.samples import ADVERT, CARD, LABEL

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


def claims(book: AdvertBook) -> list[int]:
    return [int(h.advert.claim, 16) for h in book.of(LABEL)]


def test_what_failed_comes_last_and_what_is_vouched_for_first() -> None:
    book = AdvertBook(SETTINGS)
    for k in (3, 1, 2):
        book.add(advert(k), "mdns")
    book.failed(LABEL, advert(1).claim, 0.0)
    assert claims(book)[-1] == 1
    for k in (2, 3):
        fresh = AdvertBook(SETTINGS)
        for n in (3, 1, 2):
            fresh.add(advert(n), "mdns")
        fresh.vouch(advert(k), CARD)
        assert claims(fresh)[0] == k
        assert fresh.of(LABEL)[0].advert.addresses[: len(CARD.addresses)] == CARD.addresses


def test_whoever_forges_claims_does_not_choose_what_is_tried_first() -> None:
    orders = set()
    for salt in range(16):
        book = AdvertBook(SETTINGS, bytes([salt]))
        for k in (1, 2, 3):
            book.add(advert(k), "mdns")
        orders.add(tuple(claims(book)))
    assert len(orders) > 1


def test_one_job_has_a_bound_and_a_flood_of_claims_pushes_out_nobody() -> None:
    book = AdvertBook(SETTINGS)
    for k in (1, 2, 3):
        book.add(advert(k), "mdns")
    assert not book.add(advert(4), "mdns")  # nothing speaks against those that are known
    assert sorted(claims(book)) == [1, 2, 3]
    book.failed(LABEL, advert(2).claim, 0.0)
    assert book.add(advert(4), "mdns")
    assert sorted(claims(book)) == [1, 3, 4]
    for k in (1, 3, 4):
        book.vouch(advert(k), CARD)
    book.failed(LABEL, advert(3).claim, 0.0)  # a leader that died
    assert book.add(advert(5), "mdns")
    assert sorted(claims(book)) == [1, 4, 5]


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
