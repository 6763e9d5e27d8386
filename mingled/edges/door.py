"""Who gets in at the Unix socket: connections are accepted, counted by user, and refused with a
sentence where there is no room. Knows nothing of what they say."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
from collections import Counter
from collections.abc import Callable

from mingled.core.codec import encode
from mingled.core.local import Failed
from mingled.errors import Refused
from mingled.processes import peer_of, user_name

CLIENTS_PER_USER_MAX = 1_024
"""Connections of one user: more than the processes of any node; one user must not shut out the
rest."""

CLIENTS_MAX = 8_192
"""Of all users together: eight that have all they may have, which no machine has had yet."""

DESCRIPTORS_KEPT = 256
"""Not for clients: links to other daemons, proofs, discovery, and the leases of running jobs."""

DESCRIPTORS_EACH = 2
"""A client's: its connection, and the pidfd of its process."""

RESERVED_SHARE = 8
"""One place in so many is kept for users who have few connections, so that a new one gets in."""

FEW = 4
"""A `mingle status`, a wait or two."""

ACCEPTED_AT_ONCE_MAX = 16
"""Then the loop goes round: a thousand that knock must not keep a heartbeat waiting."""

PAUSE_S = 1.0
"""Where not even the spare descriptor is left: nothing is accepted for so long."""

SAID_EVERY_S = 60.0
"""That descriptors are short is logged no more often than this."""

_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger("mingled")


def places() -> int:
    """As many clients as there are descriptors for, CLIENTS_MAX at most."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return CLIENTS_MAX
    return max(FEW, min(CLIENTS_MAX, (soft - DESCRIPTORS_KEPT) // DESCRIPTORS_EACH))


class Door:
    """One listening socket. `let_in` takes an accepted connection over and calls `left` with its
    user at its end."""

    def __init__(self, sock: socket.socket, let_in: Callable[[socket.socket, int], None]) -> None:
        self._sock = sock
        self._let_in = let_in
        self._places = places()
        self._by_user: Counter[int] = Counter()
        self._spare: int | None = None
        self._again: asyncio.TimerHandle | None = None
        self._said_at = float("-inf")

    def open(self) -> None:
        """From now on, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._sock.setblocking(False)
        self._take_spare()
        self._loop.add_reader(self._sock, self._knocked)

    def close(self) -> None:
        """Nobody gets in any more; whoever is in stays."""
        if self._sock.fileno() < 0:
            return
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    @property
    def clients(self) -> int:
        return self._by_user.total()

    def left(self, uid: int) -> None:
        self._by_user[uid] -= 1
        if not self._by_user[uid]:
            del self._by_user[uid]

    # ------------------------------------------------------------ who knocks

    def _knocked(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE_MAX):
            try:
                sock, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if not (error.errno in _SHORT and self._shed()):
                    self._pause(error)
                    return
            else:
                self._meet(sock)

    def _meet(self, sock: socket.socket) -> None:
        uid = peer_of(sock)[1]
        sentence = self._no_room(uid)
        if sentence is None and not _descriptors_left(DESCRIPTORS_EACH):
            sentence = self._exhausted()
        if sentence is not None:
            _refuse(sock, sentence)
            return
        self._by_user[uid] += 1
        self._let_in(sock, uid)

    def _no_room(self, uid: int) -> str | None:
        """Why this user's next connection is refused."""
        theirs, total = self._by_user[uid], self._by_user.total()
        host = socket.gethostname()
        if theirs >= CLIENTS_PER_USER_MAX and uid != 0:
            return (
                f"{user_name(uid)} has {theirs} connections to the daemon on {host} already, as "
                "many as one user may have; end some of them (mingle status names their pids)"
            )
        kept = 0 if theirs < FEW else self._places // RESERVED_SHARE
        if total >= self._places - kept:
            return (
                f"the daemon on {host} has {total} clients, {theirs} of them {user_name(uid)}'s, "
                f"and places for {self._places}; end some of them, or raise its limit of open files"
            )
        return None

    # ------------------------------------------------------------ no descriptors

    def _shed(self) -> bool:
        """No descriptor is left to accept with: the spare one is used to say so. Left in the
        queue, the connection would wake the loop for ever, and its client would wait. False where
        there is none to spare either: the whole machine is short of them."""
        if self._spare is None:
            return False
        sentence = self._exhausted()
        os.close(self._spare)
        self._spare = None
        with contextlib.suppress(OSError):
            _refuse(self._sock.accept()[0], sentence)
        self._take_spare()
        return self._spare is not None

    def _pause(self, error: OSError) -> None:
        self._say(f"no client is accepted for {PAUSE_S:g} s: {error.strerror}")
        self._loop.remove_reader(self._sock)
        self._again = self._loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._again = None
        self._take_spare()
        self._loop.add_reader(self._sock, self._knocked)

    def _take_spare(self) -> None:
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _exhausted(self) -> str:
        total, host = self._by_user.total(), socket.gethostname()
        sentence = (
            f"the daemon on {host} has no file descriptor left, with {total} clients; jobs that "
            "run go on: end some clients, or raise its limit of open files (LimitNOFILE, ulimit -n)"
        )
        self._say(sentence)
        return sentence

    def _say(self, sentence: str) -> None:
        now = self._loop.time()
        if now - self._said_at >= SAID_EVERY_S:
            self._said_at = now
            log.warning("new clients are turned away: %s", sentence)


def _descriptors_left(count: int) -> bool:
    with contextlib.ExitStack() as taken:
        try:
            for _ in range(count):
                taken.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return False
        return True


def _refuse(sock: socket.socket, sentence: str) -> None:
    with sock:
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # it has gone
            sock.send(encode(Failed(code=Refused.code, sentence=sentence)))
