"""What the launcher form asks for, after all places that may say it were read."""

from __future__ import annotations

import msgspec


class Resolved(msgspec.Struct, frozen=True):
    nnodes: tuple[int, int]  #: (min, max)
    nproc: str  #: a number or one of torchrun's words
    node_rank: int | None  #: None: automatic
