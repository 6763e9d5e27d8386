"""The Unix socket at its path: bound under a lock, so that no daemon takes a live one's place."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from pathlib import Path

from mingled import locks
from mingled.errors import DaemonError

BACKLOG = 128
"""Clients that connect at once; more than that wait in their own connect."""

ENDING_S = 5.0
"""A daemon that ends has stopped to listen, and lets go of its lock when it has said goodbye: so
long is it waited for. One that listens is never waited for."""

_PAUSE_S = 0.05


class Listener:
    """The bound socket, and the lock that makes it ours."""

    def __init__(self, path: Path, mode: int, given: socket.socket | None = None) -> None:
        """Listen at `path`. asyncio's own server silently replaces a live daemon's socket, so a
        lock is taken first, and a socket file is only removed by whoever holds it and finds that
        nobody listens there: the lock's file may have been removed by hand. `given`: a socket that
        listens there already, and outlives us. Raises `DaemonError`."""
        self.path = path
        self._stays = given is not None
        self._lock_path = path.with_name(path.name + ".lock")
        self._lock = _lock(self._lock_path, path, given=self._stays)
        try:
            self.sock = given or _listen(path, mode)
            self._bound = _identity(path)
        except FileNotFoundError:
            locks.release(self._lock, self._lock_path)
            raise DaemonError(
                f"{path} on {socket.gethostname()}: the service manager listens there, but its "
                "file was removed and nobody can connect; systemctl restart mingled.socket"
            ) from None
        except BaseException:
            locks.release(self._lock, self._lock_path)
            raise

    def close(self) -> None:
        """Leave no file; not another daemon's either, nor the service manager's."""
        with contextlib.suppress(OSError):
            if not self._stays and _identity(self.path) == self._bound:
                self.path.unlink()
        locks.release(self._lock, self._lock_path)


def _identity(path: Path) -> tuple[int, int, int]:
    """A successor's socket can get the very inode of the one before: its time is its own."""
    info = path.lstat()
    return info.st_dev, info.st_ino, info.st_mtime_ns


def _lock(lock_path: Path, path: Path, *, given: bool) -> int:
    """`given`: that somebody listens says nothing of a daemon."""
    until = time.monotonic() + ENDING_S
    while True:
        try:
            return locks.acquire(lock_path, wait=False)
        except BlockingIOError:
            if (_listens(path) and not given) or time.monotonic() >= until:
                raise _served(path) from None
        except PermissionError:
            if _listens(path) and not given:
                raise _served(path) from None
            where = lock_path if os.path.exists(lock_path) else lock_path.parent
            raise DaemonError(
                f"{where}: you may not write there; start mingled as its owner, or give --socket "
                "another path"
            ) from None
        except OSError as error:
            raise DaemonError(
                f"{lock_path}: {error.strerror}; make its folder, or give --socket another path"
            ) from None
        time.sleep(_PAUSE_S)


def _served(path: Path) -> DaemonError:
    return DaemonError(
        f"another mingled already serves {path}; see `mingle status`, or give --socket another path"
    )


def _listens(path: Path) -> bool:
    """Is anybody there? What is there and may not be asked counts as somebody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a daemon whose queue is full, or that is stopped, is there
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            pass
        return True


def _listen(path: Path, mode: int) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise DaemonError(f"{path} is there and is no socket; remove it or choose another path")
        if _listens(path):
            raise _served(path)
        try:
            path.unlink()
        except PermissionError:
            raise DaemonError(
                f"{path} is a socket that nobody serves, and you may not remove it; let its owner "
                "do so, or give --socket another path"
            ) from None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        reason = error.strerror or error  # "AF_UNIX path too long" is Python's own
        raise DaemonError(f"{path}: {reason}; give --socket another path") from None
    finally:
        os.umask(before)
    sock.listen(BACKLOG)
    return sock
