"""The daemon's log in systemd's journal: levels and fields, not lines alone.

    journalctl -u mingled MINGLE_JOB=bert -p warning

The format is systemd's native journal protocol: a datagram of fields, one whose value has a line
break with its length before it.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping
from typing import TextIO

from mingled.core.heard import printable
from mingled.logs import Lines

SOCKET = "/run/systemd/journal/socket"

MESSAGE_BYTES_MAX = 32 * 1024
"""A datagram has to fit into the socket's buffer; longer entries would need a sealed memory file.
Our longest is a traceback."""

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""syslog(3): critical, error, warning, informational; debug is 7."""


def connected(stream: TextIO = sys.stderr, environ: Mapping[str, str] = os.environ) -> bool:
    """Does what is written to `stream` go to the journal? JOURNAL_STREAM of systemd.exec(5) names
    it by device and inode: a stream that was redirected since goes elsewhere."""
    try:
        about = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


class Journal(logging.Handler):
    """Each record is one entry. `extra={"job": ...}` becomes the field MINGLE_JOB.

    What the journal does not take at once goes to stderr instead, if that takes it, with the level
    that systemd reads there (SyslogLevelPrefix=): a full journal must not hold up the loop.
    """

    def __init__(self, path: str = SOCKET) -> None:
        super().__init__()
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._spare = Lines(sys.stderr.fileno())
        self._spare.setFormatter(_Prefixed())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = "\n".join(map(printable, self.format(record).splitlines()))
            try:
                self._sock.sendto(entry(record, text), self._path)
            except OSError:
                self._spare.emit(record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._sock.close()
        super().close()


class _Prefixed(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"<{priority(record.levelno)}>{printable(record.getMessage())}"


def configure(level: str) -> None:
    """All loggers of this process to the journal, from this level on."""
    logging.basicConfig(level=level, handlers=[Journal()], format="%(message)s", force=True)
    logging.raiseExceptions = False


def priority(level: int) -> int:
    """syslog's number for a level of `logging`."""
    return next((number for least, number in _PRIORITIES if level >= least), 7)


def entry(record: logging.LogRecord, text: str) -> bytes:
    """The datagram: `text` and what the record tells of itself."""
    fields = {
        "MESSAGE": text.encode(errors="replace")[:MESSAGE_BYTES_MAX].decode(errors="ignore"),
        "PRIORITY": str(priority(record.levelno)),
        "SYSLOG_IDENTIFIER": "mingled",
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": record.funcName or "",
        "MINGLE_LOGGER": record.name,
    }
    job = getattr(record, "job", None)
    if job is not None:
        fields["MINGLE_JOB"] = printable(str(job))
    return b"".join(_field(name, value) for name, value in fields.items())


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
