"""`mingle-wait` on one machine: behind `eval`, while it waits, and what ends a wait.

Usage, CMD and its signals: `test_wait_cmd.py`.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mingled import client
from mingled.core import local
from mingled.core.codec import encode
from mingled.core.config import Config
from mingled.core.messages import Seen
from mingled.core.words import Form, JobId
from mingled.errors import DaemonError

from .running import (
    BIN,
    JOB,
    PATIENCE_S,
    WAIT,
    Running,
    reports,
    seats,
    until_daemons_end,
    until_ended,
    until_nobody,
)

ANY_SHELL = pytest.mark.parametrize(
    "shell",
    [
        pytest.param(
            words, marks=pytest.mark.skipif(not shutil.which(words[0]), reason=f"no {words[0]}")
        )
        for words in (["bash", "--norc"], ["dash"], ["zsh", "-f"])
    ],
    ids=lambda words: str(words[0]),
)

ONE = f"--job {JOB} --world-size 1"
PAIR = ("--job", JOB, "--world-size", "2")


def evaluated(flags: str) -> str:
    return f'eval "$({WAIT} {flags})"'


def nothing_left(folder: Path) -> None:
    until_daemons_end()
    assert list(folder.iterdir()) == []


# ---------------------------------------------------------------- eval


@ANY_SHELL
def test_the_lease_is_the_evaluating_shells(runtime: Path, shell: list[str]) -> None:
    script = f"""
    {evaluated(ONE)}
    echo "eval $? shell $$ rank $RANK of $WORLD_SIZE at $MASTER_ADDR"
    read line
    {evaluated(ONE)}
    echo "again $?"
    read line
    {BIN}/mingle leave {JOB}
    echo "left $?"
    read line
    """
    with Running(*shell, "-c", script) as session:
        session.until("eval 0 ")
        pid = session.process.pid
        assert f"eval 0 shell {pid} rank 0 of 1 at 127.0.0.1\n" in session.out
        assert f"mingle-wait: job {JOB}: rank 0 is " in session.err
        (first,) = seats()
        assert (first.pid, first.state) == (pid, "released")
        session.say("go on")
        session.until("again 0\n")
        (second,) = seats()
        assert (second.pid, second.state) == (pid, "released")
        assert second.participant != first.participant
        session.say("go on")
        session.until("left 0\n")
        assert seats() == []
        session.say("go on")
        session.end()


@ANY_SHELL
def test_a_shell_that_ends_ends_its_lease(runtime: Path, shell: list[str]) -> None:
    with Running(
        *shell, "-c", f'{evaluated(f"--job {JOB} --rank 0")}; echo "eval $?"; read x'
    ) as s:
        s.until("eval 0\n")
        assert [seat.pid for seat in seats()] == [s.process.pid]
        s.process.kill()
        s.end()
    until_nobody()


@ANY_SHELL
@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        ("--job '' --rank 0", 2, "the job ID is empty"),
        ("--job bert --world-size 2 --rank 2", 2, "rank 2 is outside the job"),
        (f"--job {JOB} --world-size 2 --timeout 0.2", 82, f"job {JOB}: no rendezvous on "),
    ],
)
def test_a_failure_is_evals_and_sets_nothing(
    runtime: Path, shell: list[str], flags: str, code: int, sentence: str
) -> None:
    script = f'{evaluated(flags)}; echo "$? ${{MASTER_ADDR-none}} ${{MINGLE_EXPORTED-none}}"'
    done = subprocess.run([*shell, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{code} none none\n"
    assert sentence in done.stderr


def test_a_shell_that_evaluates_with_errexit_stops(runtime: Path) -> None:
    script = f"set -e; {evaluated('--job bert --rank -1')}; echo trained"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")


def test_the_config_as_json(runtime: Path) -> None:
    command = [WAIT, "--job", JOB, "--world-size", "1", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = msgspec.json.decode(done.stdout)
    config = msgspec.convert(said["config"], Config, dec_hook=lambda kind, word: kind(word))
    assert (config.job, config.rank, config.world_size) == (JOB, 0, 1)
    assert said["adopt"].startswith(f"{runtime}/")


def test_twenty_at_once_share_one_daemon(runtime: Path) -> None:
    job = f"{WAIT} --job {JOB} --world-size 20 -- sh -c 'echo $RANK $MINGLE_NNODES $MINGLE_CLAIM'"
    started = [
        subprocess.Popen(
            ["sh", "-c", f'said="$({job})" || exit 9; echo "$said"'],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(20)
    ]
    said = [process.communicate(timeout=PATIENCE_S)[0].split() for process in started]
    assert [process.returncode for process in started] == [0] * 20
    assert sorted(int(rank) for rank, _, _ in said) == list(range(20))
    assert {nodes for _, nodes, _ in said} == {"1"}
    assert len({claim for _, _, claim in said}) == 1
    nothing_left(runtime)


@pytest.mark.parametrize("flags", [[], ["--exec"]])
def test_cmd_starts_with_its_signals_as_a_shell_would_start_it(
    runtime: Path, flags: list[str]
) -> None:
    command = [WAIT, *ONE.split(), *flags, "--", "cat", "/proc/self/status"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    masks = dict(re.findall(r"^Sig(Blk|Ign):\s*([0-9a-f]+)$", done.stdout, re.MULTILINE))
    assert int(masks["Blk"], 16) == 0
    # Python ignores these two at its start.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        assert not int(masks["Ign"], 16) >> (number - 1) & 1


# ---------------------------------------------------------------- while it waits


def test_a_line_at_each_change(runtime: Path) -> None:
    with Running(WAIT, *PAIR, "--rank", "1", "--", "true") as second:
        second.until("1/2 here")
        with Running(WAIT, *PAIR, "--rank", "0", "--", "true") as first:
            assert first.end() == 0
        assert second.end() == 0
        host = socket.gethostname()
        prefix = f"mingle-wait: job {JOB}: "
        lines = second.err.splitlines()
        assert lines[0].startswith(f"{prefix}1/2 here: {host}; waiting for 1 more (no rank 0 yet)")
        assert f"{prefix}rank 0 is {host} (127.0.0.1:" in second.err
        assert len(lines) == len(set(lines))
        assert "\x1b" not in second.err
        assert "\r" not in second.err
        assert second.out == ""


def test_one_living_line_on_a_terminal(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    master, terminal = pty.openpty()
    with open(master, "rb", buffering=0) as screen:
        with Running(WAIT, *PAIR, "--rank", "1", "--", "true", stderr=terminal) as second:
            os.close(terminal)
            shown = b""
            while b"1/2 here" not in shown:
                shown += screen.read(4096)
            with Running(WAIT, *PAIR, "--rank", "0", "--", "true") as first:
                assert first.end() == 0
            assert second.end() == 0
        while b"all here after" not in shown:
            shown += screen.read(4096)
    # What a terminal makes of it: what is erased is not seen.
    lines = [line.rpartition("\r\x1b[K")[2] for line in shown.decode().split("\r\n")]
    assert [line for line in lines if "here: " in line] == []
    assert lines[0].startswith(f"mingle-wait: job {JOB}: rank 0 is ")


def test_time_is_over(runtime: Path) -> None:
    command = [WAIT, *PAIR, "--rank", "1", "--timeout", "0.3", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (82, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"mingle-wait: job {JOB}: no rendezvous on {socket.gethostname()}")
    assert "rank 0" in last
    assert seats() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("cmd", [[], ["--", "true"]])
def test_a_wait_that_is_broken_off_leaves(
    runtime: Path, number: signal.Signals, cmd: list[str]
) -> None:
    with Running(WAIT, *PAIR, *cmd) as waiting:
        waiting.until("1/2 here")
        waiting.process.send_signal(number)
        assert waiting.end() == 128 + number
        assert waiting.out == ("" if cmd else f"(exit {128 + number})\n")
        sentence = f"mingle-wait: job {JOB}: ended by {number.name} while waiting\n"
        assert waiting.err.endswith(sentence)
    until_nobody()


def test_a_socket_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REPLY_S", 0.2)
    path = tmp_path / "mute"
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        monkeypatch.setenv("MINGLE_SOCKET", str(path))
        request = local.Join(job=JobId(JOB), form=Form.PROCESS, size_min=2, size_max=2)
        with pytest.raises(DaemonError, match="does not answer within"):
            client.join(request, lambda _: None)


def test_a_plain_rank_that_runs_here_is_taken(runtime: Path) -> None:
    plain = ("--job", JOB, "--rank", "0", "--", "sh", "-c", "echo up; read line")
    with Running(WAIT, *plain) as first:
        first.until("rank 0 is")
        done = subprocess.run([WAIT, *plain], capture_output=True, text=True, check=False)
        assert done.returncode == 81
        assert "rank 0 is asked for twice: by pid" in done.stderr


def test_a_closed_stderr_stops_nothing(runtime: Path) -> None:
    line = f"exec {WAIT} {ONE} -- sh -c 'exit 3' 2>&- <&-"
    assert subprocess.run(["sh", "-c", line], check=False).returncode == 3


def test_a_process_with_many_descriptors(runtime: Path) -> None:
    script = (
        "import os, resource, mingled\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
        "files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]\n"
        f"print(mingled.join({JOB!r}, world_size=1, timeout=60).rank)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"


def test_mingle_leave_ends_a_wait(runtime: Path) -> None:
    with Running(WAIT, *PAIR, "--", "true") as waiting:
        waiting.until("1/2 here")
        subprocess.run([BIN / "mingle", "leave", JOB], check=True, stderr=subprocess.DEVNULL)
        assert waiting.end() == 87
        assert f"job {JOB}: " in waiting.err.splitlines()[-1]
    assert seats() == []


def test_a_daemon_that_dies_while_a_client_waits(runtime: Path) -> None:
    with Running(WAIT, *PAIR, "--", "true") as waiting:
        waiting.until("1/2 here")
        (report,) = reports()
        os.kill(report.pid, signal.SIGKILL)
        assert waiting.end() == 80
        last = waiting.err.splitlines()[-1]
        assert f"the daemon at {report.socket} on {socket.gethostname()}: it ended" in last
    until_ended([report.pid])
    # What it left behind stops nobody.
    again = subprocess.run(
        [WAIT, "--job", JOB, "--world-size", "1", "--", "true"], capture_output=True, check=False
    )
    assert again.returncode == 0
    nothing_left(runtime)


def test_fault_06_two_who_ask_for_one_rank(runtime: Path) -> None:
    with Running(WAIT, *PAIR, "--rank", "1", "--", "true") as first:
        first.until("1/2 here")
        with Running(WAIT, *PAIR, "--rank", "1", "--", "true") as second:
            assert second.end() == 81
            assert f"pid {first.process.pid} " in second.err
            assert f"pid {second.process.pid} " in second.err
            assert f"job {JOB} on {socket.gethostname()}: rank 1" in second.err
        assert [seat.pid for seat in seats()] == [first.process.pid]
        with Running(WAIT, *PAIR, "--rank", "0", "--", "true") as third:
            assert third.end() == 0
        assert first.end() == 0


@pytest.mark.parametrize(
    ("flags", "word"), [(["--world-size", "3"], "3"), (["--nnodes", "2"], "nnodes")]
)
def test_fault_08_two_who_do_not_agree(runtime: Path, flags: list[str], word: str) -> None:
    with Running(WAIT, *PAIR, "--", "true") as first:
        first.until("1/2 here")
        with Running(WAIT, "--job", JOB, *flags, "--", "true") as second:
            assert second.end() == 81
            assert f"job {JOB} on {socket.gethostname()}: " in second.err.splitlines()[-1]
            assert word in second.err.splitlines()[-1]
        assert [seat.pid for seat in seats()] == [first.process.pid]


# ---------------------------------------------------------------- what a daemon may say


@pytest.fixture
def liar(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """A daemon that says these lines to one client, and hangs up."""
    monkeypatch.setenv("MINGLE_SOCKET", str(tmp_path / "liar"))
    lines: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "liar"))
        sock.listen()
        sock.settimeout(PATIENCE_S)

        def serve() -> None:
            connection, _ = sock.accept()
            with connection, connection.makefile("rb") as reader:
                reader.readline()
                connection.sendall(b"".join(lines))

        thread = threading.Thread(target=serve)
        thread.start()
        yield lines
        thread.join(PATIENCE_S)


def test_fault_38_hostile_names_do_not_paint_the_terminal(liar: list[bytes]) -> None:
    bad = "\x1b]0;title\x07\x1b[2J\r\n\x9b1m"
    progress = local.Progress(
        job="bert",
        state="leading",
        leader=bad,
        here=1,
        size_min=2,
        size_max=2,
        present=(Seen(host=bad, rank=0),),
        missing=(),
        note=bad,
    )
    liar.append(encode(progress))
    liar.append(encode(local.Notice(kind="warning", sentence=bad)))
    liar.append(encode(local.Failed(code="refused", sentence=f"job bert: {bad}")))
    done = subprocess.run([WAIT, *PAIR, "--", "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 81
    assert len(done.stderr.splitlines()) == 3
    assert re.search(r"[^\n -~�]", done.stderr) is None


@pytest.mark.parametrize(
    "line", [b"HTTP/1.1 400 Bad Request\r\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"{}\n"]
)
def test_a_socket_of_another_program(liar: list[bytes], line: bytes) -> None:
    liar.append(line)
    done = subprocess.run([WAIT, *PAIR, "--", "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 80
    assert "/liar on " in done.stderr
    assert "what answers there is no mingled of this version" in done.stderr
