"""The Unix socket: lines from clients become events, messages become lines. Decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from mingled import locks
from mingled.core import events, local
from mingled.core.codec import check_version, encode
from mingled.core.words import ParticipantId
from mingled.errors import BadInput, DaemonError, MingleError, NotPermitted, Refused
from mingled.namespaces import pid_namespace
from mingled.processes import ancestors, open_peer, open_pid

FIRST_LINE_S = 5.0
"""A client that connects and says nothing holds a descriptor: not for longer than this."""

CLIENTS_PER_USER_MAX = 1_024
"""Connections of one user: more than the processes of any node; one user must not shut out the
rest."""

UNSENT_BYTES_MAX = 8 * 1024 * 1024
"""A client that does not read is hung up on before it costs more memory than this."""


class Listener:
    """The bound socket, and the lock that makes it ours."""

    def __init__(self, path: Path, mode: int) -> None:
        """Listen at `path`. asyncio's own server silently replaces a live daemon's socket, so a
        lock is taken first, and a socket file is only removed by whoever holds it. Raises
        `DaemonError`."""
        self.path = path
        self._lock_path = path.with_name(path.name + ".lock")
        try:
            self._lock = locks.acquire(self._lock_path, wait=False)
        except BlockingIOError:
            raise DaemonError(
                f"another mingled already serves {path}; see `mingle status`, or give --socket "
                "another path"
            ) from None
        except OSError as error:
            raise DaemonError(
                f"{self._lock_path}: {error.strerror}; make its folder, or give --socket another "
                "path"
            ) from None
        try:
            self.sock = _listen(path, mode)
        except BaseException:
            locks.release(self._lock, self._lock_path)
            raise

    def close(self) -> None:
        """Leave no file."""
        self.path.unlink(missing_ok=True)
        locks.release(self._lock, self._lock_path)


def _listen(path: Path, mode: int) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise DaemonError(f"{path} is there and is no socket; remove it or choose another path")
        path.unlink()
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
    sock.listen(128)
    return sock


class _OtherNamespace(NotPermitted):
    code = local.OTHER_NAMESPACE


class _Client:
    """One connection."""

    def __init__(self, writer: asyncio.StreamWriter, uid: int) -> None:
        self.writer = writer
        self.uid = uid
        self.participant: ParticipantId | None = None
        self.reattach: int | None = None  #: its request to be a participant's, unanswered
        self.pidfd: int | None = None

    @property
    def stays(self) -> bool:
        """Whether it may say nothing for as long as it likes."""
        return self.participant is not None or self.reattach is not None

    def send(self, message: local.Local) -> None:
        transport = self.writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            transport.abort()
            return
        self.writer.write(encode(message))


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
        self._server: asyncio.Server | None = None
        self._participants: dict[ParticipantId, _Client] = {}
        self._requests: dict[int, _Client] = {}
        self._opened: dict[int, tuple[int, int]] = {}  #: holders to be: pid and its pidfd
        self._count = 0
        self._per_user: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, sock: socket.socket) -> None:
        # cleanup_socket (3.13) would unlink by path what may be a successor's.
        self._server = await asyncio.start_unix_server(
            self._serve, sock=sock, limit=local.LINE_SIZE_BYTES_MAX
        )

    async def close(self) -> None:
        """What was written still goes out; then every connection ends."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _pid, pidfd in self._opened.values():
            os.close(pidfd)
        self._opened.clear()

    # ------------------------------------------------------------ actions

    def tell(self, participant: ParticipantId, message: local.Local) -> None:
        client = self._participants.get(participant)
        if client is not None:
            client.send(message)

    def answer(self, request: int, message: local.Local) -> None:
        client = self._requests.pop(request, None)
        if client is not None:
            client.send(message)
            if client.reattach == request:
                client.reattach = None
                if client.participant is None:  # refused
                    client.writer.close()
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
            client.writer.close()

    # ------------------------------------------------------------ clients

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        sock: socket.socket = writer.get_extra_info("socket")
        holder, pidfd = open_peer(sock)
        client = _Client(writer, holder.uid)
        client.pidfd = pidfd
        self._per_user[client.uid] += 1
        try:
            if self._per_user[client.uid] > CLIENTS_PER_USER_MAX:
                count = self._per_user[client.uid] - 1
                raise Refused(f"{holder.user} has {count} connections to this daemon already")
            await self._read(reader, client, holder)
        except MingleError as error:
            client.send(local.Failed(code=error.code, sentence=str(error)))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._hung_up(client)
            self._tasks.discard(task)

    def _hung_up(self, client: _Client) -> None:
        self._per_user[client.uid] -= 1
        if not self._per_user[client.uid]:
            del self._per_user[client.uid]
        if client.pidfd is not None:
            os.close(client.pidfd)
        self._requests = {n: c for n, c in self._requests.items() if c is not client}
        if client.participant is not None:
            self._participants.pop(client.participant, None)
            self._emit(events.ClientVanished(participant=client.participant))
        client.writer.close()

    async def _read(
        self, reader: asyncio.StreamReader, client: _Client, holder: events.Holder
    ) -> None:
        timeout: float | None = FIRST_LINE_S
        asked = False
        while True:
            try:
                async with asyncio.timeout(timeout):
                    line = await reader.readuntil(b"\n")
            except TimeoutError:
                if asked:
                    return
                raise BadInput(
                    f"no request within {FIRST_LINE_S:g} s; one JSON line each"
                ) from None
            except asyncio.LimitOverrunError:
                limit = local.LINE_SIZE_BYTES_MAX
                raise BadInput(f"a line longer than {limit} bytes; one JSON line each") from None
            except asyncio.IncompleteReadError:
                return
            self._request(local.request_decoder.decode(line), client, holder)
            asked = True
            # A participant stays; whoever only asked makes room for others.
            timeout = None if client.stays else FIRST_LINE_S

    def _request(
        self,
        request: local.Request,
        client: _Client,
        holder: events.Holder,
    ) -> None:
        # A status request without a version is a person with socat.
        check_version(request.version, f"the client (pid {holder.pid})")
        self._count += 1
        match request:
            case local.Join():
                self._join(request, client, holder)
            case local.Reattach():
                self._reattach(request, client, holder)
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
            case local.Status():
                self._requests[self._count] = client
                self._emit(events.StatusAsked(request=self._count, uid=client.uid))

    def _join(self, join: local.Join, client: _Client, holder: events.Holder) -> None:
        self._check(join, client, holder)
        participant = ParticipantId(os.urandom(16).hex())
        client.participant = participant
        self._participants[participant] = client
        if client.pidfd is not None:
            self._watch(participant, holder.pid, os.dup(client.pidfd))
        if join.adopt:  # the shell that evaluates is above the process that asks
            holder = msgspec.structs.replace(holder, ancestors=ancestors(holder.pid))
        self._emit(events.JoinAsked(participant=participant, join=join, holder=holder))

    def _reattach(self, asked: local.Reattach, client: _Client, holder: events.Holder) -> None:
        self._check(asked.join, client, holder)
        client.reattach = self._count
        self._requests[self._count] = client
        if client.pidfd is not None:  # its own copy: the client may hang up before it is seated
            self._opened[self._count] = (holder.pid, os.dup(client.pidfd))
        self._emit(
            events.ReattachAsked(
                request=self._count,
                participant=asked.participant,
                join=asked.join,
                config=asked.config,
                holder=holder,
            )
        )

    def _check(self, join: local.Join, client: _Client, holder: events.Holder) -> None:
        """Whether this connection can be a participant's."""
        if client.stays:
            raise BadInput(f"job {join.job}: one join a connection; open another one")
        if join.netns is not None and self._netns is not None and join.netns != self._netns:
            # The proof would be made in a network that the client does not live in.
            raise _OtherNamespace(
                f"job {join.job}: this daemon lives in network namespace {self._netns}, you in "
                f"{join.netns}; it cannot speak for you"
            )
        if holder.uid < 0:
            raise DaemonError(f"job {join.job}: the kernel does not say who you are")

    @staticmethod
    def _joined(client: _Client) -> ParticipantId:
        if client.participant is None:
            raise BadInput("only a participant can say that; join a job on this connection")
        return client.participant
