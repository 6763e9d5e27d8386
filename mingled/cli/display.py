"""What a person sees while waiting: one living line on a terminal, else a line at each change.

All on stderr: stdout is data.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from typing import TextIO

from mingled.core import local
from mingled.core.config import Config
from mingled.core.words import Form
from mingled.wording import clean, released_lines, waiting_line


class Display:
    """Writes for one job, wait after wait. `close` ends a wait and leaves the terminal clean."""

    def __init__(self, job: str, form: Form, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._prefix = f"mingle-wait: job {clean(job)}: "
        self._form = form
        self._living = self._out.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = ""
        self._since = time.monotonic()

    def told(self, message: local.Local) -> None:
        match message:
            case local.Progress():
                self._progress(waiting_line(message, self._form))
            case local.Notice():
                # The daemon's sentences name the job themselves.
                self._sentence(f"mingle-wait: {message.kind}: {clean(message.sentence)}")
            case _:
                pass

    def released(self, config: Config, found_s: float, waited_s: float) -> None:
        """Who is in the round, and what this participant is."""
        for line in released_lines(config, found_s, waited_s):
            self.line(line)

    def line(self, text: str) -> None:
        """A line that stays."""
        self._sentence(self._prefix + clean(text))

    def _sentence(self, text: str) -> None:
        living = self._shown if self._living else ""
        self._erase()
        self._write(text + "\n")
        if living:
            self._progress(living)

    def close(self) -> None:
        self._erase()
        self._shown = ""  # the next wait may say the same

    def _progress(self, line: str) -> None:
        if line == self._shown:
            return
        if not self._living:
            self._shown = line
            self._write(self._prefix + line + "\n")
            return
        self._erase()
        self._shown = line
        columns = self._columns() - 1
        # Where there is little room, the count is what matters.
        wide = columns >= 2 * len(self._prefix)
        self._write(_fit(self._prefix + line if wide else line, columns))

    def _erase(self) -> None:
        if self._living and self._shown:
            self._write("\r\x1b[K")
            self._shown = ""

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except (OSError, ValueError):
            pass  # a closed stderr is no reason not to train

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._out.fileno()).columns or 80
        except (OSError, ValueError):
            return 80


def _fit(text: str, columns: int) -> str:
    """`text`, cut to what one row holds: a line that wraps could not be erased as one."""
    taken, end = 0, 0  # `end`: where the ellipsis would still fit
    for at, c in enumerate(text):
        taken += 2 if unicodedata.east_asian_width(c) in "WF" else 1
        if taken > columns:
            return text[:end] + "…"
        if taken < columns:
            end = at + 1
    return text
