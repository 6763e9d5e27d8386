"""What a daemon costs while no job waits."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.fleet import Fleet, start
from benchmarks.result import Result, result
from mingled.lab import Process

WAKES_EVERY_S = 5.0
"""Of an idle daemon, one with another: every 10 s for itself, every 10 s for the mDNS library."""

QUIET_S = 16.0
"""What jobs leave is forgotten by then: goodbyes, links' last words, realms."""

_LIBRARIES = f"""
import asyncio, zeroconf
async def idle():
    while True:
        await asyncio.sleep({WAKES_EVERY_S})
print(flush=True)
asyncio.run(idle())
"""


def idle(fleet: Fleet, watch_s: float, settle_s: float) -> list[Result]:
    """Memory, CPU per minute and packets of idle daemons, over `watch_s`."""
    libraries = start(fleet.lan.node(1), sys.executable, "-c", _LIBRARIES)
    assert libraries.stdout is not None
    libraries.stdout.readline()
    fleet.settle(settle_s)
    time.sleep(QUIET_S)
    watched = [*fleet.daemons, libraries]
    with fleet.lan.capture(len(fleet), "not arp and not icmp6") as seen:
        before = [_cpu_s(process) for process in watched]
        since = time.monotonic()
        time.sleep(watch_s)
        after = [_cpu_s(process) for process in watched]
        minutes = (time.monotonic() - since) / 60
    spent_ms = [(b - a) * 1000 / minutes for a, b in zip(before, after, strict=True)]
    against = "python that has imported asyncio and zeroconf"
    results = [
        result(
            f"idle-{name}",
            f"idle daemon: {what}",
            _memory_mb(fleet.daemons, key),
            unit="MB",
            against=(against, _memory_mb([libraries], key)),
            goal=("median", limit),
        )
        for name, what, key, limit in (
            ("rss", "resident memory", r"Rss", 50.0),
            ("private", "of which its own", r"Private_\w+", 40.0),
        )
    ]
    libraries.terminate()
    return [
        *results,
        result(
            "idle-cpu",
            "idle daemon: CPU",
            spent_ms[:-1],
            unit="ms/min",
            against=("the same that wakes as often, and does nothing", spent_ms[-1:]),
            goal=("median", 5.0),
            note=f"watched for {watch_s:g} s",
        ),
        result(
            "idle-packets",
            f"packets among {len(fleet)} idle daemons",
            [float(len(seen))],
            unit="packets",
            goal=("median", 0.0),
            note=f"in {watch_s:g} s, {settle_s:g} s after their start",
        ),
    ]


def _cpu_s(process: Process) -> float:
    """Seconds on a CPU, all threads; by the scheduler's count, as ticks are too coarse."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _memory_mb(processes: Iterable[Process], key: str) -> list[float]:
    found = []
    for process in processes:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        sizes = re.findall(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
        found.append(sum(map(int, sizes)) / 1024)
    return found


def importing(module: str) -> list[tuple[str, float]]:
    """Milliseconds of `import module` by top-level package, the slowest first."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"],
        capture_output=True,
        text=True,
        check=True,
    )
    spent: dict[str, float] = {}
    for line in done.stderr.splitlines():
        match = re.fullmatch(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line)
        if match:
            name = match[2].partition(".")[0]
            home = name if name not in sys.stdlib_module_names else "standard library"
            spent[home] = spent.get(home, 0.0) + int(match[1]) / 1000
    return sorted(spent.items(), key=lambda item: -item[1])
