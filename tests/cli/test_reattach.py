"""A daemon that ends while CMD runs, and the next one that takes the participant back. The test
plays both."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mingled import client
from mingled.core import local
from mingled.core.codec import encode
from mingled.core.config import Config
from mingled.core.words import Form, JobId
from mingled.errors import DaemonError
from mingled.namespaces import network_namespace
from mingled.watching import reattach

from . import running
from .fake_daemon import JOB, FakeDaemon, config, gone, ready, who
from .running import PATIENCE_S, WAIT, Running, reports, until_ended

ENDED = "the daemon ended; training goes on unwatched until one is back"
AGAIN = "a daemon is back: training is watched again"
CMD = "echo ready; read line; exit 3"


@pytest.fixture
def waiting(daemon: FakeDaemon) -> Iterator[Running]:
    """Released, CMD runs, and the daemon has ended."""
    words = ("--job", JOB, "--nnodes", "3", "--any-user", "--", "sh", "-c", CMD)
    with Running(WAIT, *words, env=daemon.environ()) as process:
        _, join = daemon.join(ready())
        process.until("ready\n")
        assert join.netns == network_namespace()
        daemon.end()
        process.until(ENDED)
        yield process


def end(daemon: FakeDaemon, waiting: Running) -> None:
    """CMD ends, and the daemon that is there now hears of it."""
    waiting.say("go")
    leave = daemon.leave()
    assert (leave.participant, leave.lost) == (who(1), True)
    assert waiting.end() == 3


def asks(daemon: FakeDaemon, *answer: local.Local) -> local.Reattach:
    served = daemon.accept()
    request = served.request(local.Reattach)
    served.say(*answer)
    return request


def test_the_next_daemon_takes_it_back(daemon: FakeDaemon, waiting: Running) -> None:
    daemon.start()
    request = asks(daemon, local.Done(count=1), gone())
    waiting.until("gpu3 (10.0.0.3, node rank 2) lost 4 s ago")
    assert waiting.err.index(ENDED) < waiting.err.index(AGAIN) < waiting.err.index("lost 4 s")
    assert (request.participant, request.config) == (who(1), config())
    assert (request.join.job, request.join.any_user, request.join.size_min) == (JOB, True, 3)
    assert request.join.netns == network_namespace()
    end(daemon, waiting)


def test_again_and_again_and_nothing_is_told_twice(daemon: FakeDaemon, waiting: Running) -> None:
    for _ in range(2):
        daemon.start()
        asks(daemon, local.Done(count=1), gone(), local.Notice(kind="hint", sentence="so far"))
        waiting.until("so far")
        waiting.err = waiting.err.replace("so far", "")
        daemon.end()
    daemon.start()
    asks(daemon, local.Done(count=1))
    end(daemon, waiting)
    assert waiting.err.count(ENDED) == waiting.err.count(AGAIN) == 3
    assert waiting.err.count("lost 4 s ago") == 1


def test_one_that_cannot_is_asked_again(daemon: FakeDaemon, waiting: Running) -> None:
    daemon.start()
    asks(daemon, local.Failed(code="daemon", sentence="not yet"))
    asks(daemon)
    daemon.end()  # without an answer
    daemon.start()
    asks(daemon, local.Done(count=1))
    waiting.until(AGAIN)
    assert "not yet" not in waiting.err
    end(daemon, waiting)


def test_one_that_refuses_is_not_asked_again(daemon: FakeDaemon, waiting: Running) -> None:
    daemon.start()
    asks(daemon, local.Failed(code="refused", sentence=f"job {JOB}: round 1 is over"))
    waiting.until(f"mingle-wait: warning: job {JOB}: round 1 is over; unwatched from now\n")
    end(daemon, waiting)


def test_a_lease_that_was_ended_is_not_revived(daemon: FakeDaemon) -> None:
    """By `mingle leave`: the daemon says so, and hangs up."""
    words = ("--job", JOB, "--nnodes", "3", "--", "sh", "-c", CMD)
    with Running(WAIT, *words, env=daemon.environ()) as waiting:
        served, _ = daemon.join(ready())
        waiting.until("ready\n")
        served.say(local.Failed(code="cancelled", sentence=f"job {JOB}: left on gpu2"))
        waiting.until(f"warning: job {JOB}: left on gpu2")
        served.until_closed()
        end(daemon, waiting)
        assert ENDED not in waiting.err


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_cmd_and_signals_do_not_wait_for_a_daemon(
    waiting: Running, number: signal.Signals | None
) -> None:
    if number is None:
        waiting.say("go")
        assert waiting.end() == 3
    else:
        waiting.process.send_signal(number)
        waiting.process.wait(PATIENCE_S)  # before `end` closes CMD's stdin, at which it ends too
        assert waiting.end() == 128 + number


def test_a_daemon_that_says_half_a_word_holds_up_nothing(daemon: FakeDaemon) -> None:
    words = ("--job", JOB, "--nnodes", "3", "--", "sh", "-c", CMD)
    with Running(WAIT, *words, env=daemon.environ()) as waiting:
        served, _ = daemon.join(ready())
        waiting.until("ready\n")
        half = encode(gone())[:20]
        served.say_bytes(encode(local.Notice(kind="hint", sentence="half")) + half)
        waiting.until("half")
        waiting.process.send_signal(signal.SIGUSR2)  # CMD has no trap for it
        assert daemon.leave().reason == "CMD was killed by SIGUSR2"
        assert waiting.end() == 128 + signal.SIGUSR2


# ---------------------------------------------------------------- the request


def lease(members: int) -> client.Lease:
    """Of the last of so many."""
    one = config().members[0]
    roster = tuple(
        msgspec.structs.replace(
            one, rank=n, node_rank=n, global_rank=n, participant=who(n), node=f"{n:032x}"
        )
        for n in range(members)
    )
    join = local.Join(
        job=JobId(JOB), form=Form.LAUNCHER, size_min=members, size_max=members, lost="exit 3"
    )
    mine = msgspec.structs.replace(config(rank=members - 1), members=roster)
    with socket.socket(socket.AF_UNIX) as sock:
        connection = client.Connection(sock, Path("s"))
    return client.Lease(connection, join, local.Ready(participant=who(members - 1), config=mine))


def test_a_roster_too_long_for_a_line_is_cut_to_what_is_needed() -> None:
    short, long = lease(100), lease(1000)
    assert reattach(short).config == short.config
    assert reattach(short).join.lost == ""
    request = reattach(long)
    assert len(encode(request)) <= local.LINE_SIZE_BYTES_MAX < len(encode(long.config))
    assert [member.rank for member in request.config.members] == [0, 999]
    whole: Config = msgspec.structs.replace(request.config, members=long.config.members)
    assert whole == long.config


# ---------------------------------------------------------------- with a real one


def test_a_private_daemon_that_was_killed_is_replaced(runtime: Path) -> None:
    words = ("--job", running.JOB, "--world-size", "1", "--", "sh", "-c", CMD)
    with Running(WAIT, *words) as waiting:
        waiting.until("ready\n")
        (first,) = reports()
        os.kill(first.pid, signal.SIGKILL)
        waiting.until(AGAIN)
        (second,) = reports()
        assert second.pid != first.pid
        (job,) = second.jobs
        assert [seat.pid for seat in job.seats] == [waiting.process.pid]
        os.kill(second.pid, signal.SIGTERM)  # what we block while CMD runs, it does not
        until_ended([second.pid])
        waiting.say("go")
        assert waiting.end() == 3


def test_a_daemon_that_we_start_has_no_signals_blocked(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """... though we have, while CMD runs."""
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        f"open({str(tmp_path / 'status')!r}, 'w').write(open('/proc/self/status').read())\n"
        "os.write(int(sys.argv[-1]), b'ready\\n')\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGIO])
    try:
        with pytest.raises(DaemonError):  # it says that it is ready, and is not there
            client.find(JobId(JOB))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    lines = (tmp_path / "status").read_text().splitlines()
    (blocked,) = [line.split()[1] for line in lines if line.startswith("SigBlk")]
    assert int(blocked, 16) == 0
