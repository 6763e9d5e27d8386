"""A daemon's metrics in a file, for node_exporter's textfile collector."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from mingled.metrics import EVERY_S, write

log = logging.getLogger(__name__)


class MetricsFile:
    """Written at the start and every `every_s` from then on, gone at the end. A disk that is full,
    or hangs, harms nothing else: the writing is a thread's."""

    def __init__(self, path: Path, text: Callable[[], str], every_s: float = EVERY_S) -> None:
        self._path = path
        self._text = text
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        self._trouble = ""  #: as it was logged last

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Numbers of a daemon that is gone would look like those of one that stands still."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", self._path, error.strerror)

    async def _run(self) -> None:
        while True:
            await self._write()
            await asyncio.sleep(self._every_s)

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
