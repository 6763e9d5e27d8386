"""A LAN of the lab with a warm daemon and an agent on each node."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from benchmarks import agent
from mingled.errors import MingleError
from mingled.lab import Lan, Node, Process

BIN = Path(sys.executable).parent

ROOT = Path(__file__).parents[1]
"""Where `python -m benchmarks.agent` is found."""

AHEAD_S = 0.05
"""Orders for a common moment are given this much before it."""

BROWSED_S = 18.0
"""After its start the mDNS library asks at 0, 1, 5 and 14 s what is there; from then on never."""

NEIGHBOURS_MAX = 32
"""With more nodes, ARP is left out: see `Fleet._introduce`."""

SETTLE_S = 0.3
"""Before the last one joins: a daemon coalesces its progress lines over 0.2 s."""


class Span(NamedTuple):
    """From the send of a request to its answer, CLOCK_MONOTONIC in seconds."""

    start: float
    end: float


class Agent:
    """One `benchmarks.agent` on a node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._process = start(node, sys.executable, "-m", "benchmarks.agent")

    def order(self, do: str, **words: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **words}) + "\n")
        self._process.stdin.flush()

    def hear(self, key: str) -> dict[str, Any]:
        """The next line that has `key`."""
        while key not in (said := self.hear_any(f"it said {key!r}")):
            pass
        return said

    def hear_any(self, wanted: str = "it was done") -> dict[str, Any]:
        """The next line."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said: dict[str, Any] = json.loads(line)
            return said
        raise MingleError(f"The agent on {self.node.name} ended before {wanted}.")

    def hear_here(self, count: int) -> None:
        """Until so many have joined."""
        while self.hear("here")["here"] < count:
            pass

    def spawn(self, argv: list[str]) -> dict[str, Any]:
        """Run a command to its end; it must end well."""
        self.order("spawn", argv=argv)
        return self.spawned(argv)

    def spawned(self, argv: list[str]) -> dict[str, Any]:
        said = self.hear("code")
        if said["code"] != 0:
            raise MingleError(f"{' '.join(argv)} on {self.node.name}: {said['err']}")
        return said


class Fleet:
    """`with Fleet(8) as fleet:` -- and all daemons are warm; without `daemons` none runs."""

    def __init__(self, nodes: int, *, daemons: bool = True) -> None:
        self.lan = Lan(nodes)
        self.agents: list[Agent] = []
        self.daemons: list[Process] = []
        self._started_at = 0.0
        self._with_daemons = daemons
        self._jobs = 0

    def __len__(self) -> int:
        return len(self.lan)

    def __enter__(self) -> Self:
        self.lan.open()
        try:
            self._start()
        except BaseException:
            self.lan.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.lan.close()

    def job(self) -> str:
        """A job ID that was not used yet."""
        self._jobs += 1
        return f"bench-{self._jobs}"

    def all_at_once(self, do: str, **words: Any) -> list[Span]:
        """Everybody starts at the same moment."""
        at = time.monotonic() + AHEAD_S
        for each in self.agents:
            each.order(do, at=at, **self._words(), **words)
        return self._spans()

    def in_order(self, do: str, *groups: Sequence[int], **words: Any) -> list[Span]:
        """Each group of agents (indexes, all in one group each) starts when those before it wait.
        `rank` in `words` becomes each one's index."""
        known = 0
        for number, group in enumerate(groups):
            for index in group:
                rank = {"rank": index} if "rank" in words else {}
                address = {"address": self.agents[index].node.address}
                self.agents[index].order(do, **self._words() | words | rank | address)
            known += len(group)
            if number + 1 < len(groups):
                for index in group:
                    # Rank 0 leads, and hears of everybody before it; the others may be alone.
                    self.agents[index].hear_here(known if do == "join" and index == 0 else 1)
                time.sleep(SETTLE_S)
        return self._spans()

    def last_late(self, do: str, *, late: int, **words: Any) -> list[Span]:
        """All wait for the agent at index `late`."""
        early = [index for index in range(len(self)) if index != late]
        return self.in_order(do, early, [late], **words)

    def settle(self, age_s: float) -> None:
        """Wait until the daemons have run for so long."""
        time.sleep(max(0.0, self._started_at + age_s - time.monotonic()))

    def alone(self) -> float:
        """Seconds from the join to the release of a job of one."""
        first = self.agents[0]
        first.order("join", job=self.job(), size=1, rank=0)
        said = first.hear("end")
        first.order("leave")
        first.hear("left")
        return float(said["end"] - said["start"])

    def leave(self) -> None:
        """End the leases of the last join."""
        for each in self.agents:
            each.order("leave")
        for each in self.agents:
            each.hear("left")

    def _words(self) -> dict[str, Any]:
        return {"size": len(self), "server": self.lan.node(1).address}

    def _spans(self) -> list[Span]:
        said = [each.hear("end") for each in self.agents]
        return [Span(line["start"], line["end"]) for line in said]

    def _introduce(self) -> None:
        """Tell every node every other one's MAC address.

        All namespaces share the kernel's one ARP table. 64 nodes overflow it (gc_thresh3, 1024
        entries), and then connections fail as they never would on 64 machines; what is permanent
        in it does not count.
        """
        cards = []
        for node in self.lan.nodes:
            shown = node.run(["ip", "-json", "link", "show", node.interface], check=True).stdout
            cards.append((node, json.loads(shown)[0]["address"]))
        for node, _ in cards:
            node.holder.ip(
                [
                    f"neigh replace {other.address} lladdr {mac} dev {node.interface} nud permanent"
                    for other, mac in cards
                    if other is not node
                ]
            )

    def _start(self) -> None:
        if len(self) > NEIGHBOURS_MAX:
            self._introduce()
        server = start(self.lan.node(1), sys.executable, "-m", "benchmarks.agent", "serve")
        assert server.stdout is not None
        server.stdout.readline()
        if self._with_daemons:
            command = [str(BIN / "mingled"), "--socket", str(agent.SOCKET)]
            for node in self.lan.nodes:
                self.daemons.append(start(node, *command, "--log-level", "error"))
        self.agents = [Agent(node) for node in self.lan.nodes]
        for each in self.agents:
            each.hear("up")
        if self._with_daemons:
            for each in self.agents:
                each.order("daemon")
                each.hear("up")
        self._started_at = time.monotonic()


def start(node: Node, *argv: str, env: Mapping[str, str] | None = None) -> Process:
    """A command on a node that is spoken to through pipes; its errors are shown."""
    return node.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=env)
