"""What the scheduler that started this process says of the job, the size and the rank. Pure: the
environment in, facts out, each with the variable that it comes from.

Sources: Slurm's `src/common/env.c` (`env_array_for_step`, `setup_env`), the environment that
mpirun 4.1 gives its processes, and Kubernetes' indexed jobs (`JOB_COMPLETION_INDEX`; a pod's host
name is the job's name, a dash and the index).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from mingled.core.words import SIZE_MAX, JobId
from mingled.errors import BadInput

SLURM_STEPS_MAX = 0xFFFFFFF0
"""Slurm's `SLURM_MAX_NORMAL_STEP_ID`: ids from there on are no steps that srun started (the batch
script, an interactive shell)."""

_ID_MAX = 2**32 - 1
"""Slurm's ids are 32 bits."""


class Fact(NamedTuple):
    """A number, and the variable that says it."""

    value: int
    name: str


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What one scheduler says. None: it does not say so."""

    scheduler: str  #: as people call it
    outer: tuple[str, ...] = ()  #: the others around it, which do not count
    job: str | None = None
    job_from: tuple[str, ...] = ()  #: where the job's name comes from
    nodes: Fact | None = None  #: how many launchers there are where each node has one
    node_rank: Fact | None = None
    tasks: Fact | None = None  #: how many processes it has started
    task_rank: Fact | None = None
    local_rank: Fact | None = None  #: of this process among those of its node
    for_nodes: bool = False  #: each process stands for its node, all over the job
    why_no_job: str = ""  #: a clause, where `job` is None
    why_no_size: str = ""  #: where `nodes` or `tasks` is None: why, and what to do there


def find(env: Mapping[str, str], host: str) -> Found | None:
    """The innermost scheduler's word; None where there is none. `host`: this machine's own name.

    mpirun runs inside a job of Slurm's, in containers that another scheduler started, and all of
    that in Kubernetes; never the other way round, as far as anybody is known to do it.

    Raises:
        BadInput: a variable holds what cannot be; names it.
    """
    present = [name for name, (is_there, _) in _SCHEDULERS.items() if is_there(env)]
    if not present:
        return None
    found = _SCHEDULERS[present[0]][1](env, host)
    return msgspec.structs.replace(found, outer=tuple(present[1:]))


# ---------------------------------------------------------------- one each


def _open_mpi(env: Mapping[str, str], _host: str) -> Found:
    who = "Open MPI"
    tasks = _fact(env, who, "OMPI_COMM_WORLD_SIZE", low=1)
    rank = _fact(env, who, "OMPI_COMM_WORLD_RANK")
    here = _fact(env, who, "OMPI_COMM_WORLD_LOCAL_SIZE", low=1)
    # The same for all processes of one mpirun. Since Open MPI 5 only the first of them is set.
    job_from = _first(env, "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")
    _check_rank(who, rank, tasks)
    # OMPI_COMM_WORLD_NODE_RANK is no rank of a node, but one among the processes on this node.
    alone = here is not None and here.value == 1
    return Found(
        scheduler=who,
        job=_job(who, f"openmpi-{env[job_from]}", (job_from,)) if job_from else None,
        job_from=(job_from,) if job_from else (),
        nodes=tasks if alone else None,
        node_rank=rank if alone else None,
        tasks=tasks,
        task_rank=rank,
        local_rank=_fact(env, who, "OMPI_COMM_WORLD_LOCAL_RANK"),
        why_no_job="its PMIX_NAMESPACE is not set",
        why_no_size="it has started several processes on this node, and a launcher is one per "
        "node: mpirun --map-by ppr:1:node",
    )


def _slurm(env: Mapping[str, str], _host: str) -> Found:
    who = "Slurm"
    job = _fact(env, who, "SLURM_JOB_ID", "SLURM_JOBID", high=_ID_MAX)
    step = _fact(env, who, "SLURM_STEP_ID", "SLURM_STEPID", high=_ID_MAX)
    restarts = _fact(env, who, "SLURM_RESTART_COUNT", high=_ID_MAX)
    # A step's own numbers first: srun --preserve-env leaves the others as the whole job's.
    nodes = _fact(env, who, "SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES", low=1)
    tasks = _fact(env, who, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS", low=1)
    assert job is not None  # its presence is how Slurm is told
    name, job_from = f"slurm-{job.value}", [job.name]
    in_step = step is not None and step.value < SLURM_STEPS_MAX
    if step is not None and in_step:
        name += f".{step.value}"
        job_from.append(step.name)
    if restarts is not None and restarts.value > 0:
        # Requeued: steps count from 0 again, and nothing of the earlier life must be met.
        name += f"-restart-{restarts.value}"
        job_from.append(restarts.name)
    found = Found(scheduler=who, job=JobId(name), job_from=tuple(job_from))
    if not in_step:
        return _slurm_outside(found, nodes, tasks)
    node_rank = _fact(env, who, "SLURM_NODEID")
    task_rank = _fact(env, who, "SLURM_PROCID")
    _check_rank(who, node_rank, nodes)
    _check_rank(who, task_rank, tasks)
    return msgspec.structs.replace(
        found,
        nodes=nodes,
        node_rank=node_rank,
        tasks=tasks,
        task_rank=task_rank,
        local_rank=_fact(env, who, "SLURM_LOCALID"),
        for_nodes=nodes is not None and tasks is not None and nodes.value == tasks.value,
        why_no_size="its step says nothing of nodes and tasks",
    )


def _slurm_outside(found: Found, nodes: Fact | None, tasks: Fact | None) -> Found:
    """A batch script or a shell of salloc's, which runs once, on one node of the job."""
    one = nodes is not None and nodes.value == 1
    single = one and (tasks is None or tasks.value == 1)
    return msgspec.structs.replace(
        found,
        nodes=nodes if one else None,
        tasks=nodes if single else None,
        for_nodes=True,
        why_no_size="this was not started by srun, so it runs once, on one node of the job: put "
        "srun in front",
    )


def _sing(env: Mapping[str, str], _host: str) -> Found:
    who = "SING_*"
    size, rank = _fact(env, who, "SING_WORLD_SIZE", low=1), _fact(env, who, "SING_RANK")
    _check_rank(who, rank, size)
    job_from = ("SING_JOB_NAME",) if env.get("SING_JOB_NAME") else ()
    return Found(
        scheduler=who,
        job=_job(who, env["SING_JOB_NAME"], job_from) if job_from else None,
        job_from=job_from,
        nodes=size,
        node_rank=rank,
        tasks=size,
        task_rank=rank,
        why_no_job="SING_JOB_NAME is not set",
        why_no_size="SING_WORLD_SIZE is not set",
    )


def _kubernetes(env: Mapping[str, str], host: str) -> Found:
    who, name = "Kubernetes", "JOB_COMPLETION_INDEX"
    index = _fact(env, who, name)
    assert index is not None  # its presence is how an indexed job is told
    job, job_from = env.get("JOB_NAME") or None, ("JOB_NAME",)
    stem, dash, number = host.partition(".")[0].rpartition("-")
    if job is None and stem and dash and number == str(index.value):
        job, job_from = stem, (f"the host name {host}",)
    return Found(
        scheduler=who,
        job=None if job is None else _job(who, job, job_from),
        job_from=() if job is None else job_from,
        node_rank=index,
        task_rank=index,
        why_no_job=f"JOB_NAME is not set, and the host name {host} does not end in "
        f"-{index.value}, as an indexed job's does",
        why_no_size="the number of pods (spec.completions) is not in their environment",
    )


_IsThere = Callable[[Mapping[str, str]], bool]
_Reader = Callable[[Mapping[str, str], str], Found]


def _there(*names: str) -> _IsThere:
    return lambda env: _first(env, *names) is not None


_SCHEDULERS: dict[str, tuple[_IsThere, _Reader]] = {
    "Open MPI": (_there("OMPI_COMM_WORLD_SIZE"), _open_mpi),
    "Slurm": (_there("SLURM_JOB_ID", "SLURM_JOBID"), _slurm),
    "SING_*": (_there("SING_WORLD_SIZE", "SING_RANK", "SING_JOB_NAME"), _sing),
    "Kubernetes": (_there("JOB_COMPLETION_INDEX"), _kubernetes),
}
"""By which variables each is told, and what reads it; the innermost first."""


# ---------------------------------------------------------------- values


def _first(env: Mapping[str, str], *names: str) -> str | None:
    """The first variable that is set; an empty one counts as not."""
    return next((name for name in names if env.get(name)), None)


def _fact(
    env: Mapping[str, str], who: str, *names: str, low: int = 0, high: int = SIZE_MAX
) -> Fact | None:
    if (name := _first(env, *names)) is None:
        return None
    text = env[name]
    number = int(text) if re.fullmatch(r"[0-9]{1,10}", text) else -1
    if not low <= number <= high:
        shown = text if len(text) <= 32 else text[:32] + "..."
        raise BadInput(
            f"{name}={shown!r} in the environment, from {who}, is no number between {low} and "
            f"{high}; unset it or correct it"
        )
    return Fact(number, name)


def _check_rank(who: str, rank: Fact | None, size: Fact | None) -> None:
    if rank is not None and size is not None and rank.value >= size.value:
        raise BadInput(
            f"{rank.name}={rank.value} in the environment, from {who}, is outside "
            f"{size.name}={size.value}; unset or correct them"
        )


def _job(who: str, text: str, job_from: tuple[str, ...]) -> str:
    try:
        return JobId(text)
    except BadInput as error:
        raise BadInput(f"{', '.join(job_from)}, from {who}: {error}") from None
