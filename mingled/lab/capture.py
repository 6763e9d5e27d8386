"""Packets seen on a node's card, as tcpdump describes them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self, overload

from mingled.errors import BadInput, MingleError
from mingled.lab import sniff
from mingled.lab.node import Node
from mingled.lab.process import Process
from mingled.lab.tools import tool


@dataclass(frozen=True)
class Packet:
    """One packet; `at_s` is Unix time, `text` tcpdump's line about it."""

    at_s: float
    text: str


class Capture(Sequence[Packet]):
    """A context manager and the packets seen since it was entered, oldest first.

    Every packet that passed before the end of the block is in it after the block. Raises
    `MingleError` where tcpdump is missing, and `BadInput` for a filter that it does not take.
    """

    def __init__(self, node: Node, filter: str, interface: str) -> None:
        self._node = node
        self._filter = filter
        self._interface = interface
        self._packets: list[Packet] = []
        self._changed = threading.Condition()
        self._sniffer: Process | None = None
        self._tcpdump: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        program = self._compile()
        self._sniffer = self._node.popen(
            [sys.executable, "-S", sniff.__file__, self._interface, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._sniffer.stdout is not None
        assert self._sniffer.stderr is not None
        if self._sniffer.stderr.readline() != "listening\n":
            said = " ".join(self._sniffer.stderr.read().split())
            self._sniffer.reap()
            raise MingleError(f"No packets can be captured on {self._node.name}: {said}")
        self._tcpdump = subprocess.Popen(
            [tool("tcpdump"), "-r", "-", "-l", "-n", "-tt"],
            stdin=self._sniffer.stdout,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="backslashreplace",
        )
        assert self._tcpdump.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._tcpdump.stdout,))
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._sniffer is not None
        assert self._sniffer.stdin is not None
        assert self._tcpdump is not None
        assert self._reader is not None
        self._sniffer.stdin.close()
        self._sniffer.wait()
        self._reader.join()
        self._sniffer.reap()
        self._tcpdump.__exit__(kind, error, trace)

    def _compile(self) -> str:
        done = subprocess.run(
            [tool("tcpdump"), "-y", "EN10MB", "-ddd", self._filter],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = " ".join(done.stderr.split())
            raise BadInput(f"tcpdump does not take the filter {self._filter!r}: {said}")
        return done.stdout

    @overload
    def __getitem__(self, index: int) -> Packet: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Packet]: ...
    def __getitem__(self, index: int | slice) -> Packet | Sequence[Packet]:
        return self._packets[index]

    def __len__(self) -> int:
        return len(self._packets)

    def __iter__(self) -> Iterator[Packet]:
        return iter(list(self._packets))

    def wait_for(self, count: int, timeout_s: float = 10) -> None:
        """Block until `count` packets were seen."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self) >= count, timeout_s):
                raise MingleError(
                    f"{self._node.name} saw {len(self)} packets of {self._filter!r} "
                    f"in {timeout_s} s, not {count}."
                )

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            stamp, _, text = line.strip().partition(" ")
            with self._changed:
                if stamp.replace(".", "").isdigit():  # other lines continue a packet
                    self._packets.append(Packet(float(stamp), text))
                self._changed.notify_all()
