"""From flags, environment and CMD to one request: which form is meant, and does it make sense?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from mingled.cli import launchers, torchrun
from mingled.core.local import Join
from mingled.core.messages import check_shape
from mingled.core.peers import listed
from mingled.core.software import wanted as items_wanted
from mingled.core.words import Form, JobId
from mingled.errors import BadInput
from mingled.frameworks.dialects import registry, sing
from mingled.frameworks.dialects.registry import Chosen
from mingled.frameworks.environment import defaults
from mingled.frameworks.secrets import secrets
from mingled.net.gpus import processes

TIMEOUT_MAX_S = 366 * 86_400.0
"""A year. Far more than anybody waits, and what clocks and poll(2) can still count."""

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")

STOP_GRACE = "35s"
"""Of `mingled.core.local.STOP_GRACE_S`, as one types it."""

RESTARTS_MAX = 3
"""Of a CMD under `--on-lost restart`."""


class Flags(NamedTuple):
    """What the user typed; None: not given."""

    job: str | None
    nnodes: str | None
    node_rank: int | None
    nproc_per_node: str | None
    world_size: int | None
    rank: int | None
    timeout: str
    last_call: str | None = None
    wait: bool = True
    any_user: bool = False
    stop_grace: str = STOP_GRACE
    interfaces: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    require_same: tuple[str, ...] = ()
    secret_file: str = ""
    dialects: tuple[str, ...] = ()
    sing_suffix: str | None = None


OnLost = Literal["warn", "stop", "restart", "ignore"]


class Reaction(msgspec.Struct, frozen=True):
    """What follows when a member of the running round is lost."""

    on_lost: OnLost = "warn"
    restarts_max: int = RESTARTS_MAX


class Wish(msgspec.Struct, frozen=True):
    """What is to be asked of the daemon, and the torchrun line if CMD is one."""

    join: Join
    line: launchers.Line | None
    chosen: Chosen = Chosen()


def wish(flags: Flags, cmd: Sequence[str], env: Mapping[str, str], *, adopt: bool) -> Wish:
    """Raises `BadInput` naming what to add or delete."""
    if flags.job is None:
        raise BadInput("no job ID; add --job NAME, the same on every machine")
    job = JobId(flags.job)
    for flag, values in (
        ("--interface", flags.interfaces),
        ("--subnet", flags.subnets),
        ("--peers", flags.peers),
        ("--require-same", flags.require_same),
    ):
        check_given(flag, values, f"job {job}: ")
    given = defaults(env)
    line = launchers.read(cmd)
    launcher = (flags.nnodes, flags.node_rank, flags.nproc_per_node)
    process = (flags.world_size, flags.rank)
    if any(f is not None for f in launcher) or line is not None:
        if any(f is not None for f in process):
            raise BadInput(_mixed(job, line))
        join = _launcher(job, flags, line, given)
    else:
        join = _process(job, flags, given)
    try:
        check_shape(join.form, join.size_min, join.size_max, join.rank, join.nproc, job)
    except BadInput as error:
        raise BadInput(f"{error}{_found(flags, join, given)}") from None
    if flags.last_call is not None and join.size_min == join.size_max:
        raise BadInput(
            f"job {job}: --last-call is for a range of nodes, as in --nnodes 2:4; delete "
            "--last-call, or give a range"
        )
    picked = _chosen(job, flags, given)
    secret, key_id = secrets(flags.secret_file, given)
    wanted = Wish(
        Join(
            job=job,
            form=join.form,
            size_min=join.size_min,
            size_max=join.size_max,
            rank=join.rank,
            nproc=join.nproc,
            timeout_s=seconds(flags.timeout, f"job {job}: --timeout"),
            adopt=adopt,
            last_call_s=_pause(flags.last_call, f"job {job}: --last-call"),
            wait=flags.wait,
            any_user=flags.any_user,
            stop_grace_s=_pause(flags.stop_grace, f"job {job}: --stop-grace") or 0.0,
            interfaces=listed(flags.interfaces or [given.get("MINGLE_INTERFACE", "")]),
            subnets=listed(flags.subnets or [given.get("MINGLE_SUBNET", "")]),
            peers=listed(flags.peers or [given.get("MINGLE_PEERS", "")]),
            require_same=items_wanted(
                flags.require_same or [given.get("MINGLE_REQUIRE_SAME", "")], f"job {job}: "
            ),
            named=picked.publishes,
            secret=secret,
            key_id=key_id,
        ),
        line,
        picked,
    )
    picked.refuse(wanted.join)
    return wanted


def _chosen(job: JobId, flags: Flags, env: Mapping[str, str]) -> Chosen:
    named = registry.chosen(flags.dialects, "--for", job)
    if sing.SING in named:
        return Chosen(named, sing.suffix_of(flags.sing_suffix, dict(env), job))
    if flags.sing_suffix is not None:
        raise BadInput(f"job {job}: --sing-suffix is for --for sing; add that, or delete it")
    return Chosen(named)


def check_given(flag: str, values: Sequence[str], who: str = "") -> None:
    """Refuses an empty value of a flag that restricts: it is a shell variable that is not set, and
    would silently allow everything."""
    if any(not listed([value]) for value in values):
        raise BadInput(
            f"{who}{flag} is given with nothing in it; is a shell variable not set? Give a value, "
            f"or delete {flag}"
        )


def check_watched(form: Form, react: Reaction, job: str) -> None:
    """In the plain form nobody knows who takes part, so nobody is told of a loss."""
    if form is Form.PLAIN and react.on_lost in ("stop", "restart"):
        raise BadInput(
            f"job {job}: --on-lost {react.on_lost} needs a round with a size, to know who is lost; "
            "add --world-size W (or --nnodes N for a launcher), or delete --on-lost"
        )


def reaction(
    job: str | None, on_lost: OnLost, max_restarts: int | None, *, cmd: bool, exec_: bool
) -> Reaction:
    """`cmd`: there is one, `exec_`: it replaces us. Raises `BadInput` naming what to delete."""
    said = f"job {job}: --on-lost {on_lost}"
    if max_restarts is not None and on_lost != "restart":
        raise BadInput(
            f"job {job}: --max-restarts is for --on-lost restart; delete --max-restarts, or add "
            "--on-lost restart"
        )
    if on_lost in ("stop", "restart"):
        flag = f"--on-lost {on_lost}" + (" and --max-restarts" if max_restarts is not None else "")
        if not cmd:
            raise BadInput(f"{said} is for a CMD that can be stopped; delete {flag}, or add -- CMD")
        if exec_:
            raise BadInput(
                f"{said} needs mingle-wait as CMD's parent, and --exec leaves none; delete "
                f"--exec, or {flag}"
            )
    return Reaction(on_lost, RESTARTS_MAX if max_restarts is None else max_restarts)


def _found(flags: Flags, shape: _Shape, env: Mapping[str, str]) -> str:
    """Which of the values that make no sense were not typed but found."""
    names = {
        Form.LAUNCHER: (("NODE_RANK", flags.node_rank),),
        Form.PROCESS: (("RANK", flags.rank), ("WORLD_SIZE", flags.world_size)),
        Form.PLAIN: (("RANK", flags.rank),),
    }[shape.form]
    found = [f"{name}={env[name]}" for name, typed in names if typed is None and env.get(name)]
    return f" ({', '.join(found)} in the environment)" if found else ""


class _Shape(msgspec.Struct, frozen=True):
    form: Form
    size_min: int
    size_max: int
    rank: int | None
    nproc: int


def _mixed(job: JobId, line: launchers.Line | None) -> str:
    if line is not None:
        return (
            f"job {job}: CMD is a launcher, one per node; delete --world-size and --rank, and say "
            "--nnodes N (and --node-rank R, if you must)"
        )
    return (
        f"job {job}: --nnodes, --node-rank and --nproc-per-node are for one launcher per node, "
        "--world-size and --rank for one process each; delete one kind"
    )


def _launcher(
    job: JobId, flags: Flags, line: launchers.Line | None, env: Mapping[str, str]
) -> _Shape:
    sizes = None
    if flags.nnodes is not None:
        said = f"job {job}: --nnodes {flags.nnodes}"
        sizes = torchrun.node_counts(flags.nnodes, said)
    rank, nproc = flags.node_rank, flags.nproc_per_node
    if line is not None:
        resolved = launchers.check(
            line, job=job, nnodes=sizes, node_rank=rank, nproc=nproc, env=env
        )
        sizes, rank, nproc = resolved.nnodes, resolved.node_rank, resolved.nproc
    if sizes is None:
        raise BadInput(f"job {job}: how many nodes? Add --nnodes N, the same on every machine")
    if rank is None:
        rank = _number(job, env, "NODE_RANK")
    word = "1" if nproc is None else nproc
    return _Shape(Form.LAUNCHER, sizes[0], sizes[1], rank, processes(word, env=env))


def _process(job: JobId, flags: Flags, env: Mapping[str, str]) -> _Shape:
    size, rank = flags.world_size, flags.rank
    if size is None:
        size = _number(job, env, "WORLD_SIZE")
    if rank is None:
        rank = _number(job, env, "RANK")
    if size is None and rank is None:
        raise BadInput(
            f"job {job}: neither a size nor a rank. Add --nnodes N for a launcher on each of N "
            "nodes, --world-size W for W single processes, or --rank R where the script brings its "
            "own world size"
        )
    if size is None:
        return _Shape(Form.PLAIN, 0, 0, rank, 1)
    return _Shape(Form.PROCESS, size, size, rank, 1)


def _number(job: JobId, env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise BadInput(
            f"job {job}: {name}={text!r} in the environment is no number; unset it or correct it"
        ) from None


def seconds(text: str, said: str) -> float | None:
    """`90`, `90s`, `10m`, `1h30m` in seconds; None for `none`. Raises `BadInput`."""
    if text.strip().lower() == "none":
        return None
    total = _duration(text)
    if total is None:
        raise BadInput(f"{said} {text!r}: want a time as in 90s, 10m or 1h30m, or none")
    if total <= 0:
        raise BadInput(f"{said} {text!r}: want more than no time at all, or none")
    if total > TIMEOUT_MAX_S:
        raise BadInput(f"{said} {text!r}: want a year at most, or none")
    return total


def _pause(text: str | None, said: str) -> float | None:
    """As `seconds`, but it may be 0 and not `none`; None where none is given."""
    if text is None:
        return None
    total = _duration(text)
    if total is None:
        raise BadInput(f"{said} {text!r}: want a time as in 3s, 90s or 10m")
    return total


def _duration(text: str) -> float | None:
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or not any(match.groups()):
        return None
    hours, minutes, secs = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + secs
