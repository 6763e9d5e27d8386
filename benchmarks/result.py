"""One measured thing, what it is compared with, and what it is to reach."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """`of` says what is held against `limit`: the median, its ratio to the reference's median, or
    what it is over the reference's median."""

    of: Literal["median", "ratio", "excess"]
    limit: float
    unit: str

    @property
    def text(self) -> str:
        if self.of == "ratio":
            return f"at most {self.limit:g}x"
        more = "more than the reference" if self.of == "excess" else ""
        return f"at most {self.limit:g} {self.unit} {more}".strip()


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, in the order it was measured in."""

    what: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"{self.what}: nothing was measured")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. The reference was measured in turn with it, in the same run."""

    name: str  #: for --only, and to compare two runs
    measured: Samples
    unit: str
    reference: Samples | None = None
    goal: Goal | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Of the medians."""
        if self.reference is None or not self.reference.median:
            return None
        return self.measured.median / self.reference.median

    @property
    def ratio_of_lowest(self) -> float | None:
        """Of the minima: the machine's other work disturbs it least."""
        if self.reference is None or not self.reference.lowest:
            return None
        return self.measured.lowest / self.reference.lowest

    @property
    def met(self) -> bool | None:
        """Is the goal reached? None where there is none."""
        if self.goal is None:
            return None
        if self.goal.of == "median":
            return self.measured.median <= self.goal.limit
        if self.reference is None:
            raise ValueError(f"{self.name}: a goal against a reference that was not measured")
        if self.goal.of == "ratio":
            return self.measured.median <= self.goal.limit * self.reference.median
        return self.measured.median - self.reference.median <= self.goal.limit


def result(
    name: str,
    what: str,
    values: Sequence[float],
    *,
    unit: str = "ms",
    against: tuple[str, Sequence[float]] | None = None,
    goal: tuple[Literal["median", "ratio", "excess"], float] | None = None,
    note: str = "",
) -> Result:
    """A `Result` from bare numbers."""
    return Result(
        name=name,
        measured=Samples(what=what, values=tuple(values)),
        unit=unit,
        reference=Samples(what=against[0], values=tuple(against[1])) if against else None,
        goal=Goal(of=goal[0], limit=goal[1], unit=unit) if goal else None,
        note=note,
    )
