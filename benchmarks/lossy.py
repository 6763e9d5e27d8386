"""Rendezvous on networks that lose packets, and a sealed job held on one.

    python -m benchmarks.lossy [--only NAME]... [--rounds N] [--hold MINUTES]

prints the tables of docs/endurance.md; some half an hour for all. Every packet between two nodes
runs the risk once, ARP's too; the loss is of network namespaces (nftables), not of real radio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from benchmarks.fleet import Fleet
from mingled.lab import Lan

NODES = 8

TIMEOUT_S = 60.0
"""Of one rendezvous: who is not released by then counts as failed."""

HOLD_PERCENT = 30


class Case(NamedTuple):
    """How packets get lost, how many rendezvous are tried, and the goals in seconds."""

    lose: Callable[[Lan], None]
    rounds: int
    p50_max_s: float | None = None
    p95_max_s: float | None = None


def one_way(direction: Any) -> Callable[[Lan], None]:
    """Node 1 alone, half of what it sends or is sent."""
    return lambda lan: lan.loss(50, node=1, direction=direction)


CASES = {
    "none": Case(lambda lan: lan.loss(0), 20),
    "10%": Case(lambda lan: lan.loss(10), 40, 0.3, 2.5),
    "30%": Case(lambda lan: lan.loss(30), 100, 1.5, 6.0),
    "50%": Case(lambda lan: lan.loss(50), 40, 3.0, 15.0),
    "one node sends, half is lost": Case(one_way("out"), 20),
    "one node is sent to, half is lost": Case(one_way("in"), 20),
}


class Outcome(NamedTuple):
    """Of one rendezvous: seconds from the first join to the last release, or why it failed."""

    took_s: float
    failures: tuple[str, ...]


def main() -> None:
    command()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice(list(CASES)), help="Only this, or these.")
@click.option("--rounds", type=int, help="Rendezvous of each case, in place of its own number.")
@click.option("--nodes", default=NODES, show_default=True)
@click.option("--hold", "hold_min", type=float, help="Hold a sealed job so many minutes, no table.")
def command(only: tuple[str, ...], rounds: int | None, nodes: int, hold_min: float | None) -> None:
    """Measure rendezvous under loss."""
    if hold_min is not None:
        held(nodes, hold_min)
        return
    print("| loss | rendezvous | completed | p50 | p95 | slowest | goal p50 / p95 | |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in only or CASES:
        case = CASES[name]
        # Daemons of their own: what one network has taught them must not help on the next.
        with Fleet(nodes) as fleet:
            case.lose(fleet.lan)
            outcomes = [attempt(fleet) for _ in range(rounds or case.rounds)]
            fleet.lan.loss(0)
        print(row(name, case, outcomes), flush=True)
        for sentence in sorted({why for outcome in outcomes for why in outcome.failures}):
            print(f"  {name}: {sentence}", flush=True)


def attempt(fleet: Fleet) -> Outcome:
    """Everybody joins at once, without a rank."""
    job = fleet.job()
    at = time.monotonic() + 0.05
    for agent in fleet.agents:
        agent.order("join", job=job, size=len(fleet), rank=None, at=at, timeout_s=TIMEOUT_S)
    said = [agent.hear("end") for agent in fleet.agents]
    fleet.leave()
    took_s = max(s["end"] for s in said) - min(s["start"] for s in said)
    return Outcome(took_s, tuple(s["failed"] for s in said if "failed" in s))


def row(name: str, case: Case, outcomes: list[Outcome]) -> str:
    took = sorted(outcome.took_s for outcome in outcomes if not outcome.failures)
    goal, met = "", ""
    if case.p50_max_s is not None and case.p95_max_s is not None:
        goal = f"{case.p50_max_s:g} / {case.p95_max_s:g} s"
        well = len(took) == len(outcomes) and quantile(took, 0.95) <= case.p95_max_s
        met = "met" if well and statistics.median(took) <= case.p50_max_s else "MISSED"
    times = [f"{value:.2f} s" for value in (quantile(took, 0.5), quantile(took, 0.95), took[-1])]
    cells = [name, str(len(outcomes)), str(len(took)), *times, goal, met]
    return f"| {' | '.join(cells)} |"


def quantile(ordered: list[float], share: float) -> float:
    """The smallest value that at least this share does not exceed."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def held(nodes: int, minutes: float) -> None:
    """One sealed job, and every word about a member's fate while nothing happens to any."""
    with Fleet(nodes) as fleet:
        fleet.lan.loss(HOLD_PERCENT)
        job = fleet.job()
        for agent in fleet.agents:
            agent.order("hold", job=job, size=nodes, rank=None)
        for agent in fleet.agents:
            agent.hear("end")
        time.sleep(minutes * 60)
        news = []
        for agent in fleet.agents:
            agent.order("leave")
            # Who leaves is told to those who are still there: not what this is about.
            while "left" not in (said := agent.hear_any()):
                news.append((agent.node.name, said))
        told = [(name, said) for name, said in news if said["gone"] not in ("left", "running")]
        print(f"{nodes} nodes, {HOLD_PERCENT}% loss, {minutes:g} minutes: {len(told)} false words")
        for name, said in told:
            print(f"  {name}: rank {said['rank']} {said['gone']}: {said['reason']}")


if __name__ == "__main__":
    main()
