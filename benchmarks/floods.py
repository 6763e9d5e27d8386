"""How late a daemon's loop is while it is flooded, and what a flood costs in CPU time and memory.

    python -m benchmarks.floods [--only NAME]...

A sealed job of two nodes runs; a third node is the attacker's. Lag is measured twice: by the daemon
itself (`mingle status --json`), and from outside, by the time that its answer to a status request
takes, beside that of a quiet minute. Some two minutes.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.fleet import Fleet, start
from benchmarks.lossy import quantile
from mingled.lab import Process
from tests.lan import attacks

LAG_MAX_MS = 50.0

LINK_PORT = 29_490
SOCKET = "/run/mingled/control.sock"

PROBE_EVERY_S = 0.01

HOLD_S = 2.0
"""The attacker keeps open what it has opened for so long."""

PROBE = f"""
import json, socket, sys, time
sock = socket.socket(socket.AF_UNIX)
sock.connect({SOCKET!r})
lines = sock.makefile("rb")
while True:
    start = time.monotonic()
    sock.sendall(b'{{"type":"status"}}\\n')
    report = json.loads(lines.readline())
    took = time.monotonic() - start
    said = {{"took": took, "lag": report["lag"], "counts": report["counts"]}}
    print(json.dumps(said), flush=True)
    time.sleep({PROBE_EVERY_S})
"""


BYSTANDER = """
import asyncio
async def main():
    loop, worst = asyncio.get_running_loop(), 0.0
    while True:
        due = loop.time() + 0.05
        await asyncio.sleep(0.05)
        worst = max(worst, loop.time() - due)
        print(worst, flush=True)
asyncio.run(main())
"""
"""A loop that does nothing, on the same cores: what is late there is the machine's."""


class Attack(NamedTuple):
    node: int  #: of the attacker
    words: tuple[str, ...]  #: of tests/lan/attacks.py; "LABEL" is the sealed job's


ATTACKS = {
    "nothing, for comparison": None,
    "10,000 garbage datagrams": Attack(3, ("garbage", "10.77.0.1", "10000")),
    "12,000 forged services": Attack(3, ("services", "12000", "")),
    "... a quarter of the job's own label": Attack(3, ("services", "12000", "LABEL")),
    "1,000 half-open connections": Attack(3, ("connections", "10.77.0.1", str(LINK_PORT), "1000")),
    "1,000 local clients": Attack(1, ("clients", SOCKET, "1000")),
}


class Probe:
    """A script on a node, and each line that it prints."""

    def __init__(self, fleet: Fleet, script: str) -> None:
        self.said: list[Any] = []
        self._process = start(fleet.lan.node(1), sys.executable, "-c", script)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._process.kill()
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(json.loads(line))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--only", multiple=True, type=click.Choice(list(ATTACKS)), help="Only this, or these."
)
def main(only: tuple[str, ...]) -> None:
    """Flood a daemon."""
    head = "flood|answer p50 / p99 / max|over 50 ms|own lag|a bystander's|CPU|memory|names, adverts"
    print(f"| {head.replace('|', ' | ')} |\n{'|---' * 8}|", flush=True)
    for name in only or ATTACKS:
        with Fleet(3) as fleet:
            print(measured(fleet, name, ATTACKS[name]), flush=True)


def measured(fleet: Fleet, name: str, attack: Attack | None) -> str:
    """One line of the table."""
    for rank, each in enumerate(fleet.agents[:2]):
        each.order("hold", job="sealed", size=2, rank=rank)
    for each in fleet.agents[:2]:
        each.hear("end")
    daemon = fleet.daemons[0]
    probe, bystander = Probe(fleet, PROBE), Probe(fleet, BYSTANDER)
    time.sleep(3.0)  # until the daemon beats fast
    before = probe.said[-1]
    spent_s, quiet = cpu_s(daemon), len(probe.said)
    if attack is None:
        time.sleep(5.0)
    else:
        flood(fleet, attack)
    spent_s = cpu_s(daemon) - spent_s
    probe.close()
    bystander.close()
    during = probe.said[quiet:]
    took_ms = sorted(said["took"] * 1_000 for said in during)
    late_ms = max(said["lag"]["minute_s"] for said in during) * 1_000
    more_mib = max(s["counts"]["resident KiB"] for s in during) - before["counts"]["resident KiB"]
    cells = [
        name,
        " / ".join(f"{quantile(took_ms, share):.1f}" for share in (0.5, 0.99, 1.0)) + " ms",
        f"{sum(t > LAG_MAX_MS for t in took_ms)} of {len(took_ms)}",
        f"{late_ms:.0f} ms",
        f"{bystander.said[-1] * 1_000:.0f} ms",
        f"{spent_s:.1f} s",
        f"{more_mib / 1024:.1f} MiB",
        f"{during[-1]['counts']['names cached']}, {during[-1]['counts']['adverts heard']}",
    ]
    for each in fleet.agents[:2]:
        each.order("leave")
        while "left" not in (said := each.hear_any()):
            if said["gone"] not in ("left", "running"):
                cells.append(f"FALSE: rank {said['rank']} {said['gone']}: {said['reason']}")
    return f"| {' | '.join(cells)} |"


def flood(fleet: Fleet, attack: Attack) -> None:
    node = fleet.lan.node(attack.node)
    words = [label(fleet) if word == "LABEL" else word for word in attack.words]
    attacker = start(node, sys.executable, str(Path(attacks.__file__)), *words)
    assert attacker.stdout is not None
    assert attacker.stdin is not None
    attacker.stdout.readline()
    time.sleep(HOLD_S)
    attacker.stdin.close()
    attacker.wait()


def label(fleet: Fleet) -> str:
    words = [sys.executable, "-m", "mingled.cli.mingle", "status", "--json"]
    (report,) = json.loads(fleet.lan.node(1).run(words, check=True).stdout)
    return str(report["jobs"][0]["label"])


def cpu_s(process: Process) -> float:
    """Seconds on a core, by the scheduler's count."""
    return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]) / 1e9


if __name__ == "__main__":
    main()
