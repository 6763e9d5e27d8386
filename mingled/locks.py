"""File locks whose files do not stay behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def acquire(path: Path, *, wait: bool) -> int:
    """Lock `path`, made if need be; the descriptor that holds the lock until it is closed.

    Whoever holds it may unlink the file (see `release`): a lock on a file that is not at `path`
    any more counts for nothing, so another is taken. Raises `BlockingIOError` where it is held and
    `wait` is false, and other `OSError`s where the file cannot be made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def release(fd: int, path: Path) -> None:
    """Unlock, and leave no file."""
    if _is_at(fd, path):
        path.unlink(missing_ok=True)
    os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except OSError:
        return False
