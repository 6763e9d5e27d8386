"""The Unix socket: lines from clients become events, messages become lines. Decides nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

import msgspec

from mingled.core import events, local
from mingled.core.codec import check_version, encode
from mingled.core.words import ParticipantId
from mingled.edges.door import Door
from mingled.edges.listener import Listener
from mingled.errors import BadInput, DaemonError, MingleError, NotPermitted
from mingled.namespaces import pid_namespace
from mingled.processes import ancestors, open_peer, open_pid

__all__ = ["Control", "Listener"]

FIRST_LINE_S = 5.0
"""A client that connects and says nothing holds a descriptor: not for longer than this. Any later
line is to be whole within this as well, once it has begun."""

UNSENT_BYTES_MAX = 1024 * 1024
"""A client that does not read is hung up on before it costs more memory than this; a minute's
progress lines are a tenth of it. A roster, which can be 3 MiB, comes on top, once."""

log = logging.getLogger("mingled")


class _OtherNamespace(NotPermitted):
    code = local.OTHER_NAMESPACE


class _Client:
    """One connection."""

    def __init__(self, sock: socket.socket, uid: int) -> None:
        self.sock = sock
        self.uid = uid
        self.holder, self.pidfd = open_peer(sock)
        self.writer: asyncio.StreamWriter | None = None  #: before it was listened to
        self.participant: ParticipantId | None = None
        self.reattach: int | None = None  #: its request to be a participant's, unanswered
        self.cancel: int | None = None  #: its request that takes some seconds, unanswered
        self.asked = False  #: for anything yet
        self._roster_bytes = 0

    @property
    def stays(self) -> bool:
        """Whether it may say nothing for as long as it likes."""
        return any(x is not None for x in (self.participant, self.reattach, self.cancel))

    def take_pidfd(self) -> int | None:
        """The caller's to close. There is one join a connection, so it is asked for once."""
        pidfd, self.pidfd = self.pidfd, None
        return pidfd

    def send(self, message: local.Local) -> None:
        if self.writer is None or self.writer.transport.is_closing():
            return
        unsent_max = UNSENT_BYTES_MAX + self._roster_bytes
        if self.writer.transport.get_write_buffer_size() > unsent_max:
            self.writer.transport.abort()
            return
        line = encode(message)
        if isinstance(message, local.Ready):
            self._roster_bytes = len(line)
        self.writer.write(line)

    def close(self) -> None:
        """What was written still goes out, if it is read."""
        if self.writer is not None:
            self.writer.close()

    def end(self) -> None:
        """Leave no descriptor: for whoever does not read, not for long either."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None
        if self.writer is None:
            self.sock.close()
            return
        self.writer.close()
        transport = self.writer.transport
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(FIRST_LINE_S, transport.abort)


class Control:
    """Serves clients on one listening socket until closed."""

    def __init__(
        self,
        emit: Callable[[events.Event], None],
        watch: Callable[[ParticipantId, int, int], None],
        netns: int | None,
    ) -> None:
        self._emit = emit
        self._watch = watch
        self._netns = netns
        self._door: Door | None = None
        self._participants: dict[ParticipantId, _Client] = {}
        self._requests: dict[int, _Client] = {}
        self._opened: dict[int, tuple[int, int]] = {}  #: holders to be: pid and its pidfd
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, sock: socket.socket) -> None:
        self._door = Door(sock, self._let_in)
        self._door.open()

    async def close(self) -> None:
        """What was written still goes out; then every connection ends."""
        if self._door is not None:
            self._door.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _pid, pidfd in self._opened.values():
            os.close(pidfd)
        self._opened.clear()

    @property
    def counts(self) -> dict[str, int]:
        return {"clients": 0 if self._door is None else self._door.clients}

    # ------------------------------------------------------------ actions

    def tell(self, participant: ParticipantId, message: local.Local) -> None:
        client = self._participants.get(participant)
        if client is not None:
            client.send(message)

    def answer(self, request: int, message: local.Local) -> None:
        client = self._requests.pop(request, None)
        if client is not None:
            client.send(message)
            if client.cancel == request:
                client.cancel = None
            if client.reattach == request:
                client.reattach = None
                if client.participant is None:  # refused
                    client.close()
        opened = self._opened.pop(request, None)
        if opened is not None:
            os.close(opened[1])

    def seat(self, participant: ParticipantId, request: int) -> None:
        """The connection behind `request`, a Reattach, becomes the participant's."""
        if request in self._opened:
            self.rehold(participant, request)
        client = self._requests.get(request)
        if client is None:
            if participant not in self._participants:  # it hung up before it was somebody's
                self._emit(events.ClientVanished(participant=participant))
            return
        self.release(participant)  # of another connection, which is replaced
        client.participant = participant
        self._participants[participant] = client

    def rehold(self, participant: ParticipantId, request: int) -> None:
        pid, pidfd = self._opened.pop(request)
        self._watch(participant, pid, pidfd)

    def release(self, participant: ParticipantId) -> None:
        client = self._participants.pop(participant, None)
        if client is not None:
            client.participant = None
            client.close()

    # ------------------------------------------------------------ clients

    def _let_in(self, sock: socket.socket, uid: int) -> None:
        client = _Client(sock, uid)
        task = asyncio.get_running_loop().create_task(self._serve(client))
        self._tasks.add(task)
        # Not in the task itself: one that is cancelled before it began would leave all open.
        task.add_done_callback(lambda task: self._hung_up(client, task))

    async def _serve(self, client: _Client) -> None:
        reader, client.writer = await asyncio.open_unix_connection(
            sock=client.sock, limit=local.LINE_SIZE_BYTES_MAX
        )
        try:
            while (line := await self._line(reader, client)) is not None:
                self._request(local.request_decoder.decode(line), client)
                # Lines that are here already are read without a pause: others have their turn.
                await asyncio.sleep(0)
        except MingleError as error:
            client.send(local.Failed(code=error.code, sentence=str(error)))
        except ConnectionError:
            pass

    def _hung_up(self, client: _Client, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("bug: a client was not answered", exc_info=task.exception())
        if self._door is not None:
            self._door.left(client.uid)
        self._requests = {n: c for n, c in self._requests.items() if c is not client}
        if client.participant is not None:
            self._participants.pop(client.participant, None)
            self._emit(events.ClientVanished(participant=client.participant))
        client.end()

    async def _line(self, reader: asyncio.StreamReader, client: _Client) -> bytes | None:
        """The next line, None at the end. A participant may say nothing for as long as it likes;
        whoever only asks makes room for others, and so does whoever does not read the answers."""
        assert client.writer is not None
        begun = b""
        if client.stays:
            begun = await reader.read(1)
            if not begun or begun == b"\n":
                return begun or None
        try:
            async with asyncio.timeout(FIRST_LINE_S):
                if not client.stays:
                    await client.writer.drain()
                return begun + await reader.readuntil(b"\n")
        except TimeoutError:
            if client.asked and not begun:
                return None
            raise BadInput(f"no request within {FIRST_LINE_S:g} s; one JSON line each") from None
        except asyncio.LimitOverrunError:
            limit = local.LINE_SIZE_BYTES_MAX
            raise BadInput(f"a line longer than {limit} bytes; one JSON line each") from None
        except asyncio.IncompleteReadError:
            return None

    def _request(self, request: local.Request, client: _Client) -> None:
        # A status request without a version is a person with socat.
        check_version(request.version, f"the client (pid {client.holder.pid})")
        client.asked = True
        self._count += 1
        match request:
            case local.Join():
                self._join(request, client)
            case local.Reattach():
                self._reattach(request, client)
            case local.StoreOpened():
                self._emit(
                    events.StoreOpened(
                        participant=self._joined(client), proof=request.proof, port=request.port
                    )
                )
            case local.StoreFailed():
                self._emit(
                    events.StoreFailed(
                        participant=self._joined(client), proof=request.proof, reason=request.reason
                    )
                )
            case local.Alive():
                self._emit(events.ClientAlive(participant=self._joined(client)))
            case local.Finished():
                self._emit(events.ClientFinished(participant=self._joined(client)))
            case local.Leave():
                self._requests[self._count] = client
                self._emit(
                    events.LeaveAsked(
                        request=self._count,
                        job=request.job,
                        uid=client.uid,
                        participant=request.participant,
                        lost=request.lost,
                        reason=request.reason,
                        closes=request.closes,
                    )
                )
            case local.Cancel():
                client.cancel = self._count
                self._requests[self._count] = client
                self._emit(
                    events.CancelAsked(
                        request=self._count,
                        job=request.job,
                        uid=client.uid,
                        user=client.holder.user,
                        reason=request.reason,
                    )
                )
            case local.Adopt():
                if request.pidns not in (None, pid_namespace()):
                    raise NotPermitted(
                        f"pid {request.pid} counts in another pid namespace than this daemon's, so "
                        "the lease cannot be that shell's; use mingle-wait ... -- CMD there"
                    )
                opened = open_pid(request.pid, client.uid)
                self._requests[self._count] = client
                if opened is not None:
                    self._opened[self._count] = (request.pid, opened[1])
                self._emit(
                    events.AdoptAsked(
                        request=self._count,
                        token=request.token,
                        uid=client.uid,
                        holder=opened[0] if opened else None,
                        pid=request.pid,
                    )
                )
            case local.Logs():
                self._requests[self._count] = client
                self._emit(
                    events.LogsAsked(
                        request=self._count, job=request.job, uid=client.uid, after=request.after
                    )
                )
            case local.Metrics():
                self._requests[self._count] = client
                self._emit(events.MetricsAsked(request=self._count))
            case local.Status():
                self._requests[self._count] = client
                self._emit(events.StatusAsked(request=self._count, uid=client.uid))

    def _join(self, join: local.Join, client: _Client) -> None:
        holder = client.holder
        self._check(join, client)
        participant = ParticipantId(os.urandom(16).hex())
        client.participant = participant
        self._participants[participant] = client
        pidfd = client.take_pidfd()
        if pidfd is not None:
            self._watch(participant, holder.pid, pidfd)
        if join.adopt:  # the shell that evaluates is above the process that asks
            holder = msgspec.structs.replace(holder, ancestors=ancestors(holder.pid))
        self._emit(events.JoinAsked(participant=participant, join=join, holder=holder))

    def _reattach(self, asked: local.Reattach, client: _Client) -> None:
        self._check(asked.join, client)
        client.reattach = self._count
        self._requests[self._count] = client
        pidfd = client.take_pidfd()
        if pidfd is not None:  # no longer the client's, which may hang up before it is seated
            self._opened[self._count] = (client.holder.pid, pidfd)
        self._emit(
            events.ReattachAsked(
                request=self._count,
                participant=asked.participant,
                join=asked.join,
                config=asked.config,
                holder=client.holder,
            )
        )

    def _check(self, join: local.Join, client: _Client) -> None:
        """Whether this connection can be a participant's."""
        if client.stays:
            raise BadInput(f"job {join.job}: one join a connection; open another one")
        if join.netns is not None and self._netns is not None and join.netns != self._netns:
            # The proof would be made in a network that the client does not live in.
            raise _OtherNamespace(
                f"job {join.job}: this daemon lives in network namespace {self._netns}, you in "
                f"{join.netns}; it cannot speak for you"
            )
        if client.holder.uid < 0:
            raise DaemonError(f"job {join.job}: the kernel does not say who you are")

    @staticmethod
    def _joined(client: _Client) -> ParticipantId:
        if client.participant is None:
            raise BadInput("only a participant can say that; join a job on this connection")
        return client.participant
