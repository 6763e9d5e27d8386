"""What `mingle-wait` takes from a scheduler, as if it had been typed.

Who is heard first: flags, then CMD's own words (and PET_* where it is torchrun's), then RANK,
WORLD_SIZE and NODE_RANK, then the scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mingled.cli import launchers, torchrun
from mingled.cli.forms import Flags, OnLost
from mingled.core.words import Form
from mingled.frameworks.environment import defaults
from mingled.frameworks.interpreter import runs_python
from mingled.frameworks.scheduled import Known, Words, take

_FLAGS = Words("--job NAME", "--nnodes N", "--world-size W")


def completed(
    flags: Flags, cmd: Sequence[str], env: Mapping[str, str], *, host: str, on_lost: OnLost
) -> tuple[Flags, str]:
    """`flags` with what the scheduler adds, and the sentence that says so; empty where nothing is.

    Raises:
        BadInput: as `mingled.frameworks.scheduled.take`, and as torchrun's line is read.
    """
    known = _known(flags, cmd, defaults(env))
    if on_lost == "restart":
        known = known._replace(automatic="since --on-lost restart may need another rank 0")
    taken = take(known, env, host, _FLAGS)
    if taken is None:
        return flags, ""
    if taken.job is not None:
        flags = flags._replace(job=taken.job)
    if taken.form is Form.LAUNCHER:
        nnodes = flags.nnodes if taken.size is None else str(taken.size)
        node_rank = flags.node_rank if taken.rank is None else taken.rank
        return flags._replace(nnodes=nnodes, node_rank=node_rank), taken.sentence
    size = flags.world_size if taken.size is None else taken.size
    rank = flags.rank if taken.rank is None else taken.rank
    return flags._replace(world_size=size, rank=rank), taken.sentence


def _known(flags: Flags, cmd: Sequence[str], given: Mapping[str, str]) -> Known:
    line = launchers.read(cmd)
    launcher = (flags.nnodes, flags.node_rank, flags.nproc_per_node)
    process = (flags.world_size, flags.rank)
    is_launcher = line is not None or any(f is not None for f in launcher)
    is_process = any(f is not None for f in process)
    if is_launcher and is_process:
        return Known(flags.job, Form.PLAIN, None, True)  # refused by `wish`, which wants a job
    if is_launcher:
        return _known_launcher(flags, line, given)
    size = flags.world_size
    text = given.get("WORLD_SIZE", "")
    if size is None and text:
        # What is no number is refused by `wish`; here it only is something that was said.
        size = int(text) if text.isdecimal() else 0
    rank = flags.rank is not None or bool(given.get("RANK"))
    said = is_process or size is not None or rank
    form = Form.PROCESS if said else None
    return Known(
        flags.job, form, None if size is None else (size, size), rank, process=runs_python(cmd)
    )


def _known_launcher(flags: Flags, line: launchers.Line | None, given: Mapping[str, str]) -> Known:
    who = "" if flags.job is None else f"job {flags.job}: "
    size, rank = None, flags.node_rank is not None or bool(given.get("NODE_RANK"))
    if flags.nnodes is not None:
        size = torchrun.node_counts(flags.nnodes, f"{who}--nnodes {flags.nnodes}")
    if line is not None:
        size = size or line.nnodes
        rank = rank or line.node_rank is not None or bool(given.get("PET_NODE_RANK"))
        if size is None and (text := given.get("PET_NNODES")):
            size = torchrun.node_counts(text, f"{who}PET_NNODES={text}")
    return Known(flags.job, Form.LAUNCHER, size, rank)
