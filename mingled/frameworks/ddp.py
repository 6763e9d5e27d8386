"""The Python call: `mingled.join(...)` and what it returns."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import msgspec

from mingled import client
from mingled.core import local
from mingled.core.config import Config, Member
from mingled.core.peers import listed
from mingled.core.software import wanted
from mingled.core.words import Form, JobId
from mingled.errors import BadInput
from mingled.frameworks.environment import TUNING, check_interfaces, defaults, environment
from mingled.frameworks.scheduled import Arguments, arguments
from mingled.frameworks.secrets import secrets
from mingled.frameworks.software import software
from mingled.net.gpus import processes
from mingled.wording import clean, endpoint, released_lines, split_warning, waiting_line

TIMEOUT_S = 600.0
"""torch's own join timeout."""


class DdpConfig:
    """One participant of a sealed round: everything that a framework wants to know.

    The lease, by which the others know that this participant lives, lasts until `leave()`, the end
    of a `with` block, or the end of the process; not until garbage collection. Should its daemon
    end before that, nobody watches it any more: training goes on, the others may be told that it is
    unwatched, and only `mingle-wait`, which stays beside its CMD, finds another daemon for it.
    """

    def __init__(self, lease: client.Lease) -> None:
        self._lease = lease

    def __repr__(self) -> str:
        c = self.config
        return (
            f"DdpConfig(job={c.job!r}, rank={self.rank}, world_size={self.world_size}, "
            f"master={c.master_addr}:{c.master_port}, interface={c.interface!r})"
        )

    @property
    def config(self) -> Config:
        """The config as the daemon sent it, roster included."""
        return self._lease.config

    @property
    def job(self) -> str:
        """The job ID."""
        return self.config.job

    @property
    def rank(self) -> int:
        """Global rank of this process, 0 to `world_size - 1`; of the first one of this node where
        `nproc_per_node` is more than 1."""
        return self.config.global_rank

    @property
    def world_size(self) -> int:
        """Processes in the job; 0 in the plain form, where the script brings its own."""
        return self.config.world_size

    @property
    def local_rank(self) -> int:
        """Rank of this process among those of its node, 0 to `local_world_size - 1`."""
        return self.config.local_rank

    @property
    def local_world_size(self) -> int:
        """Processes of the job on this node."""
        return self.config.local_world_size

    @property
    def node_rank(self) -> int:
        """Rank of this node, 0 to `nnodes - 1`."""
        return self.config.node_rank

    @property
    def nnodes(self) -> int:
        """Nodes in the job; 0 in the plain form."""
        return self.config.nnodes

    @property
    def nproc_per_node(self) -> int:
        """Processes that this participant stands for."""
        return self.config.nproc_per_node

    @property
    def master_addr(self) -> str:
        """Literal IP address of the node of rank 0, one that this node has connected to."""
        return self.config.master_addr

    @property
    def master_port(self) -> int:
        """A TCP port that was free on rank 0 when the round was sealed."""
        return self.config.master_port

    @property
    def init_method(self) -> str:
        """For `torch.distributed.init_process_group`: `tcp://ADDRESS:PORT`."""
        return f"tcp://{endpoint(self.master_addr, self.master_port)}"

    @property
    def interface(self) -> str | None:
        """This node's interface on the proven path; None where it is not known (plain rank 0 with
        several addresses)."""
        return self.config.interface

    @property
    def address(self) -> str | None:
        """This node's own address on that path."""
        return self.config.address

    @property
    def members(self) -> tuple[Member, ...]:
        """The roster, by rank; empty in the plain form."""
        return self.config.members

    def to_env(self, dialect: str | None = None) -> dict[str, str]:
        """The environment variables for this participant (see `mingled.frameworks.environment`).

        With a `dialect` ("jax", "tensorflow", "sing", ...: docs/frameworks.md) its variables stand
        beside the usual ones. A hostfile (deepspeed, openmpi) lives as long as this process. Names
        of `sing` are answered by nobody here: that is for `mingle-wait --for sing`. Raises
        `BadInput` for a name that is none, and for a dialect that this round does not suit.
        """
        if dialect is None:
            return dict(environment(self.config, present=os.environ).values)
        from mingled.frameworks.dialects import hostfiles, registry, sing

        job = self.job
        if not isinstance(dialect, str):
            raise BadInput(f'job {job}: to_env({dialect!r}): want a name, as in "jax"')
        named = registry.chosen((dialect,), "to_env", job)
        suffix = sing.suffix_of(None, defaults(os.environ), job) if sing.SING in named else ""
        picked = registry.Chosen(named, suffix or sing.LOCAL)
        picked.refuse(self._lease.join)
        changes = picked.environment(self.config, present=os.environ, owner=os.getpid())
        hostfiles.remove_at_exit(changes.values)
        return dict(changes.values)

    def apply(self) -> None:
        """Set them in `os.environ`, and unset what an earlier job set and this one does not. Warns
        of each value that is replaced."""
        changes = environment(self.config, present=os.environ)
        for name, old, new in changes.replaced:
            _warn(f"job {self.job}: {name}={old} in the environment is replaced by {new}")
        os.environ.update(changes.values)
        for name in changes.unset:
            os.environ.pop(name, None)

    def leave(self) -> None:
        """End the lease: this participant has left, and the others are told so. Idempotent."""
        if _LEASES.pop(self._lease.participant, None) is not None:
            self._lease.leave(reason="leave")

    def fail(self, reason: str) -> None:
        """The same, but it is lost: its part of the job failed. Not after `leave`."""
        if _LEASES.pop(self._lease.participant, None) is not None:
            self._lease.leave(lost=True, reason=reason)

    def __enter__(self) -> DdpConfig:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.fail(kind.__name__)
        self.leave()


_LEASES: dict[str, client.Lease] = {}
"""Keeps every lease's connection open until it ends: not until nobody refers to the config."""


def _listed(job: str, name: str, value: str | None, env: Mapping[str, str]) -> tuple[str, ...]:
    if value is not None and not isinstance(value, str):
        raise BadInput(f'job {job}: mingled.join({name}={value!r}): want text, as in "a,b"')
    return listed([env.get(f"MINGLE_{name.upper()}", "") if value is None else value])


def _path(job: str, value: str | None) -> str:
    if value is not None and not isinstance(value, str | os.PathLike):
        raise BadInput(f"job {job}: mingled.join(secret_file={value!r}): want the path of a file")
    return "" if value is None else os.fspath(value)


def join(
    job: str | None = None,
    *,
    nnodes: int | str | None = None,
    world_size: int | None = None,
    rank: int | None = None,
    node_rank: int | None = None,
    nproc_per_node: int | str | None = None,
    timeout: float | None = TIMEOUT_S,
    last_call: float | None = None,
    wait: bool = True,
    any_user: bool = False,
    interface: str | None = None,
    subnet: str | None = None,
    peers: str | None = None,
    require_same: str | None = None,
    secret_file: str | None = None,
    open_store: client.OpenStore | None = None,
) -> DdpConfig:
    """Take part in a job, wait until everybody is here, and return this participant's config.

    Give `nnodes` (with `node_rank`, `nproc_per_node`) for one participant per node, `world_size`
    (with `rank`) for one participant per process, or `rank` alone where the script brings its own
    world size. `nnodes` is a number or "MIN:MAX". `nproc_per_node` is a number, "gpu", "cpu" or
    "auto". Without a rank one is handed out. `timeout` is in seconds; None waits for ever. `RANK`
    and `WORLD_SIZE` in the environment are defaults where `nnodes` is not given, and `NODE_RANK`
    where it is. What is still missing, `job` included, comes from the scheduler that started this
    process (`mingled.frameworks.schedulers`: Slurm, Open MPI, `SING_*`, a Kubernetes indexed job).

    With MIN:MAX nodes the round starts when MAX are here, or when at least MIN are and nobody new
    came for `last_call` seconds (0 to 86,400; None: as the daemon has it, 3 s unless it was told
    otherwise). Where a round of the job runs already this one waits for the next; with `wait=False`
    it is refused. `any_user=True` lets other users' participants into the job.

    `interface` (names or addresses of this node) and `subnet` (as in "10.0.0.0/24") restrict what
    is used; `peers` are hosts to ask where multicast does not reach, or a DNS name of them all.
    Each may be a list with commas between; `MINGLE_INTERFACE`, `MINGLE_SUBNET` and `MINGLE_PEERS`
    are their defaults.

    `require_same` names what must be the same for all: python, torch, cuda, nccl, driver, git
    (commit), cmd, script, or all; a list with commas between (`MINGLE_REQUIRE_SAME`). Whoever comes
    with another is refused, and where nothing is required, a difference is a warning.

    `secret_file` is the path of a file that every participant has (`MINGLE_SECRET_FILE`): only who
    knows it, beside the job ID and the cluster key, gets in.

    `open_store(address) -> port` has this participant, should it become rank 0, open the store
    itself before the round is sealed, for others to reach at this address, and say its port, which
    becomes `master_port`; it is called again where an attempt fails. A size is needed then.

    Raises `BadInput` for arguments that cannot work, `JoinTimeout`, `Refused` and `Conflict` with
    a sentence that names the other side, `DaemonError` where no daemon can be had, and
    `Indeterminate` where the outcome cannot be known.

    A second join of the same job by the same process replaces the first. Who is here and what is
    missing goes to the logger `mingled` (INFO); hints and warnings are `UserWarning`s.
    """
    _check_types(job, nnodes, world_size, rank, node_rank, nproc_per_node, timeout, last_call)
    for name, value in (("wait", wait), ("any_user", any_user)):
        if not isinstance(value, bool):
            raise BadInput(f"{_of_job(job)}mingled.join({name}={value!r}): want True or False")
    environ = dict(os.environ)
    _check_no_worker(job, environ)
    told, scheduled = arguments(
        Arguments(job, nnodes, node_rank, world_size, rank),
        launcher=any(value is not None for value in (nnodes, node_rank, nproc_per_node)),
        env=environ,
        host=os.uname().nodename,
    )
    job, nnodes, node_rank, world_size, rank = told
    if job is None:
        raise BadInput("no job ID; give mingled.join one, the same on every machine")
    request = _request(
        JobId(job),
        nnodes,
        world_size,
        rank,
        node_rank,
        nproc_per_node,
        environ,
        sized=open_store is not None,
    )
    if last_call is not None and request.size_min == request.size_max:
        raise BadInput(
            f'job {job}: last_call is for a range of nodes, as in nnodes="2:4"; leave last_call '
            "out, or give a range"
        )
    given = defaults(os.environ)
    secret, key_id = secrets(_path(job, secret_file), given)
    request = msgspec.structs.replace(
        request,
        timeout_s=timeout,
        last_call_s=last_call,
        wait=wait,
        any_user=any_user,
        interfaces=_listed(job, "interface", interface, given),
        subnets=_listed(job, "subnet", subnet, given),
        peers=_listed(job, "peers", peers, given),
        require_same=wanted(
            _listed(job, "require_same", require_same, given), f"job {job}: mingled.join: "
        ),
        store=open_store is not None,
        secret=secret,
        key_id=key_id,
    )
    if request.compares:
        request = msgspec.structs.replace(request, software=software(None, Path()))
    warning = split_warning(job, request.size_min, request.size_max)
    if warning is not None:
        _warn(warning)
    if scheduled:
        _log(f"job {clean(job)}: {clean(scheduled)}")
    if any(os.environ.get(name) for name, _ in TUNING):
        from mingled.net.interfaces import interface_names

        check_interfaces(os.environ, interface_names())
    lease = client.join(request, lambda message: _told(request, message), open_store)
    for line in released_lines(lease.config, lease.found_s, lease.waited_s):
        _log(f"job {job}: {line}")
    for known, other in list(_LEASES.items()):
        if other.config.job == job:  # the daemon has replaced it
            del _LEASES[known]
            other.connection.close()
    _LEASES[lease.participant] = lease
    return DdpConfig(lease)


def _check_types(
    job: object,
    nnodes: object,
    world_size: object,
    rank: object,
    node_rank: object,
    nproc_per_node: object,
    timeout: object,
    last_call: object,
) -> None:
    """`BadInput` that names the argument: notebooks have no type checker."""
    if not isinstance(job, str | None):
        raise BadInput(f"mingled.join(job={job!r}): want a str, the same on every machine")
    number, text = (int, type(None)), (int, str, type(None))
    seconds = (int, float, type(None))
    for name, value, kinds in (
        ("nnodes", nnodes, text),
        ("world_size", world_size, number),
        ("rank", rank, number),
        ("node_rank", node_rank, number),
        ("nproc_per_node", nproc_per_node, text),
        ("timeout", timeout, seconds),
        ("last_call", last_call, seconds),
    ):
        if not isinstance(value, kinds) or isinstance(value, bool):
            words = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
            raise BadInput(f"{_of_job(job)}mingled.join({name}={value!r}): want {words}")


def _of_job(job: object) -> str:
    return "" if job is None else f"job {job}: "


def _check_no_worker(job: str | None, environ: Mapping[str, str]) -> None:
    if "TORCHELASTIC_RUN_ID" in environ:
        flag = "" if job is None else f" --job {job}"
        raise BadInput(
            f"{_of_job(job)}this is a worker of torchrun, which has its rank and address already; "
            "call torch.distributed.init_process_group() as usual, and run torchrun itself under "
            f"mingle-wait: mingle-wait{flag} -- torchrun ..."
        )


def _told(request: local.Join, message: local.Local) -> None:
    if isinstance(message, local.Notice):
        _warn(clean(message.sentence))  # other machines' host names are in it
    elif isinstance(message, local.Progress):
        _log(f"job {request.job}: {waiting_line(message, request.form)}")


def _warn(sentence: str) -> None:
    """A `UserWarning` at the user's own line: the nearest that is neither ours nor torch's."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _is_library(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(sentence, UserWarning, stacklevel=level)


def _is_library(module: str) -> bool:
    return module.partition(".")[0] in ("mingled", "torch")


def _log(line: str) -> None:
    import logging

    logging.getLogger("mingled").info("%s", line)


def _request(
    job: JobId,
    nnodes: int | str | None,
    world_size: int | None,
    rank: int | None,
    node_rank: int | None,
    nproc_per_node: int | str | None,
    environ: dict[str, str],
    *,
    sized: bool,
) -> local.Join:
    """`sized`: the plain form will not do."""
    given = defaults(environ)
    if nnodes is not None or node_rank is not None or nproc_per_node is not None:
        if world_size is not None or rank is not None:
            raise BadInput(
                f"job {job}: nnodes, node_rank and nproc_per_node are for one participant per "
                "node, world_size and rank for one per process; give one kind"
            )
        if nnodes is None:
            raise BadInput(f"job {job}: node_rank or nproc_per_node without nnodes; add nnodes=N")
        low, high = _sizes(job, nnodes)
        if node_rank is None:
            node_rank = _number(job, given, "NODE_RANK")
        return local.Join(
            job=job,
            form=Form.LAUNCHER,
            size_min=low,
            size_max=high,
            rank=node_rank,
            nproc=processes("1" if nproc_per_node is None else str(nproc_per_node), env=environ),
        )
    if world_size is None:
        world_size = _number(job, given, "WORLD_SIZE")
    if world_size is None and sized:
        raise BadInput(
            f"job {job}: how many processes are there to be? Give world_size=N, the same on every "
            "machine"
        )
    if rank is None:
        rank = _number(job, given, "RANK")
    return local.Join(
        job=job,
        form=Form.PLAIN if world_size is None else Form.PROCESS,
        size_min=world_size or 0,
        size_max=world_size or 0,
        rank=rank,
    )


def _sizes(job: JobId, nnodes: int | str) -> tuple[int, int]:
    low, _, high = str(nnodes).partition(":")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise BadInput(f"job {job}: nnodes {nnodes!r} is no number and no MIN:MAX") from None


def _number(job: JobId, environ: dict[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None or text == "":
        return None
    try:
        return int(text)
    except ValueError:
        raise BadInput(
            f"job {job}: {name}={text!r} in the environment is no number; unset it or correct it"
        ) from None
