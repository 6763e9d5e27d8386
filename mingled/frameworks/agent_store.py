"""The store that torch's agent gets to see: rank 0's TCPStore, without its ways to hang.

Between a rendezvous and the start of its workers, and again at its end, torch's agent uses the
store with no guard (`_assign_worker_ranks`, `_exit_barrier` in
`torch/distributed/elastic/agent/server/api.py`, torch 2.6 to 2.13): should rank 0 die just then, it
ends or hangs for up to five minutes. So

- the exchange of ranks goes to the real store, in a thread, and is given up as soon as the daemon
  says that the round is broken. What is answered then only has to last until the agent asks
  `num_nodes_waiting`, and joins again;
- the exit barrier does without the store: daemons know who has finished and who was lost.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from mingled.frameworks.background import begin
from mingled.frameworks.membership import Membership
from mingled.frameworks.store import OPERATION_S

TERMINAL = "torchelastic/agent/terminal_state"
"""Keys of the exit barrier begin so: `_TERMINAL_STATE_SYNC_ID`."""

ASSIGNED = "torchelastic/assigned_ranks/"

TOLD_S = 20.0
"""A host without power is known to be lost by then (`Settings.silence_sealed_s`)."""

T = TypeVar("T")


class AgentStore:
    """What the agent needs of `torch.distributed.Store`. `connect` gives the real one, perhaps
    after a while; it is called in a thread, once."""

    def __init__(self, membership: Membership, connect: Callable[[], Any]) -> None:
        self._membership = membership
        self._connect = connect
        self._lock = threading.Lock()
        self._store: Any = None
        self._own = b""  #: what this agent stated of itself
        self.timeout = timedelta(seconds=OPERATION_S)

    def set_timeout(self, timeout: timedelta) -> None:
        self.timeout = timeout

    # ------------------------------------------------------------ the exit barrier

    def add(self, key: str, amount: int) -> int:
        """The exit barrier's count: never the last one, so that the agent sets no key and waits."""
        if key.startswith(TERMINAL):
            return 0
        return self._guarded(lambda store: int(store.add(key, amount)), amount)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Of the exit barrier: until everybody has finished. Raises `Lost`."""
        if any(key.startswith(TERMINAL) for key in keys):
            self._membership.finish()
            return
        self._guarded(lambda store: store.wait(list(keys), timeout or self.timeout), None)

    # ------------------------------------------------------------ the exchange of ranks

    def set(self, key: str, value: str | bytes) -> None:
        self._own = value.encode() if isinstance(value, str) else value
        self._guarded(lambda store: store.set(key, value), None)

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        self._guarded(lambda store: store.multi_set(list(keys), list(values)), None)

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """In a broken round: everybody is as this agent is."""
        return self._guarded(
            lambda store: list(store.multi_get(list(keys))), [self._own] * len(keys)
        )

    def get(self, key: str) -> bytes:
        """In a broken round: ranks as if everybody were as this agent is."""
        return self._guarded(lambda store: bytes(store.get(key)), self._assumed(key))

    def _assumed(self, key: str) -> bytes:
        if not key.startswith(ASSIGNED):
            return self._own
        here = int(json.loads(self._own or b"{}").get("local_world_size", 1))
        first, world_size = int(key.removeprefix(ASSIGNED)) * here, self._membership.nnodes * here
        return json.dumps([first, world_size, first, world_size]).encode()

    # ------------------------------------------------------------ the real store

    def _guarded(self, operation: Callable[[Any], T], broken: T) -> T:
        """Its result, or `broken` where the round breaks first."""
        membership = self._membership
        call = begin(lambda: operation(self._real()), membership.nudge)
        membership.until(call.done, self.timeout.total_seconds())
        error = call.exception() if call.done() else None
        if error is not None:
            # Mostly rank 0's death, which the daemon is about to tell of.
            membership.until(lambda: False, TOLD_S)
        elif call.done():
            return call.result()
        if membership.broken:
            return broken
        if error is not None:
            raise error
        timeout_s = self.timeout.total_seconds()
        raise TimeoutError(f"{membership.name}: rank 0's store gave no answer in {timeout_s:g} s")

    def _real(self) -> Any:
        with self._lock:
            if self._store is None:
                self._store = self._connect()
            return self._store
