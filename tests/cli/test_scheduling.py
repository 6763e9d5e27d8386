"""What `mingle-wait` takes from a scheduler, and what it says of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mingled.cli.forms import Flags, OnLost, Wish, wish
from mingled.cli.scheduling import completed
from mingled.core.words import Form
from mingled.errors import BadInput
from mingled.frameworks.environment import EXPORTED, exported
from tests.schedulers import BATCH, MPIRUN, MPIRUN_5, POD, SING, STEP, TASKS

from .fake_daemon import FakeDaemon, ready
from .running import BIN, PATIENCE_S, WAIT, Running, until_daemons_end

NOTHING = Flags(None, None, None, None, None, None, "10m")


def wished(
    env: dict[str, str],
    cmd: str = "",
    *,
    host: str = "digits-3",
    on_lost: OnLost = "warn",
    **flags: Any,
) -> tuple[Wish, str]:
    words = cmd.split()
    given, sentence = completed(NOTHING._replace(**flags), words, env, host=host, on_lost=on_lost)
    return wish(given, words, env, adopt=not cmd), sentence


def shape(env: dict[str, str], cmd: str = "", **flags: Any) -> tuple[str, Form, int, int | None]:
    join = wished(env, cmd, **flags)[0].join
    assert join.size_min == join.size_max
    return str(join.job), join.form, join.size_max, join.rank


LAUNCHER, PROCESS, PLAIN = Form.LAUNCHER, Form.PROCESS, Form.PLAIN
SLURM, OMPI = "slurm-1234.0", "openmpi-1900216321"
OMPI_5 = "openmpi-prterun-gpu1-7613@1"


@pytest.mark.parametrize(
    ("env", "cmd", "expected"),
    [
        # One task on each node: a launcher, unless CMD is plainly a process.
        (STEP, "torchrun train.py", (SLURM, LAUNCHER, 4, 2)),
        (STEP, "bash run.sh", (SLURM, LAUNCHER, 4, 2)),
        (STEP, "", (SLURM, LAUNCHER, 4, 2)),
        (STEP, "python train.py", (SLURM, PROCESS, 4, 2)),
        (STEP, "env A=1 python3 -m train.digits", (SLURM, PROCESS, 4, 2)),
        (STEP, "python -m accelerate.commands.launch t.py", (SLURM, LAUNCHER, 4, 2)),
        # Several: processes.
        (TASKS, "python train.py", (SLURM, PROCESS, 8, 5)),
        (TASKS, "bash run.sh", (SLURM, PROCESS, 8, 5)),
        (TASKS, "", (SLURM, PROCESS, 8, 5)),
        (MPIRUN, "./train", (OMPI, PROCESS, 2, 1)),
        (MPIRUN_5, "./train", (OMPI_5, PROCESS, 2, 1)),
        (MPIRUN_5, "torchrun train.py", (OMPI_5, LAUNCHER, 2, 1)),
        (SING, "python train.py", ("bert", PROCESS, 2, 1)),
        (SING, "torchrun train.py", ("bert", LAUNCHER, 2, 1)),
        (STEP | MPIRUN, "./train", (OMPI, PROCESS, 2, 1)),
    ],
)
def test_nothing_is_typed(env: dict[str, str], cmd: str, expected: tuple[Any, ...]) -> None:
    assert shape(env, cmd) == expected


@pytest.mark.parametrize(
    ("env", "cmd", "flags", "expected"),
    [
        # Flags first: each replaces its own default, and a size that is not Slurm's its rank, too.
        (STEP, "", {"job": "bert"}, ("bert", LAUNCHER, 4, 2)),
        (STEP, "", {"node_rank": 0}, (SLURM, LAUNCHER, 4, 0)),
        (STEP, "", {"nnodes": "4"}, (SLURM, LAUNCHER, 4, 2)),
        (STEP, "", {"nnodes": "3"}, (SLURM, LAUNCHER, 3, None)),
        (STEP, "", {"nproc_per_node": "2"}, (SLURM, LAUNCHER, 4, 2)),
        (STEP, "", {"world_size": 4}, (SLURM, PROCESS, 4, 2)),
        (STEP, "", {"world_size": 2}, (SLURM, PROCESS, 2, None)),
        (TASKS, "", {"world_size": 8, "rank": 1}, (SLURM, PROCESS, 8, 1)),
        # A rank alone is the plain form.
        (TASKS, "", {"rank": 1}, (SLURM, PLAIN, 0, 1)),
        (TASKS | {"RANK": "1"}, "", {}, (SLURM, PLAIN, 0, 1)),
        # Then CMD.
        (STEP, "torchrun --nnodes 4 t.py", {}, (SLURM, LAUNCHER, 4, 2)),
        (STEP, "torchrun --nnodes 2 t.py", {}, (SLURM, LAUNCHER, 2, None)),
        (STEP, "torchrun --node-rank 1 t.py", {}, (SLURM, LAUNCHER, 4, 1)),
        (STEP, "env PET_NNODES=2 torchrun t.py", {}, (SLURM, LAUNCHER, 2, None)),
        # Then the environment.
        (STEP | {"PET_NNODES": "2"}, "torchrun t.py", {}, (SLURM, LAUNCHER, 2, None)),
        (STEP | {"NODE_RANK": "0"}, "torchrun t.py", {}, (SLURM, LAUNCHER, 4, 0)),
        (STEP | {"PET_NODE_RANK": "1"}, "torchrun t.py", {}, (SLURM, LAUNCHER, 4, 1)),
        (STEP | {"WORLD_SIZE": "4"}, "", {}, (SLURM, PROCESS, 4, 2)),
        (STEP | {"WORLD_SIZE": "4", "RANK": "0"}, "", {}, (SLURM, PROCESS, 4, 0)),
        # A pod knows its rank, and not how many there are.
        (POD, "", {"world_size": 4}, ("digits", PROCESS, 4, 3)),
        (POD, "torchrun t.py", {"nnodes": "4"}, ("digits", LAUNCHER, 4, 3)),
        (POD, "torchrun --nnodes 4 t.py", {}, ("digits", LAUNCHER, 4, 3)),
        (POD, "", {"world_size": 4, "rank": 0}, ("digits", PROCESS, 4, 0)),
        # A batch script that itself starts the others: no rank, it is 0 in each.
        (BATCH, "", {"nnodes": "4"}, ("slurm-1234", LAUNCHER, 4, None)),
        (BATCH | {"SLURM_NNODES": "1"}, "torchrun t.py", {}, ("slurm-1234", LAUNCHER, 1, None)),
    ],
)
def test_what_is_said_otherwise_counts(
    env: dict[str, str], cmd: str, flags: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert shape(env, cmd, **flags) == expected


def test_where_another_rank_0_may_be_needed_ranks_are_handed_out() -> None:
    found, sentence = wished(STEP, "torchrun t.py", on_lost="restart")
    assert (found.join.size_max, found.join.rank) == (4, None)
    assert sentence == (
        "from Slurm: job (SLURM_JOB_ID, SLURM_STEP_ID), 4 nodes (SLURM_STEP_NUM_NODES); ranks are "
        "handed out, not SLURM_NODEID, since --on-lost restart may need another rank 0"
    )
    found, sentence = wished(STEP, "torchrun t.py", nnodes="3:4")
    assert (found.join.size_min, found.join.size_max, found.join.rank) == (3, 4, None)
    assert sentence == (
        "from Slurm: job (SLURM_JOB_ID, SLURM_STEP_ID); ranks are handed out, not SLURM_NODEID, "
        "since the size is a range"
    )
    assert "since SLURM_STEP_NUM_NODES is 4" in wished(STEP, "torchrun t.py", nnodes="3")[1]


@pytest.mark.parametrize(
    ("env", "flags", "sentence"),
    [
        (
            STEP,
            {},
            "from Slurm: job (SLURM_JOB_ID, SLURM_STEP_ID), 4 nodes (SLURM_STEP_NUM_NODES), "
            "node rank 2 (SLURM_NODEID)",
        ),
        (STEP, {"job": "bert", "nnodes": "4"}, "from Slurm: node rank 2 (SLURM_NODEID)"),
        (STEP, {"job": "bert", "nnodes": "4", "node_rank": 1}, ""),
        (STEP, {"job": "bert", "nnodes": "2:4"}, ""),
        (STEP, {"job": "bert", "rank": 1}, ""),
        (
            STEP | MPIRUN,
            {},
            "from Open MPI (inside Slurm): job (PMIX_NAMESPACE), world size 2 "
            "(OMPI_COMM_WORLD_SIZE), rank 1 (OMPI_COMM_WORLD_RANK)",
        ),
        (
            POD,
            {"nnodes": "4"},
            "from Kubernetes: job (the host name digits-3), node rank 3 (JOB_COMPLETION_INDEX)",
        ),
        ({}, {"job": "bert", "nnodes": "2"}, ""),
    ],
)
def test_each_default_is_named(env: dict[str, str], flags: dict[str, Any], sentence: str) -> None:
    assert wished(env, **flags)[1] == sentence


def test_what_was_typed_needs_no_scheduler_that_makes_sense() -> None:
    broken = dict.fromkeys(STEP | MPIRUN | SING, "?")
    assert shape(broken, job="bert", nnodes="4", node_rank=1) == ("bert", LAUNCHER, 4, 1)


def test_what_we_exported_ourselves_is_no_scheduler() -> None:
    env = SING | {EXPORTED: exported(SING)}
    with pytest.raises(BadInput, match="no job ID; add --job NAME"):
        wished(env)


@pytest.mark.parametrize(
    ("env", "cmd", "flags", "sentence"),
    [
        ({}, "", {}, "no job ID; add --job NAME"),
        (POD, "", {}, "(spec.completions) is not in their environment); or add --nnodes N, or"),
        (POD, "", {"job": "bert"}, "job bert: Kubernetes does not say how many take part"),
        (POD, "torchrun t.py", {}, "or add --nnodes N"),
        (POD, "", {"world_size": 3}, "JOB_COMPLETION_INDEX=3 in the environment, from Kubernetes"),
        (POD, "", {"host": "gpu1", "world_size": 4}, "add --job NAME, the same on every machine"),
        (BATCH, "torchrun t.py", {}, "so it runs once, on one node of the job: put srun in front"),
        (TASKS, "torchrun t.py", {}, "a launcher is one per node, and this is one of several"),
        (TASKS, "torchrun t.py", {"nnodes": "4"}, "(SLURM_LOCALID=1); start one per node"),
        (MPIRUN, "torchrun t.py", {}, "mpirun --map-by ppr:1:node"),
        (STEP | {"SLURM_NODEID": "x"}, "", {"job": "bert"}, "job bert: SLURM_NODEID='x'"),
        (STEP | {"WORLD_SIZE": "four"}, "", {}, "WORLD_SIZE='four' in the environment is no"),
        (STEP, "", {"nnodes": "two"}, "--nnodes two: want a number of nodes"),
        (STEP, "", {"nnodes": "2", "rank": 1}, "delete one kind"),
    ],
)
def test_what_cannot_work(
    env: dict[str, str], cmd: str, flags: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)) as caught:
        wished(env, cmd, **flags)
    assert str(caught.value).isprintable()


# ---------------------------------------------------------------- on stderr


def test_mingle_wait_says_what_it_took(daemon: FakeDaemon) -> None:
    command = (WAIT, "--", "sh", "-c", "echo $PET_NODE_RANK")
    with Running(*command, env=daemon.environ(**STEP)) as waiting:
        _, join = daemon.join(ready(rank=2))
        assert (join.job, join.form, join.rank) == ("slurm-1234.0", LAUNCHER, 2)
        daemon.leave()
        assert waiting.end() == 0
    assert waiting.out == "2\n"
    assert waiting.err.splitlines()[0] == (
        "mingle-wait: job slurm-1234.0: from Slurm: job (SLURM_JOB_ID, SLURM_STEP_ID), 4 nodes "
        "(SLURM_STEP_NUM_NODES), node rank 2 (SLURM_NODEID)"
    )


def test_where_everything_was_typed_nothing_is_said(daemon: FakeDaemon) -> None:
    typed = (WAIT, "--job", "bert", "--nnodes", "3", "--node-rank", "1", "--", "true")
    with Running(*typed, env=daemon.environ(**STEP)) as waiting:
        daemon.join(ready())
        daemon.leave()
        assert waiting.end() == 0
    assert "Slurm" not in waiting.err


def test_a_usage_error_is_one_line(daemon: FakeDaemon) -> None:
    env = daemon.environ(**STEP | {"SLURM_NODEID": "\x1b[2J"})
    command = [str(BIN / "mingle-wait"), "--", "true"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("mingle-wait: SLURM_NODEID='\\x1b[2J' in the environment")
    assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------- with real daemons

SHOW = "echo $MINGLE_JOB $RANK/$WORLD_SIZE of $SLURM_PROCID$OMPI_COMM_WORLD_RANK at $MASTER_PORT"


def test_two_tasks_of_slurm_agree(runtime: Path) -> None:
    """One node has both. They come the wrong way round, and get the ranks that Slurm gave."""
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "3"}
    step = STEP | job | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "2"}
    tasks = [
        step | {"SLURM_NODEID": "0", "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        for rank in ("1", "0")
    ]
    command = (WAIT, "--", "sh", "-c", SHOW)
    with Running(*command, env=os.environ | tasks[0]) as second:
        second.until("1/2 here")
        with Running(*command, env=os.environ | tasks[1]) as first:
            assert (first.end(), second.end()) == (0, 0)
    port = first.out.split()[-1]
    assert first.out == f"slurm-{os.getpid()}.3 0/2 of 0 at {port}\n"
    assert second.out == f"slurm-{os.getpid()}.3 1/2 of 1 at {port}\n"
    until_daemons_end()


def test_mpirun_itself(runtime: Path) -> None:
    """Real Open MPI, on loopback: its ranks, and a job that both find by the same name."""
    if shutil.which("mpirun") is None:
        reason = "no mpirun (Debian: openmpi-bin)"
        if os.environ.get("MINGLED_CI") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    mpirun = ["mpirun", "--oversubscribe", "--allow-run-as-root", "-n", "2"]
    mpirun += ["--mca", "oob_tcp_if_include", "lo"]
    done = subprocess.run(
        [*mpirun, WAIT, "--", "sh", "-c", SHOW],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    lines = sorted(line.split() for line in done.stdout.splitlines())
    assert [line[1:4] for line in lines] == [["0/2", "of", "0"], ["1/2", "of", "1"]]
    assert len({(line[0], line[-1]) for line in lines}) == 1
    assert lines[0][0].startswith("openmpi-")
    assert re.search(
        r"from Open MPI: job \(\w+\), world size 2 \(OMPI_COMM_WORLD_SIZE\), rank 1 "
        r"\(OMPI_COMM_WORLD_RANK\)",
        done.stderr,
    )
    until_daemons_end()
