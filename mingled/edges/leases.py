"""The processes that leases hang on, watched through pidfds: no polling, no mistaken pid."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from mingled.core.events import Event, HolderEnded
from mingled.core.words import ParticipantId
from mingled.processes import exit_status

_REAP_WAIT_S = 0.05
"""The kernel tells a status once the parent has taken it; a parent that never does leaves a
zombie, whose status is then read from /proc, or unknown."""


class Leases:
    """One watched process for each participant."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._watched: dict[ParticipantId, tuple[int, int]] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def counts(self) -> dict[str, int]:
        return {"processes watched": len(self._watched)}

    def watch(self, participant: ParticipantId, pid: int, pidfd: int) -> None:
        """Take `pidfd` over; `HolderEnded` is emitted once its process has ended."""
        self.forget(participant)
        self._watched[participant] = (pidfd, pid)
        self._loop.add_reader(pidfd, self._readable, participant)

    def forget(self, participant: ParticipantId) -> None:
        pidfd, _pid = self._watched.pop(participant, (None, 0))
        if pidfd is not None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        for participant in list(self._watched):
            self.forget(participant)

    def _readable(self, participant: ParticipantId) -> None:
        pidfd, _pid = self._watched[participant]
        self._loop.remove_reader(pidfd)
        self._ended(participant, self._loop.time() + _REAP_WAIT_S)

    def _ended(self, participant: ParticipantId, until: float) -> None:
        if participant not in self._watched:
            return
        pidfd, pid = self._watched[participant]
        status = exit_status(pidfd, pid)
        if status is None and self._loop.time() < until:
            self._loop.call_later(_REAP_WAIT_S / 10, self._ended, participant, until)
            return
        self.forget(participant)
        self._emit(HolderEnded(participant=participant, status=status))
