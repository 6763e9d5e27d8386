"""torch's own way from the last node to the first collective: mingled's backend beside c10d with
its endpoint typed in, and beside static ranks and addresses."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fleet import BIN, Fleet, Span, start
from benchmarks.result import Result, result
from mingled.lab import Process

HANDLER_SHARE_MAX = 0.1
"""Of c10d's time."""

STATIC_SHARE_MAX = 1.1

PORT_FIRST = 29_400

COLLECTIVE = Path(__file__).with_name("collective.py")

IDLE_S = 0.5
"""Whoever uses next to no CPU for so long is waiting."""

IDLE_SHARE = 0.05

BACKENDS = ("mingle", "c10d", "static")


def handlers(fleet: Fleet, repeat: int) -> list[Result]:
    """`next_rendezvous` alone, in processes that have imported torch: the last node is late."""
    size = len(fleet)
    for each in fleet.agents:
        each.order("torch")
    for each in fleet.agents:
        each.hear("up")
    took: dict[str, list[float]] = {"mingle": [], "c10d": []}
    for turn in range(repeat + 1):
        for backend, times in took.items():
            spans = fleet.last_late(
                "rendezvous",
                late=size - 1,
                backend=backend,
                endpoint=_endpoint(fleet, turn) if backend == "c10d" else "",
                job=fleet.job(),
            )
            fleet.leave()
            if turn:  # the first one imports
                times.append(_after_last(spans, size - 1))
    return [
        result(
            f"next-rendezvous-{size}",
            f"next_rendezvous, last node late, N={size}",
            took["mingle"],
            against=("c10d, endpoint typed", took["c10d"]),
            goal=("ratio", HANDLER_SHARE_MAX),
        )
    ]


def _endpoint(fleet: Fleet, turn: int) -> str:
    """On node 1; another port each time, for each run's store goes on for a while."""
    return f"{fleet.lan.node(1).address}:{PORT_FIRST + turn}"


def _after_last(spans: Sequence[Span], last: int) -> float:
    return (max(span.end for span in spans) - spans[last].start) * 1000


def launches(fleet: Fleet, repeat: int) -> list[Result]:
    """Whole commands: from the launch of the last torchrun to the end of the first all_reduce."""
    size = len(fleet)
    took: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for turn in range(repeat):
        for backend, times in took.items():
            times.append(_launch(fleet, backend, turn) * 1000)
    what = f"last torchrun's launch to the first all_reduce, N={size}"
    return [
        result(
            f"torchrun-{size}",
            what,
            took["mingle"],
            against=("c10d, endpoint typed", took["c10d"]),
            goal=("ratio", 1.0),
        ),
        result(
            f"torchrun-static-{size}",
            what,
            took["mingle"],
            against=("static, all typed", took["static"]),
            goal=("ratio", STATIC_SHARE_MAX),
        ),
    ]


def _launch(fleet: Fleet, backend: str, turn: int) -> float:
    nodes, job = fleet.lan.nodes, fleet.job()
    words = [str(BIN / "torchrun"), "--nnodes", str(len(nodes)), "--nproc-per-node", "1"]
    runs: list[Process] = []
    launched = 0.0
    for index, node in enumerate(nodes):
        if index == len(nodes) - 1:
            _until_idle(runs)
            launched = time.monotonic()
        argv = [*words, *_backend(fleet, backend, index, job, turn), str(COLLECTIVE)]
        # Typed as well: gloo else looks its own host up, finds nothing, and takes loopback.
        typed_ = {} if backend == "mingle" else {"GLOO_SOCKET_IFNAME": node.interface}
        runs.append(start(node, *argv, env=typed_))
    ends = [_said(run) for run in runs]
    for run in runs:
        run.wait()
    return max(ends) - launched


def _backend(fleet: Fleet, backend: str, index: int, job: str, turn: int) -> list[str]:
    endpoint = _endpoint(fleet, turn)
    if backend == "static":
        address, _, port = endpoint.partition(":")
        return ["--node-rank", str(index), "--master-addr", address, "--master-port", port]
    words = ["--rdzv-backend", backend, "--rdzv-id", job]
    if backend == "mingle":
        return words
    return [*words, "--rdzv-endpoint", endpoint, *typed(index, fleet.lan.node(index + 1).address)]


def typed(index: int, address: str) -> list[str]:
    """What c10d is told besides its endpoint: else it asks a DNS, which the lab has not, which host
    that is, and publishes names. The best case for it."""
    host = "true" if index == 0 else "false"
    return ["--rdzv-conf", f"is_host={host}", "--local-addr", address]


def _said(run: Process) -> float:
    """When its worker had the sum. What else is on stdout is the script's."""
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("{"):
            return float(json.loads(line)["end"])
    raise RuntimeError(f"{run.args} ended without a sum")


def _until_idle(runs: Sequence[Process]) -> None:
    """Everybody who was launched has imported torch and waits."""
    while True:
        before = sum(_cpu_s(run.pid) for run in runs)
        time.sleep(IDLE_S)
        spent = sum(_cpu_s(run.pid) for run in runs) - before
        if spent < IDLE_SHARE * IDLE_S and before > 0:
            return


def _cpu_s(pid: int) -> float:
    """What a process has used, in seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100
