"""Small files, read with a limit: whatever lies at a path, nothing blocks and nothing raises."""

from __future__ import annotations

import os
import stat

TEXT_BYTES_MAX = 64 * 1024
"""Far more than a version file, a `pyvenv.cfg` or a repository's configuration has."""


def content(path: str, bytes_max: int = TEXT_BYTES_MAX) -> bytes | None:
    """A regular file's content; None where it is none, cannot be read, or is longer than that."""
    try:
        # Without O_NONBLOCK a FIFO of that name would keep us for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        pieces, left = [], bytes_max + 1
        while left > 0 and (piece := os.read(fd, min(left, 1 << 20))):
            pieces.append(piece)
            left -= len(piece)
    except OSError:
        return None
    finally:
        os.close(fd)
    return b"".join(pieces) if left > 0 else None


def text(path: str) -> str:
    """The same as text, damaged where it is not UTF-8; empty where there is none."""
    found = content(path)
    return "" if found is None else found.decode(errors="replace")


def names_in(folder: str) -> list[str]:
    """What lies in a folder; nothing where it cannot be read."""
    try:
        return os.listdir(folder)
    except (OSError, ValueError):
        return []
