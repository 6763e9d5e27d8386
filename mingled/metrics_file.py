"""A daemon's metrics in a file, for node_exporter's textfile collector."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mingled.metrics import EVERY_S, write

log = logging.getLogger(__name__)

#: Seconds that the end waits for a write under way: a disk that hangs must not hold the daemon.
LAST_WRITE_S = 2.0


class MetricsFile:
    """Written at the start and every `every_s` from then on, gone at the end. A disk that is full,
    or hangs, harms nothing else: the writing is a thread's."""

    def __init__(self, path: Path, text: Callable[[], str], every_s: float = EVERY_S) -> None:
        self._path = path
        self._text = text
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._trouble = ""  #: as it was logged last

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Numbers of a daemon that is gone would look like those of one that stands still.

        A write under way is waited for: its thread cannot be cancelled, and would put the file
        back after it was removed.
        """
        task, self._task = self._task, None
        if task is not None:
            self._ending.set()
            _, hanging = await asyncio.wait([task], timeout=LAST_WRITE_S)
            if hanging:
                log.warning("%s is still being written: it stays behind", self._path)
                task.cancel()
                return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", self._path, error.strerror)

    async def _run(self) -> None:
        while not self._ending.is_set():
            await self._write()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._ending.wait()

    async def _write(self) -> None:
        trouble = ""
        try:
            await asyncio.to_thread(write, self._path, self._text())
        except OSError as error:
            trouble = error.strerror or str(error)
        except Exception:
            log.exception("bug: metrics were not written")
        if trouble and trouble != self._trouble:  # once: not every 15 s
            log.warning(
                "metrics are not written to %s: %s; correct --metrics-file or the folder",
                self._path,
                trouble,
            )
        self._trouble = trouble
