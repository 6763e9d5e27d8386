"""What a person sees while waiting: one living line on a terminal, else a line at each change.

All on stderr: stdout is data. Text from other machines never reaches the terminal raw.
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


def clean(text: str) -> str:
    """Without control characters: a host name must not be able to repaint the terminal."""
    return "".join(c if c.isprintable() else "�" for c in text)


def waiting_line(progress: local.Progress, form: Form) -> str:
    """`2/4 here: gpu1, gpu4; waiting for node ranks 2, 3`."""
    hosts = list(dict.fromkeys(seen.host for seen in progress.present))
    names = ", ".join(hosts)
    shown = len(progress.present)
    if progress.here > shown:
        names += f" and {progress.here - shown} more"
    if form is Form.PLAIN:
        line = f"rank 0 is on {progress.leader}" if progress.leader else "waiting for rank 0"
    else:
        size = f"{progress.size_min}"
        if progress.size_max != progress.size_min:
            size += f" to {progress.size_max}"
        line = f"{progress.here}/{size} here: {names}"
        ordinal = "node rank" if form is Form.LAUNCHER else "rank"
        lacking = progress.size_min - progress.here
        if progress.missing:
            plural = "s" if len(progress.missing) > 1 else ""
            line += f"; waiting for {ordinal}{plural} {', '.join(map(str, progress.missing))}"
        elif lacking > 0:
            line += f"; waiting for {lacking} more"
        if progress.leader is None:
            line += " (no rank 0 yet)"
    if progress.running:
        r = progress.running
        line += (
            f"; round {r.round} has run for {r.since_s:.0f} s on {', '.join(r.hosts)}: "
            "this one is for the next"
        )
    if progress.note:
        line += f" [{progress.note}]"
    return clean(line)


def released_line(config: Config, found_s: float, waited_s: float) -> str:
    """One sentence: who is rank 0, where, what this node is, and what the wait was for."""
    master = f"{config.master_addr}:{config.master_port}"
    head = f"rank 0 is {config.leader_host} ({master})"
    if config.form is Form.PLAIN:
        tail = f"this is rank {config.rank}"
        if config.interface is None:
            tail += (
                "; several interfaces here, so none is exported: set NCCL_SOCKET_IFNAME and "
                "GLOO_SOCKET_IFNAME yourself if need be"
            )
    elif config.form is Form.LAUNCHER:
        tail = f"this is node rank {config.rank} of {config.nnodes}"
    else:
        tail = f"this is rank {config.rank} of {config.world_size}"
    if config.interface:
        tail += f" on {config.interface} ({config.address})"
    return clean(f"{head}; {tail} (found in {found_s:.2f} s, all here after {waited_s:.2f} s)")


class Display:
    """Writes for one wait. `close` leaves the terminal clean."""

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
            case local.Gone():
                self.gone(message)
            case _:
                pass

    def gone(self, gone: local.Gone) -> None:
        """A member of the running round has ended; one that left in peace is no news."""
        ordinal = "node rank" if self._form is Form.LAUNCHER else "rank"
        who = f"{gone.host} ({gone.address}, {ordinal} {gone.rank})"
        if gone.how == "lost":
            self.line(f"{who} is lost: {gone.reason}; training will hang or fail: Ctrl-C to end it")
        elif gone.how == "unwatched":
            self.line(f"{who} is no longer watched: its daemon {gone.reason}; it may well go on")

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
