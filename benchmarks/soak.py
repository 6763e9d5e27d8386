"""Rendezvous without end on one set of daemons, with kills: does anything stay behind?

    python -m benchmarks.soak [--rendezvous 2000] [--seed 0]

A third of them lose a participant's process, while it waits or after the release; now and then the
last node's daemon is killed and started again. Some quarter of an hour for 2,000.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks import agent
from benchmarks.fleet import BIN, Fleet, start
from mingled.errors import MingleError

NODES = 3

KILLED_SHARE = 0.2
KILLED_EARLY_SHARE = 0.13

DAEMON_KILLED_EVERY = 97
"""Rendezvous from one kill of a daemon to the next; no multiple of SAMPLE_EVERY."""

SAMPLE_EVERY = 50

SETTLE_S = 30.0
"""For what ends by itself to end: a goodbye, a link's last word, an abandoned handshake."""

WARM_SHARE = 0.1
"""Of the samples, not counted: Python's own caches fill at first."""

EMPTY = ("jobs", "seats", "links", "handshakes", "adverts published", "ports kept")
"""What a daemon holds for jobs; none of it is left where none runs."""

NO_MORE = ("descriptors", "tasks", "clients", "processes watched")
"""... and of these no more than there were at first."""

SLOPES = {"resident KiB": "KiB", "descriptors": "descriptors", "tasks": "tasks"}


class Sample(NamedTuple):
    """One daemon's counts after so many rendezvous."""

    rendezvous: int
    counts: dict[str, int]


class Soaked(NamedTuple):
    """What was done, and the samples of the daemons that lived from the beginning to the end."""

    rendezvous: int
    kills: int
    daemon_kills: int
    samples: dict[str, list[Sample]]
    namespaces: int  #: of the nodes' networks, with a process in them once all has ended

    def slope(self, key: str) -> float:
        """The steepest daemon's, by least squares, for 1,000 rendezvous."""
        slopes = []
        for samples in self.samples.values():
            warm = samples[int(len(samples) * WARM_SHARE) :]
            if len(warm) > 1:
                at = [float(sample.rendezvous) for sample in warm]
                had = [float(sample.counts[key]) for sample in warm]
                slopes.append(statistics.linear_regression(at, had).slope * 1_000)
        return max(slopes, default=0.0)

    def leaks(self) -> list[str]:
        """What the last sample has that should not be there; a sentence each."""
        found = []
        for name, samples in self.samples.items():
            first, last = samples[0].counts, samples[-1].counts
            found += [f"{name}: {last[key]} {key} left" for key in EMPTY if last[key]]
            found += [
                f"{name}: {last[key]} {key}, {first[key]} at first"
                for key in NO_MORE
                if last[key] > first[key]
            ]
        if self.namespaces:
            found.append(f"{self.namespaces} network namespaces left")
        return found


def soak(count: int, seed: int = 0) -> Soaked:
    """Kills come in an order that `seed` gives."""
    chance = random.Random(seed)
    kills = daemon_kills = 0
    with Fleet(NODES) as fleet:
        networks = {
            Path(f"/proc/{node.holder.pid}/ns/net").stat().st_ino for node in fleet.lan.nodes
        }
        lasting = fleet.lan.nodes[:-1]
        samples = {node.name: [Sample(0, settled(fleet, n))] for n, node in enumerate(lasting)}
        for number in range(1, count + 1):
            kills += rendezvous(fleet, chance)
            if number % DAEMON_KILLED_EVERY == 0:
                restart(fleet, NODES - 1)
                daemon_kills += 1
            if number % SAMPLE_EVERY == 0 or number == count:
                for index, node in enumerate(lasting):
                    had = samples[node.name]
                    had.append(Sample(number, settled(fleet, index, had[0].counts)))
    return Soaked(count, kills, daemon_kills, samples, len(networks & namespaces()))


def rendezvous(fleet: Fleet, chance: random.Random) -> int:
    """All join, are released, and leave or are killed. How many were killed."""
    job, size = fleet.job(), len(fleet)
    fate, victim = chance.random(), chance.randrange(size)
    words: dict[str, Any] = {"job": job, "size": size, "rank": None}
    early = fate < KILLED_EARLY_SHARE
    late = not early and fate < KILLED_EARLY_SHARE + KILLED_SHARE
    others = [each for each in fleet.agents if each is not fleet.agents[victim]]
    if early:  # while it waits with another one
        fleet.agents[victim].order("victim", **words)
        others[0].order("join", **words)
        others[0].hear_here(2)
        fleet.agents[victim].order("die")
        fleet.agents[victim].hear("killed")
        others[1].order("join", **words)
        fleet.agents[victim].order("join", **words)
    else:
        fleet.agents[victim].order("victim" if late else "join", **words)
        for each in others:
            each.order("join", watch=late, **words)
    for each in fleet.agents:
        each.hear("end")
    if late:
        fleet.agents[victim].order("die")
        fleet.agents[victim].hear("killed")
        for each in others:
            each.hear("lost")
    for each in others if late else fleet.agents:
        each.order("leave")
        each.hear("left")
    return early + late


def restart(fleet: Fleet, index: int) -> None:
    """Kill the daemon of a node, and start another."""
    fleet.daemons[index].kill()
    fleet.daemons[index].wait()
    command = [str(BIN / "mingled"), "--socket", str(agent.SOCKET), "--log-level", "error"]
    fleet.daemons[index] = start(fleet.lan.nodes[index], *command)
    fleet.agents[index].order("daemon")
    fleet.agents[index].hear("up")


def settled(fleet: Fleet, index: int, first: dict[str, int] | None = None) -> dict[str, int]:
    """What the daemon of a node holds once nothing is under way, or SETTLE_S later. `first`: what
    it held before anything was."""
    until = time.monotonic() + SETTLE_S
    while True:
        counts = counted(fleet, index)
        idle = not any(counts[key] for key in EMPTY)
        back = first is None or all(counts[key] <= first[key] for key in NO_MORE)
        if (idle and back) or time.monotonic() > until:
            return counts
        time.sleep(0.1)


def counted(fleet: Fleet, index: int) -> dict[str, int]:
    done = fleet.lan.nodes[index].run([str(BIN / "mingle"), "status", "--json"], check=True)
    reports = json.loads(done.stdout)
    if len(reports) != 1:
        raise MingleError(f"{len(reports)} daemons answer on {fleet.lan.nodes[index].name}")
    return dict(reports[0]["counts"])


def namespaces() -> set[int]:
    """Network namespaces with a process in them, by inode."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(path.stat().st_ino)
        except OSError:  # it has just ended
            continue
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rendezvous", "count", default=2_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Every sample, on stdout.")
def main(count: int, seed: int, as_json: bool) -> None:
    """Hold rendezvous after rendezvous, and say what stays behind."""
    soaked = soak(count, seed)
    if as_json:
        print(json.dumps({n: [s._asdict() for s in each] for n, each in soaked.samples.items()}))
    print(
        f"{soaked.rendezvous} rendezvous of {NODES} nodes, {soaked.kills} processes and "
        f"{soaked.daemon_kills} daemons killed (seed {seed})"
    )
    for key, unit in SLOPES.items():
        print(f"{key}: {soaked.slope(key):+.2f} {unit} for 1,000 rendezvous")
    for name, samples in soaked.samples.items():
        print(f"{name}: {samples[0].counts} at first, {samples[-1].counts} at the end")
    for leak in soaked.leaks() or ["nothing is left behind"]:
        print(leak)


if __name__ == "__main__":
    main()
