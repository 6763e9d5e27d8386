"""Who advertises services of one type: the library's own browser without its memory.

That one notes for every service that it hears of when to ask for it again, an hour on, and forgets
none: a stranger who makes up services fills it without end. All that is kept here is in the
library's cache, which is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from zeroconf import (  # type: ignore[attr-defined]  # meant for use, only not in its __all__
    DNSPointer,
    DNSQuestion,
    DNSRecord,
    RecordUpdate,
    RecordUpdateListener,
    ServiceStateChange,
    Zeroconf,
    current_time_millis,
)
from zeroconf.const import _CLASS_IN, _TYPE_A, _TYPE_AAAA, _TYPE_PTR, _TYPE_SRV, _TYPE_TXT

ASK_AFTER_S = (0.05, 1.0, 4.0, 9.0)
"""At first, each after the one before; as the library's browser does."""

REFRESH_EVERY_S = 300.0
REFRESH_SHARE = 75
"""In per cent of its life: a service as old as that is asked for again, by one question for all
(RFC 6762, 5.2). Five minutes are well below a quarter of the 75 minutes that ours live."""

Changed = Callable[[str, ServiceStateChange], None]


class Browser(RecordUpdateListener):
    """`changed` is told the name of each service that comes, changes or goes; `ask` sends one
    question for all, by unicast or not."""

    def __init__(
        self, zeroconf: Zeroconf, type_: str, changed: Changed, ask: Callable[[bool], None]
    ) -> None:
        self._zeroconf = zeroconf
        self._type = type_
        self._suffix = f".{type_}".lower()
        self._changed = changed
        self._ask = ask
        self._pending: dict[str, ServiceStateChange] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._zeroconf.async_add_listener(self, DNSQuestion(self._type, _TYPE_PTR, _CLASS_IN))
        self._after(ASK_AFTER_S[0], self._ask_at_first, 0)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._zeroconf.async_remove_listener(self)

    def _after(self, pause_s: float, act: Callable[..., None], *words: int) -> None:
        self._timer = asyncio.get_running_loop().call_later(pause_s, act, *words)

    def _ask_at_first(self, number: int) -> None:
        self._ask(number == 0)
        if number + 1 < len(ASK_AFTER_S):
            self._after(ASK_AFTER_S[number + 1], self._ask_at_first, number + 1)
        else:
            self._after(REFRESH_EVERY_S, self._refresh)

    def _refresh(self) -> None:
        now = current_time_millis()
        known = self._zeroconf.cache.async_all_by_details(self._type, _TYPE_PTR, _CLASS_IN)
        if any(record.get_expiration_time(REFRESH_SHARE) <= now for record in known):
            self._ask(False)
        self._after(REFRESH_EVERY_S, self._refresh)

    # ------------------------------------------------------------ what the library hears

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Before the cache has them."""
        for update in records:
            for name, change in self._changes(update.new, update.old, now):
                # Who comes, with all its records in one packet, has come, and not changed as well.
                if change is not ServiceStateChange.Updated or name not in self._pending:
                    self._pending[name] = change

    def async_update_records_complete(self) -> None:
        """Now it has."""
        pending, self._pending = self._pending, {}
        for name, change in pending.items():
            self._changed(name, change)

    def _changes(
        self, record: DNSRecord, old: DNSRecord | None, now: float
    ) -> Iterable[tuple[str, ServiceStateChange]]:
        gone = record.is_expired(now)
        if isinstance(record, DNSPointer):
            if record.type == _TYPE_PTR and record.name.lower() == self._type:
                if old is None and not gone:
                    yield record.alias, ServiceStateChange.Added
                elif gone:
                    yield record.alias, ServiceStateChange.Removed
        elif old is not None or gone:
            return  # as it was
        elif record.type in (_TYPE_SRV, _TYPE_TXT):
            if record.name.lower().endswith(self._suffix):
                yield record.name, ServiceStateChange.Updated
        elif record.type in (_TYPE_A, _TYPE_AAAA):
            for service in self._zeroconf.cache.async_entries_with_server(record.name):
                if service.name.lower().endswith(self._suffix):
                    yield service.name, ServiceStateChange.Updated
