"""Signals while `mingle-wait` stands beside CMD, and between two of its runs."""

from __future__ import annotations

import os
import pty
import signal

import pytest

from mingled.cli.child import Child

from .fake_daemon import JOB, RESTART, SERVES, THREE, FakeDaemon, gone, ready, start
from .running import WAIT


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT"])
def test_a_signal_to_cmd_ends_it_for_good(daemon: FakeDaemon, name: str) -> None:
    with start(daemon, *RESTART, cmd=f"trap 'exit 9' {name}; {SERVES}") as waiting:
        daemon.join(ready())
        waiting.until("ready")
        waiting.process.send_signal(signal.Signals[f"SIG{name}"])
        leave = daemon.leave()
        assert (leave.lost, leave.reason) == (True, "CMD ended with exit 9")
        assert waiting.end() == 9


def test_a_signal_that_is_no_end_is_none(daemon: FakeDaemon) -> None:
    with start(daemon, *RESTART, cmd=f"trap 'exit 9' USR1; {SERVES}") as waiting:
        daemon.join(ready())
        waiting.until("ready")
        waiting.process.send_signal(signal.SIGUSR1)
        daemon.join(ready(2))
        waiting.until("ready 29502")
        waiting.process.send_signal(signal.SIGTERM)
        daemon.leave()
        assert waiting.end() == 143


def test_a_signal_while_cmd_is_being_stopped(daemon: FakeDaemon) -> None:
    cmd = f"trap 'echo TERM' TERM; trap 'exit 5' INT; {SERVES}"
    with start(daemon, *RESTART, cmd=cmd) as waiting:
        served, _ = daemon.join(ready())
        waiting.until("ready")
        served.say(gone())
        waiting.until("TERM\n")
        waiting.process.send_signal(signal.SIGINT)
        assert daemon.leave().reason == "CMD ended with exit 5"
        assert waiting.end() == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_while_it_joins_again(daemon: FakeDaemon, number: signal.Signals) -> None:
    with start(daemon, *RESTART, cmd="exit 3") as waiting:
        daemon.join(ready())
        served, _ = daemon.join()
        waiting.process.send_signal(number)
        served.until_closed()
        daemon.leave()
        assert waiting.end() == 128 + number
    ended = f"mingle-wait: job {JOB}: ended by {number.name} while waiting"
    assert waiting.err.splitlines()[-1] == ended


def test_a_signal_that_is_ignored_here_ends_nothing(daemon: FakeDaemon) -> None:
    """As under nohup."""

    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with start(daemon, *RESTART, cmd=SERVES, preexec_fn=nohup) as waiting:
        served, _ = daemon.join(ready())
        waiting.until("ready 29501")
        waiting.process.send_signal(signal.SIGHUP)
        served.say(gone())
        served, _ = daemon.join(ready(2))
        waiting.process.send_signal(signal.SIGHUP)
        waiting.until("ready 29502")
        waiting.process.send_signal(signal.SIGTERM)
        daemon.leave()
        assert waiting.end() == 143


def test_a_child_is_reaped_where_ends_of_children_are_ignored(daemon: FakeDaemon) -> None:
    def deaf() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    with start(daemon, cmd="exit 3", preexec_fn=deaf) as waiting:
        daemon.join(ready())
        daemon.leave()
        assert waiting.end() == 3


def test_ctrl_c_reaches_cmd_once_and_ends_the_job(daemon: FakeDaemon) -> None:
    cmd = "n=0; trap 'n=$((n+1)); echo INT $n' INT; trap 'exit $n' TERM; " + SERVES
    script = f'exec {WAIT} {" ".join(THREE)} --on-lost restart -- sh -c "$CMD"'
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("sh", ["sh", "-c", script], {**daemon.environ(), "CMD": cmd, "TERM": "dumb"})
    with open(terminal, "r+b", buffering=0) as screen:
        daemon.join(ready())
        shown = b""
        while b"ready" not in shown:
            shown += screen.read(4096)
        screen.write(b"\x03")
        while b"INT 1" not in shown:
            shown += screen.read(4096)
        os.kill(pid, signal.SIGTERM)
        assert daemon.leave().reason == "CMD ended with exit 1"
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert b"INT 2" not in shown


def test_a_signal_that_came_after_cmds_end_is_not_lost() -> None:
    """Between two rounds: it does what it does while one waits."""

    class Came(Exception):
        pass

    def handle(number: int, _: object) -> None:
        raise Came(number)

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handler = signal.signal(signal.SIGTERM, handle)
    try:
        child = Child("/bin/sh", ["sh", "-c", "exit 3"], os.environ, JOB)
        while (status := child.wait(None)) is None:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert os.waitstatus_to_exitcode(status) == 3
        assert not child.interrupted
        with pytest.raises(Came):
            child.close()
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
