"""CMD as our child: signals go on to it, its status comes back, and the job's news is told."""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
from collections.abc import Callable, Mapping

from mingled.client import Connection
from mingled.core import local
from mingled.errors import BadInput, DaemonError

FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""... at its start, and whatever is ignored stays so in CMD: its pipes would never end it."""

_SI_KERNEL = 0x80
"""siginfo(7): sent by the kernel, as Ctrl-C is, to the whole foreground group: CMD has it too."""


class CommandNotFound(BadInput):
    """CMD is not there: 127, as in a shell."""

    exit_code = 127


class CommandNotRunnable(BadInput):
    """CMD cannot be run: 126, as in a shell."""

    exit_code = 126


def look_up(name: str, job: str) -> str:
    """The full path of CMD. Raises `CommandNotFound` or `CommandNotRunnable` before anybody waits
    for it in vain."""
    if "/" in name:
        found = [name]
    else:
        folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
        found = [os.path.join(folder or ".", name) for folder in folders]
    there = [path for path in found if os.path.isfile(path)]
    for path in there:
        if os.access(path, os.X_OK):
            return path
    if there:
        raise CommandNotRunnable(
            f"job {job}: {there[0]} cannot be run: chmod +x it, or put its interpreter before it"
        )
    where = "at that path" if "/" in name else "on PATH"
    raise CommandNotFound(f"job {job}: no command {name} {where} on this machine")


def replace(path: str, argv: list[str], env: Mapping[str, str], job: str) -> None:
    """Become CMD: the lease is the process and goes on."""
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(path, argv, env)
    except OSError as error:
        raise _not_run(path, job, error) from None


def _not_run(path: str, job: str, error: OSError) -> BadInput:
    kind = CommandNotFound if error.errno == errno.ENOENT else CommandNotRunnable
    return kind(f"job {job}: {path} cannot be run: {error.strerror}")


def run(
    path: str,
    argv: list[str],
    env: Mapping[str, str],
    *,
    job: str,
    connection: Connection,
    told: Callable[[local.Local], None],
) -> int:
    """Run CMD to its end; its wait status. News of the job goes to `told` meanwhile."""
    # Blocked in every thread, so that one thread takes them in turn, with who sent them.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        pid = os.posix_spawn(path, argv, env, setsigmask=(), setsigdef=_IGNORED_BY_PYTHON)
    except OSError as error:
        raise _not_run(path, job, error) from None
    threading.Thread(target=_forward, args=(pid,), daemon=True).start()
    child = os.pidfd_open(pid)
    watched: list[int | Connection] = [child]
    try:
        if _hear(connection, told):  # what came along with the config shows in no select()
            watched.append(connection)
        while True:
            ready, _, _ = select.select(watched, [], [])
            if connection in ready and not _hear(connection, told):
                watched.remove(connection)
            if child in ready:
                return os.waitpid(pid, 0)[1]
    finally:
        os.close(child)


def _hear(connection: Connection, told: Callable[[local.Local], None]) -> bool:
    """Everything that has come; False once the daemon is gone."""
    try:
        while (message := connection.pending()) is not None:
            told(message)
    except DaemonError:
        return False  # training goes on without news
    return True


def _forward(pid: int) -> None:
    while True:
        info = signal.sigwaitinfo(FORWARDED)
        if info.si_code == _SI_KERNEL:
            continue
        try:
            os.kill(pid, info.si_signo)
        except ProcessLookupError:
            return


def exit_code(status: int) -> int:
    """The wait status as a shell says it: 128+n for signal n."""
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)


def describe(status: int) -> str:
    """For the others."""
    if os.WIFSIGNALED(status):
        return f"CMD was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"CMD ended with exit {os.WEXITSTATUS(status)}"
