"""The training side: find a daemon or start a private one, ask, wait. Blocking and light.

Daemons are looked for in this order: `MINGLE_SOCKET`; the system's, `/run/mingled/control.sock`; a
private one, for one job of one user in one network namespace, which is started if it is not there.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from mingled.core import local
from mingled.core.codec import encode
from mingled.core.config import Config
from mingled.core.words import JobId
from mingled.errors import BadInput, DaemonError, MingleError, NotPermitted, from_code
from mingled.namespaces import network_namespace, pid_namespace

SYSTEM_SOCKET = Path("/run/mingled/control.sock")

START_S = 20.0
"""For a private daemon to say that it is ready: half a second on an idle machine."""

REPLY_S = 10.0
"""For a daemon to answer what it answers at once."""

RUNTIME_BYTES_MAX = 64
"""A socket's path has room for 107 bytes, with ours below the folder: 38 of them."""

OUTCOME_S = 60.0
"""A join may outlast its timeout while the outcome of a round is open: 40 s at most."""

ATTEMPTS_MAX = 5
"""A private daemon may end between our connect and our request: then another is started."""

Told = Callable[[local.Local], None]
"""Takes Progress and Notice while a join waits."""

OpenStore = Callable[[str], int]
"""Opens a store that others reach at this address, and returns its port."""


class Connection:
    """One connection to a daemon."""

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self.path = path
        self._sock = sock
        self._buffer = bytearray()
        self.answered = False
        self.ended = False  #: the daemon hung up

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def send(self, message: local.Local) -> None:
        """A daemon that is gone is noticed by `receive`, after what it may have said before."""
        try:
            self._sock.sendall(encode(message))
        except (BrokenPipeError, ConnectionResetError):
            pass
        except OSError as error:
            raise self._gone(error.strerror or str(error)) from None

    def receive(self, timeout_s: float | None = None) -> local.Local:
        """The next message. Raises `DaemonError` when the daemon hangs up or, with a timeout,
        does not answer."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            if until is not None:
                left = max(0.0, until - time.monotonic())
                if not readable(self, left):
                    raise self._gone(f"does not answer within {timeout_s:.0f} s")
            self._read()
        return self._next()

    def pending(self) -> local.Local | None:
        """A message that is here already, whole; never waits. Raises as `receive`."""
        while b"\n" not in self._buffer:
            if not readable(self, 0):
                return None
            self._read()
        return self._next()

    def _read(self) -> None:
        try:
            chunk = self._sock.recv(65_536)
        except OSError as error:
            self.ended = True
            raise self._gone(error.strerror or str(error)) from None
        if not chunk:
            self.ended = True
            raise self._gone("it ended or hung up")
        self._buffer += chunk

    def _next(self) -> local.Local:
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        self.answered = True
        try:
            return local.reply_decoder.decode(line)
        except BadInput as error:
            raise DaemonError(
                f"{self.path} on {socket.gethostname()}: what answers there is no mingled of this "
                f"version: {error}; install the same release for both, or name another socket with "
                "MINGLE_SOCKET"
            ) from None

    def _gone(self, reason: str) -> DaemonError:
        return DaemonError(
            f"the daemon at {self.path} on {socket.gethostname()}: {reason}; see `mingle status`, "
            "then run the command again"
        )


def readable(source: int | Connection, timeout_s: float) -> bool:
    """Is there anything to read within this time? By poll(2): select(2) fails on descriptors over
    1,023, which a training process with many files open has."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


class Lease:
    """A released participant: its config, and the way to end it."""

    def __init__(self, connection: Connection, join: local.Join, ready: local.Ready) -> None:
        self.connection = connection  #: to the daemon that watches it, or was the last to do so
        self.join = join
        self.participant = ready.participant
        self.config: Config = ready.config
        self.token = ready.token
        self.found_s = ready.found_s
        self.waited_s = ready.waited_s

    def leave(self, *, lost: bool = False, reason: str = "", closes: bool = False) -> None:
        """End it; the others are told. A daemon that is gone has told them already. `closes`: the
        run is over, so that whoever waits for its next round is told (`Closed`)."""
        leave = local.Leave(
            job=JobId(self.config.job),
            participant=self.participant,
            lost=lost,
            reason=reason,
            closes=closes,
        )
        try:
            ask(connect(self.connection.path), leave)
        except MingleError:
            pass
        finally:
            # Last: where a daemon cannot watch the process, the connection's end is a loss.
            self.connection.close()


# ---------------------------------------------------------------- requests


def join(request: local.Join, told: Told, open_store: OpenStore | None = None) -> Lease:
    """Take part, wait, and be released. `told` hears what happens meanwhile; with `request.store`,
    `open_store` is called where this participant is to be rank 0 (again for each new attempt), and
    an exception of it is told to the daemon, which goes on in another way.

    Raises the error that the daemon names (`mingled.errors`), or `DaemonError`.
    """
    request = msgspec.structs.replace(request, netns=network_namespace())
    private_only = False
    patience_s = None if request.timeout_s is None else request.timeout_s + OUTCOME_S
    until = None if patience_s is None else time.monotonic() + patience_s
    for _attempt in range(ATTEMPTS_MAX):
        connection = find(request.job, private_only=private_only)
        try:
            connection.send(request)
            while True:
                if not connection.answered:  # a daemon says at once where the wait stands
                    message = connection.receive(REPLY_S)
                elif until is None:
                    message = connection.receive()
                else:  # it keeps the time itself; this is for one that is stuck
                    message = connection.receive(max(0.0, until - time.monotonic()))
                if isinstance(message, local.Ready):
                    return Lease(connection, request, message)
                if isinstance(message, local.Failed):
                    if message.code == local.OTHER_NAMESPACE and "MINGLE_SOCKET" not in os.environ:
                        private_only = True
                        connection.close()
                        break
                    raise from_code(message.code, message.sentence)
                if isinstance(message, local.OpenStore):
                    connection.send(_opened(message, open_store))
                else:
                    told(message)
        except DaemonError:
            connection.close()
            if connection.answered or not connection.ended:
                raise
        except BaseException:
            connection.close()
            raise
    raise DaemonError(
        f"job {request.job}: no daemon on {socket.gethostname()} stayed long enough to be asked; "
        f"its log is in {private_folder(create=False)}"
    )


def _opened(
    asked: local.OpenStore, open_store: OpenStore | None
) -> local.StoreOpened | local.StoreFailed:
    try:
        if open_store is None:
            raise BadInput("this client opens no store")
        return local.StoreOpened(proof=asked.proof, port=open_store(asked.address))
    except Exception as error:  # the user's, or the framework's: whatever it is, the job goes on
        reason = str(error) or type(error).__name__
        return local.StoreFailed(proof=asked.proof, reason=reason)


def ask(connection: Connection, request: local.Local) -> local.Local:
    """One request, one answer. Raises the error that the daemon names."""
    try:
        connection.send(request)
        answer = connection.receive(REPLY_S)
    finally:
        connection.close()
    if isinstance(answer, local.Failed):
        raise from_code(answer.code, answer.sentence)
    return answer


def adopt(token: str, pid: int) -> None:
    """Hand the lease that goes with `token` to process `pid`. A token names its daemon's socket."""
    path, _, secret = token.rpartition("#")
    ask(connect(Path(path)), local.Adopt(token=secret, pid=pid, pidns=pid_namespace()))


def daemons() -> list[Connection]:
    """Connections to every daemon that this user can ask: `MINGLE_SOCKET` alone, or the system's
    and this user's private ones."""
    named = os.environ.get("MINGLE_SOCKET")
    if named:
        return [connect(Path(named))]
    found = []
    paths = [SYSTEM_SOCKET]
    folder = private_folder(create=False)
    if _is_ours(folder):  # in another user's folder anybody may answer
        paths += sorted(folder.glob("*.sock"))
    for path in paths:
        try:
            found.append(connect(path))
        except NotPermitted:
            raise
        except DaemonError:
            continue  # none there, or a stale socket of a daemon that was killed
    return found


# ---------------------------------------------------------------- finding a daemon


def find(job: JobId, *, private_only: bool = False, patience_s: float = REPLY_S) -> Connection:
    """A connection to the daemon that is to serve `job`, started if need be: that takes half a
    second, or as long as somebody else takes who starts it just now. Raises as `connect`, which
    `patience_s` is for."""
    named = os.environ.get("MINGLE_SOCKET")
    if named:
        return connect(Path(named), patience_s)
    if not private_only:
        try:
            return connect(SYSTEM_SOCKET, patience_s)
        except NotPermitted:
            raise  # said aloud, never stepped over
        except DaemonError:
            pass  # there is none, or its socket file outlived it
    return _private(job, patience_s)


def connect(path: Path, patience_s: float = REPLY_S) -> Connection:
    """Waits at most `patience_s` where too many connect at once. Raises `DaemonError`, or
    `NotPermitted`, naming the path and what to do."""
    host = socket.gethostname()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _connect(sock, path, patience_s)
    except PermissionError:
        sock.close()
        raise NotPermitted(
            f"{path} on {host}: no permission to ask this daemon; its socket's mode or owner "
            "forbids it (ls -l), or name another one with MINGLE_SOCKET"
        ) from None
    except OSError as error:
        sock.close()
        reason = {
            errno.ENOENT: "there is no such socket",
            errno.ECONNREFUSED: "no daemon listens there",
        }.get(error.errno or 0, error.strerror or str(error))
        if os.path.exists(path) and not stat.S_ISSOCK(path.stat().st_mode):
            reason = "this is no socket"
        raise DaemonError(
            f"{path} on {host}: {reason}; start `mingled --socket {path}`, or unset MINGLE_SOCKET "
            "to have a private daemon started"
        ) from None
    return Connection(sock, path)


def _connect(sock: socket.socket, path: Path, patience_s: float) -> None:
    until = time.monotonic() + patience_s
    sock.settimeout(patience_s)
    while True:
        try:
            sock.connect(str(path))
            break
        except BlockingIOError:  # more clients at once than its queue holds
            if time.monotonic() >= until:
                raise
            time.sleep(0.02)
    sock.settimeout(None)


def private_folder(*, create: bool = True) -> Path:
    """Where this user's private daemons live: never in $HOME, which machines may share."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    uid = os.getuid()
    if runtime and len(os.fsencode(runtime)) <= RUNTIME_BYTES_MAX and _is_ours(Path(runtime)):
        folder = Path(runtime) / "mingled"
    else:
        folder = Path("/tmp") / f"mingled-{uid}"
    if create:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise DaemonError(
                f"{folder}: {error.strerror}; a private daemon needs a folder: set XDG_RUNTIME_DIR"
            ) from None
        if not _is_ours(folder):
            raise NotPermitted(
                f"{folder} is not a folder of yours alone (wanted: owner {uid}, mode 0700); "
                "somebody else may listen there: remove it, or set XDG_RUNTIME_DIR"
            )
    return folder


def _is_ours(folder: Path) -> bool:
    try:
        info = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o077


def _private(job: JobId, patience_s: float) -> Connection:
    import hashlib

    from mingled import locks

    name = hashlib.sha256(f"{network_namespace()} {job}".encode()).hexdigest()[:24]
    path = private_folder() / f"{name}.sock"
    try:
        return connect(path, patience_s)
    except DaemonError:
        pass
    # Everybody who finds no daemon meets at this lock; the first starts one, the rest connect.
    lock_path = path.with_suffix(".start")
    try:
        lock = locks.acquire(lock_path, wait=True)
    except OSError as error:
        raise DaemonError(
            f"{lock_path} on {socket.gethostname()}: {error.strerror}; a private daemon needs a "
            "folder to write to: set XDG_RUNTIME_DIR"
        ) from None
    try:
        try:
            return connect(path, patience_s)
        except DaemonError:
            _start(path, job)
        return connect(path, patience_s)
    finally:
        locks.release(lock, lock_path)


def _start(path: Path, job: JobId) -> None:
    """A private daemon, detached from everything of ours: terminal, session, descriptors, and
    blocked signals, which would leave it deaf to SIGTERM."""
    import signal
    import subprocess

    if not sys.executable:
        raise DaemonError("no Python interpreter to start a private daemon with; run `mingled`")
    reader, writer = os.pipe()
    environ = dict(os.environ)
    # The daemon's folder is /, so relative paths would break.
    for name in ("MINGLE_KEY_FILE", "MINGLE_CONFIG"):
        if environ.get(name) not in (None, "", "none"):
            environ[name] = os.path.abspath(os.path.expanduser(environ[name]))
    if environ.get("PYTHONPATH"):
        entries = environ["PYTHONPATH"].split(os.pathsep)
        environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(e) for e in entries if e)
    command = [sys.executable, "-P", "-m", "mingled.cli.mingled", "--private", "--daemonize"]
    command += ["--socket", str(path), "--ready-fd", str(writer)]
    try:
        log = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError:
        log = os.open(os.devnull, os.O_WRONLY)  # a full disk is no reason not to train
    try:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
            cwd="/",
            env=environ,
            check=False,
            # Only where it is needed: between fork and exec threads make Python code a risk.
            preexec_fn=_unblock if signal.pthread_sigmask(signal.SIG_BLOCK, ()) else None,
        )
        os.close(writer)
        writer = -1
        said = _until_ready(reader)
    finally:
        for fd in (reader, writer, log):
            if fd >= 0:
                os.close(fd)
    if said != "ready":
        raise DaemonError(
            f"job {job}: a private daemon could not be started on {socket.gethostname()}: "
            f"{said or 'it ended at once'}; its log is {path.with_suffix('.log')}"
        )


def _unblock() -> None:
    import signal

    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _until_ready(reader: int) -> str:
    said = b""
    until = time.monotonic() + START_S
    while not said.endswith(b"\n"):
        left = max(0.0, until - time.monotonic())
        if not readable(reader, left):
            return f"not ready within {START_S:g} s"
        chunk = os.read(reader, 4096)
        if not chunk:
            break
        said += chunk
    return said.decode(errors="replace").strip()
