"""The daemon's log: one line for each record, whatever others have put into its words."""

from __future__ import annotations

import logging
import sys

from mingled.core.heard import printable

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_INDENT = "    "


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


def configure(level: str) -> None:
    """All loggers of this process to stderr, from this level on. What cannot be written is lost:
    a full disk or a closed pipe is no reason to end, nor to say so on the same pipe."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Harmless())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.raiseExceptions = False
