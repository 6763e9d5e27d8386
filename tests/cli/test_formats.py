"""`mingle-wait --format` and `--for`: what is printed, what CMD gets, and whose the lease is."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest

from mingled.core.words import Form
from mingled.frameworks.dialects.registry import SPOKEN
from tests.frameworks.samples import members

from .fake_daemon import FakeDaemon, ready
from .running import JOB, WAIT, Running, seats, until_ended, until_nobody
from .test_wait import ANY_SHELL, nothing_left

ONE = ("--job", JOB, "--world-size", "1")


def wait(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [WAIT, *words], capture_output=True, text=True, check=False, env=os.environ | env
    )


def environ(text: str, separator: str = "\n") -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in text.split(separator) if entry)


# ---------------------------------------------------------------- for CMD


def test_cmd_gets_the_variables_of_every_name(runtime: Path) -> None:
    names = ",".join(name for name in SPOKEN if name not in ("torchrun", "sing"))
    done = wait(*ONE, "--for", names, "--", "env", "-0", JAX_PROCESS_ID="7")
    assert done.returncode == 0, done.stderr
    got = environ(done.stdout, "\0")
    assert got["JAX_COORDINATOR_ADDRESS"] == f"127.0.0.1:{got['MASTER_PORT']}"
    assert got["JAX_PROCESS_ID"] == got["RANK"] == "0"
    worker = f"127.0.0.1:{got['MASTER_PORT']}"
    assert msgspec.json.decode(got["TF_CONFIG"])["cluster"] == {"worker": [worker]}
    assert "JAX_PROCESS_ID=7 in the environment is replaced by 0" in done.stderr
    nothing_left(runtime)


def test_a_hostfile_is_there_while_cmd_runs(runtime: Path) -> None:
    show = 'cat "$MINGLE_HOSTFILE"; stat -c %a "$MINGLE_HOSTFILE"'
    done = wait(*ONE, "--for", "openmpi", "--", "sh", "-c", show)
    assert done.stdout == "127.0.0.1 slots=1\n600\n"
    nothing_left(runtime)


@pytest.mark.parametrize("tail", [["--for", "lightning", "--", "true"], ["--format", "lightning"]])
def test_a_round_that_does_not_suit_is_left(tmp_path: Path, tail: list[str]) -> None:
    roster = members([0, 0, 1])
    words = [WAIT, "--job", "bert", "--world-size", "3", *tail]
    with FakeDaemon(tmp_path / "s") as daemon, Running(*words, env=daemon.environ()) as waiting:
        daemon.join(ready(form=Form.PROCESS, members=tuple(roster)))
        leave = daemon.leave()
        assert waiting.end() == 2
    assert leave.lost
    assert "job bert: lightning wants the same number of processes on every node" in waiting.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--rank", "1", "--for", "tensorflow"), "tensorflow lists every worker"),
        (("--world-size", "2", "--for", "torchrun"), "torchrun is for one launcher per node"),
        (("--world-size", "2", "--for", "horovod"), f"--for takes {', '.join(SPOKEN)}"),
        (("--world-size", "2", "--for", "json"), "json' is a text to print (--format)"),
        (("--world-size", "2", "--sing-suffix", "a"), "--sing-suffix is for --for sing"),
        (("--world-size", "2", "--format", "jax"), "write --for jax instead"),
        (("--world-size", "2", "--format", "docker"), "delete it, or CMD"),
        (("--nnodes", "2", "--nproc-per-node", "2", "--for", "jax"), "--nproc-per-node 2 is for"),
    ],
)
def test_refused_before_anybody_waits(runtime: Path, words: list[str], sentence: str) -> None:
    done = wait("--job", "bert", *words, "--", "true")
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert not runtime.exists()


def test_a_format_that_is_none_names_them_and_eval_fails(runtime: Path) -> None:
    done = wait(*ONE, "--format", "toml")
    assert (done.returncode, done.stdout) == (2, "(exit 2)\n")
    assert "'dotenv'" in done.stderr
    spoilt = wait("--job", "it's", "--world-size", "1", "--format", "dotenv")
    assert (spoilt.returncode, spoilt.stdout) == (2, "")
    assert "dotenv cannot carry" in spoilt.stderr


# ---------------------------------------------------------------- printed


@ANY_SHELL
def test_the_lease_is_the_calling_shells(runtime: Path, shell: list[str], tmp_path: Path) -> None:
    """Also where the shell forks a copy of itself that runs `mingle-wait` and ends."""
    script = f"""
    {WAIT} {" ".join(ONE)} --format docker > {tmp_path}/env; echo "printed $?"
    read line
    path=$(true; {WAIT} {" ".join(ONE)} --format deepspeed; true); echo "path $path."
    read line
    eval "$({WAIT} {" ".join(ONE)} --format jax)"; echo "eval $? $JAX_NUM_PROCESSES"
    read line
    """
    with Running(*shell, "-c", script) as session:
        for said in ("printed 0\n", ".hosts.\n", "eval 0 1\n"):
            session.until(said)
            assert [(s.pid, s.state) for s in seats()] == [(session.process.pid, "released")]
            session.say("go on")
        session.end()
    until_nobody()
    got = environ((tmp_path / "env").read_text())
    assert (got["MASTER_ADDR"], got["RANK"], got["MINGLE_JOB"]) == ("127.0.0.1", "0", JOB)


def test_a_nested_shell_is_no_copy(runtime: Path) -> None:
    inner = f'sh -c "{WAIT} {" ".join(ONE)} --format dotenv >&2; echo inner \\$\\$; read line"'
    with Running("sh", "-c", f"{inner}; read line") as outer:
        outer.until("inner ")
        (seat,) = seats()
        assert f"inner {seat.pid}\n" in outer.out
        outer.say("go on")
        until_ended([seat.pid])
        until_nobody()


def test_a_path_is_printed_and_the_file_is_private(runtime: Path) -> None:
    done = wait(*ONE, "--format", "openmpi")
    path = Path(done.stdout.removesuffix("\n"))
    assert path.read_text() == "127.0.0.1 slots=1\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()


def test_dotenv_and_json_take_what_for_adds(runtime: Path) -> None:
    flags = (*ONE, "--for", "tensorflow")
    spoken = wait(*flags, "--format", "dotenv").stdout
    assert '\nTF_CONFIG=\'{"cluster"' in spoken
    said = msgspec.json.decode(wait(*flags, "--format", "json").stdout)
    assert msgspec.json.decode(said["environment"]["TF_CONFIG"])["task"]["index"] == 0
    assert said["config"]["job"] == JOB
