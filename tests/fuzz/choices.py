"""Decisions read from bytes: what a fuzzer mutates, a seed of `random` and Hypothesis all give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """One or two bytes a decision. When they are used up every further decision is the first of its
    kind, so a short input is a short run."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def byte(self) -> int:
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def below(self, count: int) -> int:
        """A number from 0 to `count` - 1."""
        value = self.byte()
        if count > 256:
            value = value << 8 | self.byte()
        return value % count

    def chance(self, of_256: int) -> bool:
        """True for the highest bytes: not once they are used up."""
        return self.byte() >= 256 - of_256

    def pick(self, among: Sequence[T]) -> T:
        return among[self.below(len(among))]

    def some(self, make: Callable[[], T], at_most: int) -> tuple[T, ...]:
        return tuple(make() for _ in range(self.below(at_most + 1)))
