"""What doctor says: findings, each of one check."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Result = Literal["pass", "warn", "fail", "skipped"]
"""`warn`: jobs run, but slower, or not in every case. `fail`: jobs that need it do not run."""

_WEIGHT: dict[Result, int] = {"skipped": 0, "pass": 1, "warn": 2, "fail": 3}

NAMED_MAX = 8
"""Names in one sentence; people read no more."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was found out."""

    check: str  #: its name, as in docs/doctor.md
    result: Result
    measured: str  #: a sentence without a full stop: what was seen; why, where it was skipped
    mend: tuple[str, ...] = ()  #: what to do, a command where there is one


def passed(check: str, measured: str) -> Finding:
    return Finding(check=check, result="pass", measured=measured)


def warned(check: str, measured: str, *mend: str) -> Finding:
    return Finding(check=check, result="warn", measured=measured, mend=mend)


def failed(check: str, measured: str, *mend: str) -> Finding:
    return Finding(check=check, result="fail", measured=measured, mend=mend)


def skipped(check: str, why: str, *mend: str) -> Finding:
    return Finding(check=check, result="skipped", measured=why, mend=mend)


def worst(findings: Iterable[Finding]) -> Result:
    """Of all; `skipped` where there is nothing."""
    return max((f.result for f in findings), key=_WEIGHT.__getitem__, default="skipped")


def named(names: Iterable[str]) -> str:
    """`gpu1, gpu2 and 14 more`."""
    every = list(dict.fromkeys(names))
    more = len(every) - NAMED_MAX
    return ", ".join(every[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
