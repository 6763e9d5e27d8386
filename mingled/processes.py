"""Other processes of this machine: who is at the other end of a Unix socket, and how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import socket
import struct
from pathlib import Path

from mingled.core.events import Holder

SO_PEERPIDFD = 77
"""Linux 6.5: a pidfd of the process that connected, taken by the kernel at connect time."""

_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO_SIZE = 64
_PIDFD_GET_INFO = (3 << 30) | (_PIDFD_INFO_SIZE << 16) | (0xFF << 8) | 11
"""Linux 6.15, include/uapi/linux/pidfd.h: _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)."""


def user_name(uid: int) -> str:
    """The user's name, or the number where the system knows none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Pid (0: not in our pid namespace) and uid of whoever connected, by SO_PEERCRED."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _gid = struct.unpack("iII", raw)
    return pid, uid


ANCESTORS_MAX = 16
"""Processes above one that are looked at: a shell is one to three above what it evaluates."""


def ancestors(pid: int) -> tuple[str, ...]:
    """Identities of the processes above `pid`, nearest first; as far as /proc tells."""
    found: list[str] = []
    while len(found) < ANCESTORS_MAX:
        pid = _stat_field(pid, 4) or 0
        if pid <= 1:
            break
        found.append(_identity(pid, None))
    return tuple(found)


SHELLS = frozenset({"ash", "bash", "busybox", "dash", "ksh", "ksh93", "mksh", "sh", "yash", "zsh"})


def calling_process() -> int:
    """The process that ran this one. For `$(...)` and `( ... )` a shell forks a copy of itself,
    which may be gone in a moment: then the shell above it."""
    pid = os.getppid()
    while (above := _stat_field(pid, 4) or 0) > 0 and _forked(pid, above):
        pid = above
    return pid


def _forked(pid: int, above: int) -> bool:
    """Is `pid` a shell's copy of itself? Then it has the same program, words, environment and
    place of the stack, which exec draws anew."""
    stack = _stat_field(pid, 28)
    if stack is None or stack != _stat_field(above, 28):
        return False
    try:
        if os.path.basename(os.readlink(f"/proc/{pid}/exe")) not in SHELLS:
            return False
        return all(
            Path(f"/proc/{pid}/{name}").read_bytes() == Path(f"/proc/{above}/{name}").read_bytes()
            for name in ("cmdline", "environ")
        ) and os.path.samefile(f"/proc/{pid}/exe", f"/proc/{above}/exe")
    except OSError:
        return False


def open_peer(sock: socket.socket) -> tuple[Holder, int | None]:
    """Who connected, and a pidfd of it (the caller's to close), None where there is none."""
    pid, uid = peer_of(sock)
    pidfd: int | None = None
    with contextlib.suppress(OSError):
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
        pidfd = struct.unpack("i", raw)[0]
    if pidfd is None and pid > 0:
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
    return _holder(pid, uid, pidfd), pidfd


def open_pid(pid: int, uid: int) -> tuple[Holder, int] | None:
    """A process by its pid, only if it is `uid`'s (root: anybody's) and alive."""
    if pid <= 0:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return None
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        owner = -1
    if owner < 0 or uid not in (0, owner):
        os.close(pidfd)
        return None
    return _holder(pid, owner, pidfd), pidfd


def _holder(pid: int, uid: int, pidfd: int | None) -> Holder:
    return Holder(
        pid=pid,
        identity=_identity(pid, pidfd),
        uid=uid,
        user=user_name(uid),
        watched=pidfd is not None,
    )


def _identity(pid: int, pidfd: int | None) -> str:
    started = _stat_field(pid, 22)
    if pid > 0 and started is not None:
        return f"pid {pid} started {started}"
    # From another pid namespace: the inode of a pidfd is the process's own since Linux 6.9.
    if pidfd is not None:
        return f"pidfd {os.fstat(pidfd).st_ino}"
    return f"connection {os.urandom(8).hex()}"


def _stat_field(pid: int, number: int) -> int | None:
    """A field of /proc/PID/stat, counted from 1 as in proc(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The command's name may hold spaces and parentheses: fields count from the last ')'.
            return int(stat.read().rpartition(b")")[2].split()[number - 3])
    except (OSError, ValueError, IndexError):
        return None


def exit_status(pidfd: int, pid: int) -> int | None:
    """The wait status of an ended process that is not our child; None while it is not known."""
    buffer = bytearray(_PIDFD_INFO_SIZE)
    struct.pack_into("Q", buffer, 0, _PIDFD_INFO_EXIT)
    with contextlib.suppress(OSError):  # an older kernel, or another pid namespace
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
        if struct.unpack_from("Q", buffer, 0)[0] & _PIDFD_INFO_EXIT:
            return int(struct.unpack_from("i", buffer, 60)[0])
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # Field 52, exit_code, reads 0 where we may not trace the process; root may.
    return int(fields[49]) if fields[0] == b"Z" and os.geteuid() == 0 else None
