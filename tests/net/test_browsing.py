"""Browsing without the library's own browser, on this machine's loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from zeroconf import (  # type: ignore[attr-defined]  # meant for use, only not in its __all__
    DNSPointer,
    RecordUpdate,
    ServiceStateChange,
    current_time_millis,
)
from zeroconf.asyncio import AsyncZeroconf
from zeroconf.const import _CLASS_IN, _TYPE_PTR

from mingled.net import browsing
from mingled.net.browsing import Browser

TYPE = "_mingle._tcp.local."
NAME = f"one.{TYPE}"

Told = asyncio.Queue[tuple[str, ServiceStateChange]]


@pytest.fixture
async def zeroconf() -> AsyncIterator[AsyncZeroconf]:
    made = AsyncZeroconf(interfaces=["127.0.0.1"])
    await made.zeroconf.async_wait_for_start()
    yield made
    await made.async_close()


def pointer(ttl_s: int, age_s: float = 0.0) -> DNSPointer:
    now = current_time_millis()
    return DNSPointer(TYPE, _TYPE_PTR, _CLASS_IN, ttl_s, NAME, now - age_s * 1_000)


async def test_it_asks_at_first_and_again_what_is_about_to_end(
    zeroconf: AsyncZeroconf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browsing, "ASK_AFTER_S", (0.0, 0.01))
    monkeypatch.setattr(browsing, "REFRESH_EVERY_S", 0.01)
    asked: asyncio.Queue[bool] = asyncio.Queue()
    browser = Browser(zeroconf.zeroconf, TYPE, lambda *_: None, asked.put_nowait)
    browser.start()
    assert [await asked.get(), await asked.get()] == [True, False]
    zeroconf.zeroconf.cache.async_add_records([pointer(4_500, age_s=3_000)])
    await asyncio.sleep(0.05)
    assert asked.empty()
    zeroconf.zeroconf.cache.async_add_records([pointer(4_500, age_s=3_400)])
    assert await asked.get() is False
    browser.close()
    browser.close()


async def test_who_comes_and_goes_is_told_once(zeroconf: AsyncZeroconf) -> None:
    told: Told = asyncio.Queue()
    one = zeroconf.zeroconf
    browser = Browser(one, TYPE, lambda *words: told.put_nowait(words), lambda _: None)
    browser.start()
    fresh, gone = pointer(4_500), pointer(0)
    now = current_time_millis()
    other = DNSPointer("_ipp._tcp.local.", _TYPE_PTR, _CLASS_IN, 4_500, "x._ipp._tcp.local.")
    for records in (
        [RecordUpdate(fresh, None), RecordUpdate(other, None)],
        [RecordUpdate(fresh, fresh)],
        [RecordUpdate(gone, fresh)],
    ):
        browser.async_update_records(one, now, records)
        browser.async_update_records_complete()
    assert told.get_nowait() == (NAME, ServiceStateChange.Added)
    assert told.get_nowait() == (NAME, ServiceStateChange.Removed)
    assert told.empty()
    browser.close()
