"""`mingle-wait` on one machine: usage, CMD, signals, exit codes, nothing left behind."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from tests.unique import job

BIN = Path(sys.executable).parent
JOB = job("bert")
"""Not the one of another run of these tests: all use this machine's loopback."""

ONE = ("--job", JOB, "--world-size", "1")


def wait(
    *words: str, env: dict[str, str] | None = None, program: Sequence[str] = ("mingle-wait",)
) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / program[0]), *program[1:], *words]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **(env or {})},
    )


def started(*words: str) -> subprocess.Popen[str]:
    """mingle-wait, with the first line of its CMD read."""
    process = subprocess.Popen(
        [str(BIN / "mingle-wait"), *ONE, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for_the_end(folder: Path) -> None:
    """Of every daemon that keeps its files there; none is left."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() not in (process / "cmdline").read_bytes():
                continue
            pidfd = os.pidfd_open(int(process.name))
        except OSError:  # it has just ended
            continue
        with open(pidfd):
            assert select.select([pidfd], [], [], 60)[0]
    assert not folder.exists() or list(folder.iterdir()) == []


# ---------------------------------------------------------------- usage: 2, and nothing is started


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "no job ID; add --job NAME"),
        (["--job", "", "--rank", "0"], "the job ID is empty"),
        (["--job", "x" * 256, "--rank", "0"], "256 bytes, at most 255"),
        (["--job", "é" * 128, "--rank", "0"], "256 bytes, at most 255"),
        (["--job", "a\nb", "--rank", "0"], "control character U+000A"),
        (["--job", "a\x1b[2J", "--rank", "0"], "control character U+001B"),
        (["--job", "bert"], "neither a size nor a rank"),
        (["--job", "bert", "--world-size", "2", "--rank", "2"], "job bert: "),
        (["--job", "bert", "--nnodes", "2", "--node-rank", "-1"], "job bert: "),
        (["--job", "bert", "--nnodes", "0"], "--nnodes"),
        (["--job", "bert", "--nnodes", "3:2"], "--nnodes 3:2"),
        (["--job", "bert", "--world-size", "0"], "job bert: "),
        (["--job", "bert", "--nnodes", "2", "--rank", "1"], "delete one kind"),
        (["--job", "bert", "--world-size", "2", "--", "torchrun", "x.py"], "CMD is a launcher"),
        (["--job", "bert", "--", "torchrun", "x.py"], "nnodes"),
        (["--job", "bert", "--rank", "0", "--timeout", "soon"], "--timeout 'soon'"),
        (["--job", "bert", "--rank", "0", "--exec"], "--exec without CMD"),
        (["--job", "bert", "--rank", "zero"], "--rank"),
        (["--job", "bert", "--ranks", "0"], "--ranks"),
    ],
)
def test_usage_errors(runtime: Path, words: list[str], sentence: str) -> None:
    done = wait(*words)
    assert done.returncode == 2
    assert done.stdout == ("" if "--" in words else "(exit 2)\n")
    assert sentence in done.stderr
    assert done.stderr.startswith("mingle-wait: ")
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
    assert not runtime.exists()


def test_the_command_is_looked_up_before_anybody_waits(runtime: Path, tmp_path: Path) -> None:
    absent = wait(*ONE, "--", "no-such-command")
    assert (absent.returncode, absent.stdout) == (127, "")
    assert f"job {JOB}: no command no-such-command on PATH" in absent.stderr
    (tmp_path / "script").write_text("true")
    closed = wait(*ONE, "--", str(tmp_path / "script"))
    assert (closed.returncode, closed.stdout) == (126, "")
    assert "chmod +x" in closed.stderr
    assert not runtime.exists()


def test_a_command_whose_interpreter_is_missing(runtime: Path, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    for flags in ([], ["--exec"]):
        done = wait(*ONE, *flags, "--", str(script))
        assert (done.returncode, done.stdout) == (127, "")
        assert f"job {JOB}: {script} cannot be run" in done.stderr
    wait_for_the_end(runtime)


def test_an_interface_that_is_not_here_is_refused(runtime: Path) -> None:
    done = wait(*ONE, "--", "true", env={"GLOO_SOCKET_IFNAME": "eth99"})
    assert done.returncode == 2
    assert "GLOO_SOCKET_IFNAME=eth99: this node has no interface eth99" in done.stderr
    assert not runtime.exists()


# ---------------------------------------------------------------- no daemon: 80


def test_a_socket_path_that_is_no_socket(runtime: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("data")
    done = wait(*ONE, env={"MINGLE_SOCKET": str(path)})
    assert (done.returncode, done.stdout) == (80, "(exit 80)\n")
    assert f"{path} on {socket.gethostname()}: this is no socket" in done.stderr
    daemon = wait("--socket", str(path), program=("mingled",))
    assert daemon.returncode == 80
    assert f"{path} is there and is no socket" in daemon.stderr
    assert path.read_text() == "data"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
    assert not runtime.exists()


def test_no_daemon_where_one_is_named(runtime: Path, tmp_path: Path) -> None:
    done = wait(*ONE, env={"MINGLE_SOCKET": str(tmp_path / "none")})
    assert done.returncode == 80
    assert "there is no such socket; start `mingled --socket" in done.stderr
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    done = wait(*ONE, env={"MINGLE_SOCKET": str(stale)})
    assert done.returncode == 80
    assert "no daemon listens there" in done.stderr


# ---------------------------------------------------------------- CMD


def test_the_exit_code_is_passed_on(runtime: Path) -> None:
    for flags in ([], ["--exec"]):
        assert wait(*ONE, *flags, "--", "sh", "-c", "exit 3").returncode == 3
    assert wait(*ONE, "--", "sh", "-c", "kill -TERM $$").returncode == 143
    assert wait(*ONE, "--", "sh", "-c", "kill -KILL $$").returncode == 137
    wait_for_the_end(runtime)


def test_streams_and_arguments_are_cmds(runtime: Path) -> None:
    done = subprocess.run(
        [
            str(BIN / "mingle"),
            "wait",
            *ONE,
            "--",
            "sh",
            "-c",
            'cat; echo "$@" >&2',
            "-",
            "--",
            "-x",
        ],
        input="through\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "through\n"
    assert done.stderr.endswith("\n-- -x\n")
    assert f"mingle-wait: job {JOB}: rank 0 is " in done.stderr


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1"])
def test_signals_are_forwarded(runtime: Path, name: str) -> None:
    trap = f"trap 'exit 5' {name}; echo ready; while :; do read line; done"
    process = started("--", "sh", "-c", trap)
    process.send_signal(signal.Signals[f"SIG{name}"])
    assert process.wait(60) == 5
    process.communicate()


def test_exec_replaces_the_process(runtime: Path) -> None:
    process = started("--exec", "--", "sh", "-c", "echo ready; read line; echo $$; exit 4")
    assert process.communicate("go\n", timeout=60)[0] == f"{process.pid}\n"
    assert process.returncode == 4
    wait_for_the_end(runtime)


def test_values_that_were_there_are_replaced_and_named(runtime: Path) -> None:
    given = {"MASTER_ADDR": "10.9.9.9", "GLOO_SOCKET_IFNAME": "lo"}
    done = wait(*ONE, "--", "sh", "-c", "echo $MASTER_ADDR $RANK $GLOO_SOCKET_IFNAME", env=given)
    assert done.stdout == "127.0.0.1 0 lo\n"
    assert "MASTER_ADDR=10.9.9.9 in the environment is replaced by 127.0.0.1" in done.stderr


def test_rank_and_size_from_the_environment(runtime: Path) -> None:
    show = ["--", "sh", "-c", "echo $RANK/$WORLD_SIZE"]
    done = wait("--job", JOB, *show, env={"RANK": "0", "WORLD_SIZE": "1"})
    assert done.stdout == "0/1\n"
    bad = wait("--job", JOB, *show, env={"RANK": "first", "WORLD_SIZE": "1"})
    assert bad.returncode == 2
    assert "RANK='first' in the environment is no number" in bad.stderr


def test_what_one_job_exported_is_no_wish_for_the_next(runtime: Path) -> None:
    script = f"""
    eval "$({BIN}/mingle-wait --job {JOB}1 --world-size 1)"
    echo "$? $MINGLE_JOB $RANK"
    {BIN}/mingle-wait --job {JOB}2
    echo "$?"
    eval "$({BIN}/mingle-wait --job {JOB}2 --rank 0)"
    echo "$? $MINGLE_JOB $RANK ${{WORLD_SIZE-none}}"
    """
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"0 {JOB}1 0", "(exit 2)", "2", f"0 {JOB}2 0 none"]
    assert "neither a size nor a rank" in done.stderr
    wait_for_the_end(runtime)


def test_a_token_is_good_once_and_for_ones_own(runtime: Path) -> None:
    done = wait(*ONE, "--format", "json")
    token = msgspec.json.decode(done.stdout)["adopt"]
    assert wait("--adopt", token, "not-a-pid").returncode == 2
    gone = subprocess.Popen(["true"])
    gone.wait()
    nobody = wait("--adopt", token, str(gone.pid))
    assert nobody.returncode == 80
    assert f"no process {gone.pid}" in nobody.stderr
    assert wait("--adopt", token, str(os.getpid())).returncode == 0
    again = wait("--adopt", token, str(os.getpid()))
    assert again.returncode == 80
    assert "waits for that token" in again.stderr


# ---------------------------------------------------------------- status and leave


def test_status_without_and_with_a_daemon(runtime: Path) -> None:
    none = wait(program=("mingle", "status"))
    assert (none.returncode, none.stdout) == (0, "")
    assert "no daemon runs here" in none.stderr
    assert wait("--json", program=("mingle", "status")).stdout == "[]\n"
    process = started("--", "sh", "-c", "echo ready; read line; exit 0")
    shown = wait(program=("mingle", "status"))
    for word in (socket.gethostname(), "private daemon", str(runtime), JOB, "running", "lo 127"):
        assert word in shown.stdout
    process.communicate("go\n", timeout=60)
    assert process.returncode == 0
    nothing = wait(JOB, program=("mingle", "leave"))
    assert nothing.returncode == 1
    assert f"mingle: job {JOB}: nothing of yours takes part" in nothing.stderr
