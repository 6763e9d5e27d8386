"""torchrun's agents on the nodes of a LAN, with mingled's plugin or with c10d: what may become of
them, and what their workers did. Used by the tests and by the benchmarks."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from mingled.lab import Lan

from .helpers import BIN, PATIENCE_S, Done, Running, processes, start

TRAIN = Path(__file__).with_name("train_steps.py")

Backend = Literal["mingle", "c10d"]

JOB = "bert"
C10D_PORT = 29_400

FATAL = """
import os, signal, sys
from torch.distributed.elastic.agent.server import api
from torch.distributed.run import main

right = api.SimpleElasticAgent._assign_worker_ranks

def dies(self, store, group_rank, *others):
    # The host of the store: rank 0, or where c10d's endpoint is.
    if (group_rank if sys.argv[1] == "rank-0" else 1 - ("gpu1" == os.uname().nodename)) == 0:
        try:
            os.unlink(sys.argv[2])
        except FileNotFoundError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return right(self, store, group_rank, *others)

api.SimpleElasticAgent._assign_worker_ranks = dies
main(sys.argv[3:])
"""
"""torchrun whose store host is killed between the roster and the ranks, once: while its file is
there."""


class Step(NamedTuple):
    number: int
    at_s: float  #: CLOCK_MONOTONIC


class Agents:
    """Of one job on a LAN. With c10d, node 1 is the endpoint, as somebody typed it."""

    def __init__(
        self,
        lan: Lan,
        folder: Path,
        backend: Backend = "mingle",
        *,
        nodes: str = "2:4",
        restarts: int = 0,
        nproc: int = 1,
        fatal: bool = False,
        local_addr: str = "",
        options: Iterable[str] = (),
    ) -> None:
        """`fatal`: see FATAL. `options`: of TRAIN, after its folder."""
        self.lan = lan
        self.folder = folder
        self.backend = backend
        self.running: dict[int, Running] = {}
        self.dead: set[int] = set()
        self._nodes, self._restarts, self._nproc = nodes, restarts, nproc
        self._fatal = folder / "fatal" if fatal else None
        self._local_addr = local_addr
        self._script = [str(TRAIN), str(folder), *options]
        if self._fatal is not None:
            self._fatal.touch()

    def start(self, numbers: Iterable[int], *conf: str) -> None:
        for number in numbers:
            node = self.lan.node(number)
            # With c10d gloo looks its own host up, finds nothing, and would take loopback.
            env = {"GLOO_SOCKET_IFNAME": node.interface} if self.backend == "c10d" else {}
            self.running[number] = start(node, *self._words(number, conf), env=env)

    def _words(self, number: int, conf: Iterable[str]) -> list[str]:
        words = [str(BIN / "torchrun")]
        if self._fatal is not None:
            who = "rank-0" if self.backend == "mingle" else "endpoint"
            words = [sys.executable, "-c", FATAL, who, str(self._fatal)]
        words += ["--rdzv-backend", self.backend, "--rdzv-id", JOB]
        settings = ["last_call_timeout=2", *conf]
        if self.backend == "c10d":
            words += ["--rdzv-endpoint", f"{self.lan.node(1).address}:{C10D_PORT}"]
            # Else it asks a DNS, which the lab has not, and publishes names.
            words += ["--local-addr", self.lan.node(number).address]
            settings.append(f"is_host={number == 1}")
        words += ["--rdzv-conf", ",".join(settings), "--nnodes", self._nodes]
        if self._local_addr:
            words += ["--local-addr", self._local_addr]
        words += ["--max-restarts", str(self._restarts), "--nproc-per-node", str(self._nproc)]
        return [*words, *self._script]

    # ------------------------------------------------------------ who is who

    def until_trained(self, steps: int = 5) -> None:
        """Every worker has done so many."""
        for running in self.alive().values():
            running.until(f"did {steps} at ", kind="out")

    def alive(self) -> dict[int, Running]:
        return {n: running for n, running in self.running.items() if n not in self.dead}

    @property
    def store_host(self) -> int:
        """The node of the last round's store."""
        if self.backend == "c10d":
            return 1
        masters = re.findall(r"by ([\d.]+)\n", self.any_alive().out)
        return next(n.number for n in self.lan.nodes if n.address == masters[-1])

    def any_alive(self) -> Running:
        return next(iter(self.alive().values()))

    def follower(self) -> int:
        """A node other than the store's."""
        return max(n for n in self.alive() if n != self.store_host)

    def agents(self, number: int) -> list[int]:
        return [p for p, line in self._of_job(number) if "--rdzv-backend" in line]

    def workers(self, number: int) -> list[int]:
        return [p for p, line in self._of_job(number) if "--rdzv-backend" not in line]

    def _of_job(self, number: int) -> list[tuple[int, str]]:
        script = self._script[0]
        return [(p, line) for p, line in processes(self.lan.node(number)) if script in line]

    # ------------------------------------------------------------ what may become of them

    def kill(self, number: int) -> None:
        """SIGKILL to the agent and its workers, as when the machine's memory is out."""
        self.signal(number, signal.SIGKILL)
        self.dead.add(number)

    def signal(self, number: int, what: signal.Signals) -> None:
        workers = self.workers(number)
        self.running[number].process.send_signal(what)
        for pid in workers:
            os.kill(pid, what)

    def cut(self, number: int) -> None:
        """Its cable is pulled."""
        self.lan.cut(number)
        self.dead.add(number)

    def until_one_ended(self) -> int:
        """Wait for the end of any of them: its node, which counts as dead from then on."""
        poll, numbers = select.poll(), {}
        with contextlib.ExitStack() as stack:
            for number, running in self.alive().items():
                pidfd = os.pidfd_open(running.process.pid)
                stack.callback(os.close, pidfd)
                poll.register(pidfd, select.POLLIN)
                numbers[pidfd] = number
            ended = poll.poll(PATIENCE_S * 1000)
        assert ended, "none has ended"
        dead = numbers[ended[0][0]]
        self.dead.add(dead)
        return dead

    # ------------------------------------------------------------ what they did

    def steps(self, number: int) -> list[Step]:
        found = re.findall(r"did (\d+) at ([\d.]+)\n", self.running[number].out)
        return [Step(int(number), float(at)) for number, at in found]

    def rounds(self, number: int) -> list[tuple[int, int, int]]:
        """(step, rank, size) with which each round began on that node."""
        text = self.running[number].out
        found = re.findall(r"begins at (\d+), rank (\d+) of (\d+) by ", text)
        return [(int(step), int(rank), int(size)) for step, rank, size in found]

    def until_round(self, size: int, rounds: int) -> None:
        """Every live worker has done a step in its node's round number `rounds` at the least, of
        that size."""
        for number, running in self.alive().items():
            running.until_true(lambda number=number: self.in_round(number, size, rounds))  # type: ignore[misc]

    def in_round(self, number: int, size: int, rounds: int) -> bool:
        """Has its worker done a step in its node's round number `rounds`, or a later one, of that
        size?"""
        begun = self.rounds(number)
        last = self.running[number].out.rpartition("begins at ")[2]
        return len(begun) >= rounds and begun[-1][2] == size and "did " in last

    def pause_s(self) -> float:
        """From the last step of the round before to the first of the newest one, on whoever was in
        both: the longest."""
        found = []
        for number in self.alive():
            old_rounds, _, new = self.running[number].out.rpartition("begins at ")
            before = [float(at) for at in re.findall(r"did \d+ at ([\d.]+)\n", old_rounds)]
            after = [float(at) for at in re.findall(r"did \d+ at ([\d.]+)\n", new)]
            if before and after:
                found.append(after[0] - before[-1])
        return max(found, default=0.0)  # nobody was in two

    def enough(self) -> dict[int, Done]:
        """End the training; what became of the agents that live."""
        (self.folder / "enough").touch()
        return {number: running.end() for number, running in self.alive().items()}

    def linger(self, number: int) -> Path:
        """From now on that node's workers stay after the training, until the file is gone."""
        path = self.folder / f"linger-{self.lan.node(number).name}"
        path.touch()
        return path
