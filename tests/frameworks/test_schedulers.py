"""What each scheduler's environment says."""

from __future__ import annotations

from typing import Any

import pytest

from mingled.errors import BadInput
from mingled.frameworks.schedulers import Fact, Found, find
from tests.schedulers import BATCH, MPIRUN, MPIRUN_5, POD, SING, STEP, TASKS


def found(env: dict[str, str], host: str = "gpu3") -> Found:
    result = find(env, host)
    assert result is not None
    return result


def said(env: dict[str, str], host: str = "gpu3") -> tuple[Any, ...]:
    """(job, nodes, node rank, tasks, rank) without the variables."""
    it = found(env, host)
    facts = (it.nodes, it.node_rank, it.tasks, it.task_rank)
    return (it.job, *(None if fact is None else fact.value for fact in facts))


def without(env: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in names}


def test_no_scheduler() -> None:
    assert find({"HOME": "/root", "RANK": "1", "HOSTNAME": "digits-3"}, "digits-3") is None
    assert find({"SLURM_CONF": "/etc/slurm.conf", "OMPI_MCA_btl": "tcp"}, "gpu1") is None
    assert find({"SLURM_JOB_ID": "", "JOB_COMPLETION_INDEX": "", "JOB_NAME": "ci"}, "ci-1") is None


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (STEP, ("slurm-1234.0", 4, 2, 4, 2)),
        (TASKS, ("slurm-1234.0", 4, 2, 8, 5)),
        (STEP | {"SLURM_STEP_ID": "7"}, ("slurm-1234.7", 4, 2, 4, 2)),
        # A step on fewer nodes than its job, and srun --preserve-env: the step's own count.
        (
            STEP | {"SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_NUM_TASKS": "3"},
            ("slurm-1234.0", 3, 2, 3, 2),
        ),
        # What older ones do not set.
        (without(STEP, "SLURM_STEP_NUM_NODES", "SLURM_NNODES"), ("slurm-1234.0", 4, 2, 4, 2)),
        (
            without(STEP, "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
            ("slurm-1234.0", 4, 2, 4, 2),
        ),
        # One task of an array: it has a job ID of its own.
        (
            STEP | {"SLURM_ARRAY_JOB_ID": "1230", "SLURM_ARRAY_TASK_ID": "4"},
            ("slurm-1234.0", 4, 2, 4, 2),
        ),
        (STEP | {"SLURM_RESTART_COUNT": "0"}, ("slurm-1234.0", 4, 2, 4, 2)),
        (STEP | {"SLURM_RESTART_COUNT": "2"}, ("slurm-1234.0-restart-2", 4, 2, 4, 2)),
        (BATCH, ("slurm-1234", None, None, None, None)),
        (BATCH | {"SLURM_STEP_ID": "4294967290"}, ("slurm-1234", None, None, None, None)),
        (BATCH | {"SLURM_NNODES": "1"}, ("slurm-1234", 1, None, 1, None)),
        (BATCH | {"SLURM_NNODES": "1", "SLURM_NTASKS": "4"}, ("slurm-1234", 1, None, None, None)),
        (MPIRUN, ("openmpi-1900216321", None, None, 2, 1)),
        (without(MPIRUN, "PMIX_NAMESPACE"), ("openmpi-1900216321", None, None, 2, 1)),
        (MPIRUN_5, ("openmpi-prterun-gpu1-7613@1", 2, 1, 2, 1)),
        (without(MPIRUN_5, "PMIX_NAMESPACE"), (None, 2, 1, 2, 1)),
        (SING, ("bert", 2, 1, 2, 1)),
        (without(SING, "SING_WORLD_SIZE"), ("bert", None, 1, None, 1)),
        (without(SING, "SING_JOB_NAME"), (None, 2, 1, 2, 1)),
        (POD | {"JOB_NAME": "night"}, ("night", None, 3, None, 3)),
    ],
)
def test_what_is_said(env: dict[str, str], expected: tuple[Any, ...]) -> None:
    assert said(env) == expected


@pytest.mark.parametrize(
    ("host", "job"),
    [
        ("digits-3", "digits"),
        ("digits-3.digits.default.svc.cluster.local", "digits"),
        ("my-digits-3", "my-digits"),
        ("digits-4", None),
        ("digits-13", None),
        ("digits3", None),
        ("-3", None),
        ("gpu1", None),
    ],
)
def test_a_pods_host_name_names_its_job(host: str, job: str | None) -> None:
    it = found(POD, host)
    assert it.job == job
    assert it.job_from == ((f"the host name {host}",) if job else ())
    assert host in it.why_no_job


def test_each_says_where_it_comes_from() -> None:
    it = found(STEP | {"SLURM_RESTART_COUNT": "1"})
    assert it.scheduler == "Slurm"
    assert it.job_from == ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    assert it.nodes == Fact(4, "SLURM_STEP_NUM_NODES")
    assert it.node_rank == Fact(2, "SLURM_NODEID")
    assert it.tasks == Fact(4, "SLURM_STEP_NUM_TASKS")
    assert it.task_rank == Fact(2, "SLURM_PROCID")
    assert found(without(STEP, "SLURM_STEP_NUM_NODES")).nodes == Fact(4, "SLURM_NNODES")
    assert found(MPIRUN).job_from == ("PMIX_NAMESPACE",)
    assert found(MPIRUN).local_rank == Fact(1, "OMPI_COMM_WORLD_LOCAL_RANK")
    assert found(SING).job_from == ("SING_JOB_NAME",)


def test_who_stands_for_a_node() -> None:
    """The same all over the job: it decides the form."""
    assert found(STEP).for_nodes
    assert not found(TASKS).for_nodes
    # mpirun: three over two nodes are alone on one of them.
    assert not found(MPIRUN).for_nodes
    assert not found(MPIRUN_5).for_nodes


def test_the_innermost_counts() -> None:
    every = POD | SING | STEP | MPIRUN
    it = found(every)
    assert (it.scheduler, it.outer) == ("Open MPI", ("Slurm", "SING_*", "Kubernetes"))
    assert it.job == "openmpi-1900216321"
    it = found(POD | STEP)
    assert (it.scheduler, it.outer) == ("Slurm", ("Kubernetes",))
    it = found(POD | SING)
    assert (it.scheduler, it.outer) == ("SING_*", ("Kubernetes",))


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        (STEP | {"SLURM_JOB_ID": "12a"}, "SLURM_JOB_ID='12a' in the environment, from Slurm, is"),
        (STEP | {"SLURM_NODEID": "4"}, "SLURM_NODEID=4 .* outside SLURM_STEP_NUM_NODES=4"),
        (STEP | {"SLURM_PROCID": "4"}, "SLURM_PROCID=4 .* outside SLURM_STEP_NUM_TASKS=4"),
        (STEP | {"SLURM_NODEID": "-1"}, "SLURM_NODEID='-1' .* is no number between 0 and"),
        (STEP | {"SLURM_STEP_NUM_NODES": "0"}, "SLURM_STEP_NUM_NODES='0' .* between 1 and"),
        (STEP | {"SLURM_STEP_NUM_NODES": "9" * 5000}, r"SLURM_STEP_NUM_NODES='9{32}\.\.\.' "),
        (STEP | {"SLURM_STEP_ID": "\x1b[2J"}, r"SLURM_STEP_ID='\\x1b\[2J' in the"),
        (STEP | {"SLURM_NODEID": "٣"}, "SLURM_NODEID='٣' .* is no number"),
        (MPIRUN | {"OMPI_COMM_WORLD_RANK": "2"}, "OMPI_COMM_WORLD_RANK=2 .* from Open MPI"),
        (MPIRUN | {"PMIX_NAMESPACE": "a\nb"}, r"PMIX_NAMESPACE, from Open MPI: .*U\+000A"),
        (SING | {"SING_RANK": "one"}, "SING_RANK='one'"),
        (SING | {"SING_RANK": "2"}, "SING_RANK=2 .* outside SING_WORLD_SIZE=2"),
        (SING | {"SING_JOB_NAME": "a\x1bb"}, r"SING_JOB_NAME, from SING_\*: .*U\+001B"),
        (SING | {"SING_JOB_NAME": "x" * 256}, "SING_JOB_NAME, .* 256 bytes"),
        (POD | {"JOB_COMPLETION_INDEX": "first"}, "JOB_COMPLETION_INDEX='first'"),
        (POD | {"JOB_NAME": "a\tb"}, r"JOB_NAME, from Kubernetes: .*U\+0009"),
    ],
)
def test_what_cannot_be_is_refused(env: dict[str, str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        find(env, "digits-3")
    assert str(caught.value).isprintable()
