"""Whole commands: cold start, `mingle-wait` with the config ready, `import mingled`."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping

from benchmarks.fleet import AHEAD_S, BIN, Agent, Fleet
from benchmarks.result import Result, result
from mingled.client import private_folder

CLICK = [sys.executable, "-c", "import click, socket, json"]
LIBRARIES = [sys.executable, "-c", "import asyncio, click, msgspec, zeroconf"]
TRUE = shutil.which("true") or "/bin/true"
WAIT = str(BIN / "mingle-wait")

_WAITED = re.compile(r"all here after ([0-9.]+) s")


def cold_start(fleet: Fleet, repeat: int) -> list[Result]:
    """Two nodes on which nothing runs: both start a private daemon, find each other, run `true`."""
    took, waits, libraries, ready, alone = [], [], [], [], []
    one = fleet.agents[0]
    for _ in range(repeat):
        argv = [WAIT, "--job", fleet.job(), "--nnodes", str(len(fleet)), "--", TRUE]
        wall_s, errs = _together(fleet, argv)
        took.append(wall_s * 1000)
        found = [match for err in errs if (match := _WAITED.search(err))]
        waits.append(max(float(match[1]) for match in found) * 1000)
        for each in fleet.agents:
            _until_quiet(each)
        libraries.append(_together(fleet, LIBRARIES)[0] * 1000)
        one.order("private", job=fleet.job())
        said = one.hear("end")
        ready.append((said["end"] - said["start"]) * 1000)
        _until_quiet(one)
        said = one.spawn(LIBRARIES)
        alone.append((said["end"] - said["start"]) * 1000)
    what = 'python -c "import asyncio, click, msgspec, zeroconf"'
    return [
        result(
            "cold-start",
            f"cold start of {len(fleet)} nodes: mingle-wait -- true on each",
            took,
            against=(f"{what}, on both at once", libraries),
            goal=("median", 600.0),
        ),
        result(
            "cold-start-wait",
            "of which: from the join to the release",
            waits,
            note="read from what mingle-wait prints, to 10 ms; automatic ranks",
        ),
        result(
            "daemon-start",
            "a private daemon on one node, from its start to its first client",
            ready,
            against=(what, alone),
        ),
    ]


def config_ready(fleet: Fleet, repeat: int) -> list[Result]:
    """`mingle-wait` on a warm daemon with nobody to wait for."""
    # Rank 0 as given: an automatic rank would first look for a leader.
    alone = ["--world-size", "1", "--rank", "0", "--exec", "--", TRUE]
    took = _in_turn(
        fleet.agents[0],
        repeat,
        {
            "ours": lambda: [WAIT, "--job", fleet.job(), *alone],
            "click": lambda: CLICK,
            "true": lambda: [TRUE],
        },
    )
    joins = [fleet.alone() * 1000 for _ in range(repeat)]
    return [
        result(
            "mingle-wait",
            "mingle-wait --exec -- true, config ready, daemon warm",
            took["ours"],
            against=('python -c "import click, socket, json"', took["click"]),
            goal=("ratio", 1.3),
        ),
        result("mingle-wait-join", "of which: from the join to the release", joins),
        result("true", "true, to see what starting a process costs here", took["true"]),
    ]


def import_mingled(fleet: Fleet, repeat: int) -> list[Result]:
    took = _in_turn(
        fleet.agents[0],
        repeat,
        {
            "ours": lambda: [sys.executable, "-c", "import mingled"],
            "bare": lambda: [sys.executable, "-c", "pass"],
        },
    )
    return [
        result(
            "import",
            'python -c "import mingled"',
            took["ours"],
            against=("python -c pass", took["bare"]),
            goal=("excess", 15.0),
        )
    ]


def _until_quiet(agent: Agent) -> None:
    """A private daemon outlives its last lease by some seconds."""
    agent.order("quiet", folder=str(private_folder(create=False)))
    agent.hear("quiet")


def _together(fleet: Fleet, argv: list[str]) -> tuple[float, list[str]]:
    """On all nodes at once: seconds from the first start to the last end, and what was said."""
    at = time.monotonic() + AHEAD_S
    for each in fleet.agents:
        each.order("spawn", argv=argv, at=at)
    said = [each.spawned(argv) for each in fleet.agents]
    wall_s = max(s["end"] for s in said) - min(s["start"] for s in said)
    return wall_s, [s["err"] for s in said]


def _in_turn(
    agent: Agent, repeat: int, commands: Mapping[str, Callable[[], list[str]]]
) -> dict[str, list[float]]:
    """Milliseconds of each, after one of each that does not count (it fills the page cache)."""
    took: dict[str, list[float]] = {name: [] for name in commands}
    for round_ in range(repeat + 1):
        for name, argv in commands.items():
            said = agent.spawn(argv())
            if round_:
                took[name].append((said["end"] - said["start"]) * 1000)
    return took
