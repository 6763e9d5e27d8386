"""The daemon's log: one line for each record, whatever others have put into its words, to one
descriptor that never keeps the daemon waiting."""

from __future__ import annotations

import logging
import os
import select
import sys

from mingled.core.heard import printable

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_INDENT = "    "

LINE_BYTES_MAX = select.PIPE_BUF
"""A pipe that poll(2) calls writable takes so much at once without blocking."""


class Harmless(logging.Formatter):
    """The one place where text is made harmless for the log, also that of libraries: a line break
    from elsewhere begins no line of its own, and an escape sequence paints nobody's terminal. Only
    tracebacks have more than one line; what follows the first is indented, as no record is."""

    def format(self, record: logging.LogRecord) -> str:
        first = logging.Formatter(_FORMAT).formatMessage(self._said(record))
        more = []
        if record.exc_info:
            more += self.formatException(record.exc_info).splitlines()
        if record.stack_info:
            more += record.stack_info.splitlines()
        return "\n".join([printable(first), *(_INDENT + printable(line) for line in more)])

    def _said(self, record: logging.LogRecord) -> logging.LogRecord:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        return record


class Lines(logging.Handler):
    """Writes to `fd` what can be written at once. Nobody may read the other end (a stuck journal, a
    terminal after Ctrl-S), it may be closed, the disk may be full: then lines drop, and are
    counted."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self.dropped = 0  #: since the last line that was written

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:  # a mistake in a log line must not end what it is about
            self.handleError(record)
            return
        if self.dropped:
            if not self._write(f"({self.dropped} lines of this log were lost)\n".encode()):
                self.dropped += 1
                return
            self.dropped = 0
        # Each part by itself: a traceback is longer than what a pipe takes at once.
        data = text.encode(errors="backslashreplace") + b"\n"
        for start in range(0, len(data), LINE_BYTES_MAX):
            if not self._write(data[start : start + LINE_BYTES_MAX]):
                self.dropped += 1
                return

    def _write(self, data: bytes) -> bool:
        try:
            ready = self._poll.poll(0)
            if not any(state & select.POLLOUT for _, state in ready):
                return False
            return os.write(self._fd, data) == len(data)
        except OSError:  # closed, or the disk is full
            return False


def configure(level: str) -> None:
    """All loggers of this process to stderr, from this level on. What cannot be written is lost:
    a full disk or a closed pipe is no reason to end, nor to say so on the same pipe."""
    handler = Lines(sys.stderr.fileno())
    handler.setFormatter(Harmless())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.raiseExceptions = False
