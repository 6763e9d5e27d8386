"""What one `mingle` command says, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Said(NamedTuple):
    """What one `mingle` command said."""

    code: object
    out: str
    err: str


Say = Callable[[str], Said]
