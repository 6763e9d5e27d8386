"""CMD: found, become, or started as our child, with signals going on to it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Mapping

from mingled.client import Connection
from mingled.errors import BadInput

FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

_WAKING = (signal.SIGCHLD, signal.SIGIO)

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


class Child:
    """CMD as it runs. Signals that come meanwhile are taken one by one, with who sent them, and
    passed on; they are blocked until `close`, so that none is lost between two looks.

    One thread and one place to sleep in: the end of CMD (SIGCHLD) and news (SIGIO, see `announce`)
    come as signals too. These two stay blocked for good: SIGIO would end a process.
    """

    def __init__(self, path: str, argv: list[str], env: Mapping[str, str], job: str) -> None:
        """Raises `CommandNotFound` or `CommandNotRunnable`."""
        self.interrupted = False
        """A signal came that is to end CMD: no restart after it."""
        # What is ignored here (nohup, a shell's background) is passed on, but ends nothing.
        self._ending = {n for n in _ENDING if signal.getsignal(n) is not signal.SIG_IGN}
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else the kernel drops CMD's status
        signal.pthread_sigmask(signal.SIG_BLOCK, _WAKING)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            self._pid = os.posix_spawn(path, argv, env, setsigmask=(), setsigdef=_IGNORED_BY_PYTHON)
        except OSError as error:
            self.close()
            raise _not_run(path, job, error) from None

    def wait(self, timeout_s: float | None) -> int | None:
        """CMD's wait status once it has ended; None after a wake-up by anything else, or when the
        time is over."""
        info = _taken(timeout_s)
        while info is not None:
            if self._note(info) and info.si_code != _SI_KERNEL:
                self.send(info.si_signo)
            info = _taken(0)
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid == 0:
            return None
        while (info := _taken(0)) is not None:  # Ctrl-C ends CMD and tells us at the same time
            self._note(info)
        return status

    def send(self, number: int) -> bool:
        """A signal to CMD alone: a launcher's workers are the launcher's to end. False where it is
        not allowed, as to sudo."""
        try:
            os.kill(self._pid, number)  # not reaped yet, so the pid is its own
        except PermissionError:
            return False
        return True

    def close(self) -> None:
        """Signals do again what they did before; those that wait do it now."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _note(self, info: signal.struct_siginfo) -> bool:
        """Is it one that CMD is to have?"""
        self.interrupted |= info.si_signo in self._ending
        return info.si_signo in FORWARDED


def _taken(timeout_s: float | None) -> signal.struct_siginfo | None:
    signals = (*FORWARDED, *_WAKING)
    if timeout_s is None:
        return signal.sigwaitinfo(signals)
    return signal.sigtimedwait(signals, max(0.0, timeout_s))


def announce(connection: Connection) -> None:
    """From now on whatever comes over this connection, its end too, wakes `Child.wait`."""
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(connection, fcntl.F_GETFL)
    fcntl.fcntl(connection, fcntl.F_SETFL, flags | os.O_ASYNC)


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
