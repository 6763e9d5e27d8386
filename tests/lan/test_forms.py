"""The ways to take part, on real LANs: behind `eval`, as a parent, instead of CMD, from Python."""

from __future__ import annotations

import shutil
import signal

import msgspec
import pytest

from mingled.lab import Node

from .conftest import MakeLan
from .helpers import (
    BIN,
    STAY,
    WAIT,
    Running,
    daemons,
    fates,
    job_on,
    kill_daemon,
    nothing_left,
    python,
    start,
    status,
    until_fates,
    variables,
    wait,
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


def evaluating(node: Node, shell: list[str], flags: str, then: str) -> Running:
    """A shell that evaluates what mingle-wait prints, then runs `then`."""
    script = f'eval "$({WAIT} --job bert {flags})"\necho "eval $?"; {then}'
    return start(node, *shell, "-c", script)


# ---------------------------------------------------------------- eval


@ANY_SHELL
def test_the_lease_is_the_evaluating_shells(lan: MakeLan, shell: list[str]) -> None:
    first, second = lan(nodes=2).nodes
    other = wait(second, "bert", "--world-size", "2", "--rank", "0", cmd=STAY)
    session = evaluating(first, shell, "--world-size 2", 'echo "pid $$"; env -0; cat; exit 0')
    session.until("MINGLE_EXPORTED", kind="out")
    env = variables(session.out)
    assert "eval 0\n" in session.out
    assert (env["RANK"], env["WORLD_SIZE"], env["MASTER_ADDR"]) == ("1", "2", second.address)
    (seat,) = job_on(first, "bert")["seats"]
    assert f"pid {seat['pid']}\n" in session.out
    assert (seat["state"], seat["rank"]) == ("released", 1)
    assert fates(second, "bert") == ["running", "running"]
    assert session.finish().code == 0
    until_fates(second, "bert", ["running", "left"])
    assert "lost" not in other.finish().err


@ANY_SHELL
def test_a_killed_shell_is_lost(lan: MakeLan, shell: list[str]) -> None:
    first, second = lan(nodes=2).nodes
    other = wait(second, "bert", "--rank", "0", "--world-size", "2", cmd=STAY)
    session = evaluating(first, shell, "--world-size 2", "cat; exit 0")
    session.until("eval 0", kind="out")
    session.process.kill()
    other.until(f"gpu1 ({first.address}, rank 1) lost just now")
    assert other.finish().code == 0


@ANY_SHELL
def test_a_failed_wait_makes_eval_fail_and_sets_nothing(lan: MakeLan, shell: list[str]) -> None:
    one = lan(nodes=1)
    node = one.node(1)
    session = evaluating(node, shell, "--world-size 2 --timeout 0.2s", "env -0")
    done = session.well()
    assert done.out.startswith("eval 82\n")
    assert not [name for name in variables(done.out) if name.startswith(("MINGLE", "MASTER"))]
    assert "job bert: no rendezvous on gpu1" in done.err
    usage = evaluating(node, shell, "--world-size 2 --rank 2", "true").well()
    assert usage.out == "eval 2\n"
    nothing_left(one)


def test_mingle_leave_ends_the_lease_and_the_shell_goes_on(lan: MakeLan) -> None:
    first, second = lan(nodes=2).nodes
    other = wait(second, "bert", "--rank", "0", "--world-size", "2", cmd=STAY)
    session = evaluating(first, ["sh"], "--world-size 2", f"cat; {BIN}/mingle leave bert; cat")
    session.until("eval 0", kind="out")
    left = first.run([str(BIN / "mingle"), "leave", "bert"], check=True)
    assert left.stderr == "mingle leave: job bert: 1 left\n"
    until_fates(second, "bert", ["running", "left"])
    again = first.run([str(BIN / "mingle"), "leave", "bert"])
    assert again.returncode == 1
    assert "nothing of yours takes part" in again.stderr
    session.process.kill()
    assert "lost" not in other.finish().err


def test_twenty_at_once_share_one_daemon(lan: MakeLan) -> None:
    one = lan(nodes=1)
    node = one.node(1)
    inner = f'eval "$({WAIT} --job bert --world-size 21)"; echo "rank $RANK $MASTER_ADDR $?"'
    script = f"i=0; while [ $i -lt 20 ]; do i=$((i + 1)); sh -c '{inner}' & done; wait"
    twenty = start(node, "sh", "-c", script)
    twenty.until("20/21 here", times=1)
    assert len(daemons(node)) == 1
    last = wait(node, "bert", "--world-size", "21").well()
    done = twenty.well()
    ranks = [int(line.split()[1]) for line in done.out.splitlines()]
    assert sorted([*ranks, int(last.env["RANK"])]) == list(range(21))
    assert {line.split(maxsplit=2)[2] for line in done.out.splitlines()} == {"127.0.0.1 0"}
    nothing_left(one)


def test_json_is_one_document_on_stdout(lan: MakeLan) -> None:
    first, second = lan(nodes=2).nodes
    runs = [
        wait(n, "bert", "--nnodes", "2", "--nproc-per-node", "3", "--format", "json", cmd=())
        for n in (first, second)
    ]
    configs = [msgspec.json.decode(running.well().out)["config"] for running in runs]
    assert sorted(config["rank"] for config in configs) == [0, 1]
    assert configs[0]["members"] == configs[1]["members"]
    assert {config["world_size"] for config in configs} == {6}
    assert [m["global_rank"] for m in configs[0]["members"]] == [0, 3]
    for node in (first, second):
        node.run([str(BIN / "mingle"), "leave", "bert"], check=True)


# ---------------------------------------------------------------- CMD


def test_exec_becomes_cmd_and_is_watched(lan: MakeLan) -> None:
    first, second = lan(nodes=2).nodes
    other = wait(second, "bert", "--rank", "0", "--world-size", "2", cmd=STAY)
    replaced = wait(
        first, "bert", "--world-size", "2", "--exec", cmd=["sh", "-c", "echo $$; env -0; exec cat"]
    )
    replaced.until("MINGLE_EXPORTED", kind="out")
    (seat,) = job_on(first, "bert")["seats"]
    assert replaced.out.startswith(f"{seat['pid']}\n")
    replaced.process.send_signal(signal.SIGKILL)
    assert replaced.end().code == 128 + signal.SIGKILL
    other.until(f"gpu1 ({first.address}, rank 1) lost just now")
    assert other.finish().code == 0


def test_the_others_hear_who_is_lost_and_not_who_left(lan: MakeLan) -> None:
    some = lan(nodes=4)
    commands = {1: STAY, 2: ("sh", "-c", "cat; exit 0"), 3: ("sh", "-c", "cat; exit 3"), 4: STAY}
    runs = {
        n: wait(some.node(n), "bert", "--nnodes", "4", "--node-rank", str(n - 1), cmd=cmd)
        for n, cmd in commands.items()
    }
    for running in runs.values():
        running.until("this is node rank")
    assert runs[2].finish().code == 0
    until_fates(some.node(1), "bert", ["running", "left", "running", "running"])
    assert runs[3].finish().code == 3
    for n in (1, 4):
        who = f"gpu3 ({some.node(3).address}, node rank 2)"
        lost = f"{who} lost just now in round 1: CMD ended with exit 3"
        assert f"gpu2 ({some.node(2).address}, node rank" not in runs[n].until(lost)
    until_fates(some.node(4), "bert", ["running", "left", "lost", "running"])
    runs[4].process.terminate()  # CMD gets it
    assert runs[4].end().code == 143
    runs[1].until(
        f"gpu4 ({some.node(4).address}, node rank 3) lost just now in round 1: "
        "CMD was killed by SIGTERM"
    )
    assert runs[1].finish().code == 0
    nothing_left(some)


# ---------------------------------------------------------------- Python

NOTEBOOK = """
import sys, warnings, mingled
warnings.simplefilter("always")
for cell in sys.stdin:
    exec(cell)
    sys.stdout.flush()
"""


def run_cell(session: Running, code: str) -> None:
    assert session.process.stdin is not None
    session.process.stdin.write(code + "\n")
    session.process.stdin.flush()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_notebook_cell_that_runs_twice(lan: MakeLan, rank: int) -> None:
    first, second = lan(nodes=2).nodes
    session = python(first, NOTEBOOK)
    cell = f"cfg = mingled.join('bert', world_size=2, rank={rank}); print(cfg, 'end')"
    flags = ["--world-size", "2", "--rank", str(1 - rank)]
    for times in (1, 2):
        run_cell(session, cell)
        done = wait(second, "bert", *flags).well()
        session.until("end", kind="out", times=times)
        config = session.out.splitlines()[-1]
        master = f"master={done.env['MASTER_ADDR']}:{done.env['MASTER_PORT']}"
        assert master in config
        assert f"rank={rank}, world_size=2" in config
        (seat,) = job_on(first, "bert")["seats"]
        assert seat["state"] == "released"
    session.until("this replaces the earlier join")
    run_cell(session, "cfg.leave(); cfg.leave(); print('left')")
    session.until("left", kind="out")
    assert job_seats(first) == []
    assert session.finish().code == 0


def test_a_with_block_ends_the_lease(lan: MakeLan) -> None:
    first, second = lan(nodes=2).nodes
    script = (
        "import mingled, sys\n"
        "with mingled.join('bert', nnodes=2, nproc_per_node=2) as cfg:\n"
        "    print(cfg.rank, cfg.world_size, cfg.node_rank, cfg.interface, cfg.address, flush=True)"
        "\n    sys.stdin.readline()\n    raise KeyError('bug')\n"
    )
    failing = python(first, script)
    other = wait(second, "bert", "--nnodes", "2", "--nproc-per-node", "2", cmd=STAY)
    failing.until(f"4 {job_rank(failing)} eth0 {first.address}\n", kind="out")
    assert failing.finish().code == 1
    other.until("lost just now in round 1: KeyError")
    assert other.finish().code == 0


def job_rank(session: Running) -> int:
    """The node rank that the script printed: its global rank by two processes a node."""
    session.until("eth0", kind="out")
    return int(session.out.split()[0]) // 2


def job_seats(node: Node) -> list[object]:
    return [seat for report in status(node) for job in report["jobs"] for seat in job["seats"]]


def test_a_killed_daemons_files_are_taken_over(lan: MakeLan) -> None:
    both = lan(nodes=2)
    first, second = both.nodes
    waiting = wait(first, "bert", "--nnodes", "2")
    waiting.until("1/2 here")
    kill_daemon(first)
    assert waiting.end().code == 80
    runs = [wait(node, "bert", "--nnodes", "2") for node in (first, second)]
    assert all(running.well() for running in runs)
    nothing_left(both)
