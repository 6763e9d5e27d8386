"""CMD as the line of a launcher that mingle-wait understands: torchrun's or accelerate's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from mingled.cli import accelerate, torchrun
from mingled.cli.accelerate import AccelerateLine
from mingled.cli.resolved import Resolved
from mingled.cli.torchrun import TorchrunLine
from mingled.core.config import Config

Line = TorchrunLine | AccelerateLine


def read(cmd: Sequence[str]) -> Line | None:
    """None where CMD is something else. Raises `BadInput` where its launcher would refuse it."""
    return torchrun.read(cmd) or accelerate.read(cmd)


def check(
    line: Line,
    *,
    job: str,
    nnodes: tuple[int, int] | None,
    node_rank: int | None,
    nproc: str | None,
    env: Mapping[str, str],
) -> Resolved:
    """Merges mingle-wait's own flags (None: not given) with what the line says. Raises `BadInput`
    where the two differ, or where the line leads away from the job."""
    if isinstance(line, TorchrunLine):
        return torchrun.check(
            line, job=job, nnodes=nnodes, node_rank=node_rank, nproc=nproc, env=env
        )
    return accelerate.check(line, job=job, nnodes=nnodes, node_rank=node_rank, nproc=nproc, env=env)


def rewrite(line: Line, config: Config) -> list[str]:
    """The command line to run in this round. Raises `BadInput` where its launcher cannot."""
    if isinstance(line, TorchrunLine):
        return torchrun.rewrite(line, config)
    return accelerate.rewrite(line, config, os.environ)
