"""Clocks that are wrong, that jump, and that stood still: nothing is decided by the time of day."""

from __future__ import annotations

import sys
from pathlib import Path

from mingled.lab import Node

from .conftest import MakeLan, absent
from .helpers import (
    BIN,
    READY,
    SOCKET,
    STAY,
    Running,
    one_round,
    start,
    until_fates,
    variables,
    wait,
)

YEARS_S = 10 * 365 * 86_400

WRONG = """
import os, time
def wrong(right):
    def said():
        with open(os.environ["WALL_CLOCK"]) as file:
            seconds = int(file.read())
        return right() + seconds * (1 if right is true_s else 10**9)
    return said
true_s = time.time
time.time, time.time_ns = wrong(time.time), wrong(time.time_ns)
"""
"""A `sitecustomize`. There is no other wall clock that mingled reads (tests/test_clocks.py)."""

ASLEEP_S = 86_400

COUNTS = f"""
import time
from mingled.daemon import clock
asleep = clock() - time.monotonic()
assert abs(asleep - {ASLEEP_S}) < 60, asleep
"""


class WallClock:
    """What one node's programs take for the time of day. All other clocks are the machine's."""

    def __init__(self, node: Node, folder: Path) -> None:
        (folder / "sitecustomize.py").write_text(WRONG)
        self._node = node
        self._file = folder / f"{node.name}.clock"
        self.env = {
            "PYTHONPATH": str(folder),
            "WALL_CLOCK": str(self._file),
            "MINGLE_SOCKET": SOCKET,
        }
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """For running programs too, at once."""
        newer = self._file.with_suffix(".new")
        newer.write_text(str(seconds))
        newer.rename(self._file)

    def year(self) -> int:
        script = "import time; print(time.gmtime(time.time()).tm_year)"
        done = self._node.run([sys.executable, "-c", script], env=self.env, check=True)
        return int(done.stdout)


def test_fault_20_wall_clocks_jump_by_ten_years(lan: MakeLan, tmp_path: Path) -> None:
    """And are ten years apart. Nobody's time is over for a jump ahead, and nobody's lasts for ever
    after a jump back."""
    three = lan(nodes=3)
    clocks = {node.number: WallClock(node, tmp_path) for node in three.nodes}
    now = clocks[2].year()
    clocks[1].jump(YEARS_S)
    assert clocks[1].year() - now in (9, 10)
    for node in three.nodes:
        command = (str(BIN / "mingled"), "--socket", SOCKET)
        start(node, *command, env=clocks[node.number].env).until(READY)

    def join(number: int, cmd: tuple[str, ...]) -> Running:
        flags = ("--nnodes", "3", "--node-rank", str(number - 1))
        return wait(three.node(number), "bert", *flags, cmd=cmd, env=clocks[number].env)

    runs = {1: join(1, STAY), 2: join(2, STAY)}
    for running in runs.values():
        running.until("2/3 here")
    for clock in clocks.values():
        clock.jump(2 * YEARS_S)
    runs[3] = join(3, ("sh", "-c", "env -0; cat; exit 5"))
    for running in runs.values():
        running.until("MINGLE_EXPORTED", kind="out")
    assert one_round(three, {n: variables(r.out) for n, r in runs.items()}) == 1
    brief = wait(three.node(2), "other", "--nnodes", "2", env=clocks[2].env, timeout="2s")
    brief.until("1/2 here")
    for clock in clocks.values():
        clock.jump(-YEARS_S)
    assert brief.end().code == 82
    for node in three.nodes:
        until_fates(node, "bert", ["running"] * 3)
    assert runs[3].finish().code == 5
    for number in (1, 2):
        runs[number].until("gpu3 (10.77.0.3, node rank 2) lost just now", "exit 5")
        assert runs[number].err.count(" lost ") == 1
        assert runs[number].finish().code == 0


def test_fault_21_the_daemons_clock_counts_the_time_asleep(lan: MakeLan) -> None:
    """The kernel's monotonic clock does not. A time namespace is a machine that has slept."""
    node = lan(nodes=1).node(1)
    asleep = ("unshare", "--time", "--boottime", str(ASLEEP_S), "--fork")
    done = node.run([*asleep, sys.executable, "-c", COUNTS])
    if "unshare failed" in done.stderr:
        absent(f"this kernel has no time namespaces: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
