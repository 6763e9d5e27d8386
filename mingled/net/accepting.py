"""A listening socket whose every connection gets a task, also when descriptors run out.

asyncio's own server writes a hundred tracebacks a second then, and leaves whoever knocks waiting.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable

PER_TURN_MAX = 8
"""Accepted in one turn of the loop; a client costs some 0.2 ms to begin with."""

PAUSE_S = 1.0
"""Where not even the spare descriptor helps: a listener stays readable for ever, and is looked at
again after this."""

SAID_EVERY_S = 60.0
"""How often the log says that somebody was turned away."""

STREAM_BYTES_MAX = 64 * 1024
"""asyncio's own limit of what is read ahead."""

NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = logging.getLogger(__name__)

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Acceptor:
    """`serve` runs as a task of its own for each connection to `sock` (listening, ours to close)
    until closed. Connections that stand go on then: their tasks are for whoever serves to end."""

    def __init__(
        self, name: str, sock: socket.socket, serve: Serve, *, limit: int = STREAM_BYTES_MAX
    ) -> None:
        self._name = name
        self._sock = sock
        self._serve = serve
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._spare = _spare()
        self._pause: asyncio.TimerHandle | None = None
        self._shed = 0  #: turned away, and not yet said
        self._say_at_s = 0.0
        sock.setblocking(False)
        self._listen()

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock, self._knocked)

    def _knocked(self) -> None:
        for _ in range(PER_TURN_MAX):
            try:
                connection, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in NONE_LEFT:
                    log.warning("%s: %s", self._name, error)
                    return
                if self._turn_away():
                    continue
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._welcome(connection))
            self._tasks.add(task)
            task.add_done_callback(self._over)

    def _turn_away(self) -> bool:
        """Hang up on the next one, by the descriptor that was kept for that: it knows at once, and
        does not wait for a daemon that cannot serve it. False: nobody is there any more (accept(2)
        wants a descriptor before it looks), or we must pause."""
        turned_away = helps = False
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
            try:
                self._sock.accept()[0].close()
                turned_away = helps = True
            except OSError as error:
                helps = error.errno not in NONE_LEFT
        self._spare = _spare()
        if not helps:
            self._loop.remove_reader(self._sock)
            self._pause = self._loop.call_later(PAUSE_S, self._listen)
        if turned_away or not helps:
            self._say_shed(turned_away)
        return turned_away

    def _say_shed(self, one: bool) -> None:
        self._shed += one
        now_s = self._loop.time()
        if now_s < self._say_at_s:
            return
        log.error(
            "%s: no descriptor is left; turned away: %d. Raise LimitNOFILE, or ulimit -n",
            self._name,
            self._shed,
        )
        self._say_at_s = now_s + SAID_EVERY_S
        self._shed = 0

    async def _welcome(self, connection: socket.socket) -> None:
        reader = asyncio.StreamReader(limit=self._limit)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except BaseException:
            connection.close()
            raise
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        await self._serve(reader, writer)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("bug: %s: a connection was not served", self._name, exc_info=error)


def _spare() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
