"""Real torch where something goes wrong: a link full of gradients, and nodes that die."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from mingled.lab import Lan

from .conftest import MakeLan, absent
from .helpers import BIN, Running, daemons_on, nothing_left, processes, wait

pytestmark = pytest.mark.torch

TRAIN = Path(__file__).with_name("train_steps.py")

LOAD = """
import os, time
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
tensor = torch.ones(4_000_000)  # 16 MB, both ways
until, rounds = time.monotonic() + 25, 0
goes_on = torch.ones(1)
while goes_on.item():
    dist.all_reduce(tensor)
    rounds += 1
    goes_on[0] = float(time.monotonic() < until)
    dist.broadcast(goes_on, 0)
os.write(1, f"reduced {rounds} times\\n".encode())
dist.destroy_process_group()
"""


@pytest.fixture(autouse=True)
def _needs_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        absent("torch is not installed")


def narrow(lan: Lan, rate: str) -> None:
    """Every node sends at most so much, by a queue that is long enough to be felt."""
    for node in lan.nodes:
        words = f"tc qdisc add dev {node.interface} root tbf rate {rate} burst 64kb latency 400ms"
        done = node.run(words.split())
        if done.returncode:
            absent(f"this kernel limits no rate: {done.stderr.strip()}")


def test_a_saturated_link_loses_nobody(lan: MakeLan, tmp_path: Path) -> None:
    both = lan(nodes=2)
    daemons_on(both.nodes)
    narrow(both, "20mbit")
    script = tmp_path / "load.py"
    script.write_text(LOAD)
    cmd = (sys.executable, str(script))
    runs = [wait(node, "bert", "--world-size", "2", cmd=cmd) for node in both.nodes]
    for running in runs:
        done = running.well()
        assert "reduced" in done.out
        assert "lost" not in done.err
        assert "no longer watched" not in done.err


# ---------------------------------------------------------------- torchrun goes on without a node


@pytest.mark.parametrize("victim", ["follower", "rank 0"])
def test_fault_03_torchrun_goes_on_after_a_node_died(
    lan: MakeLan, tmp_path: Path, victim: str
) -> None:
    three = lan(nodes=3)
    torchrun = (str(BIN / "torchrun"), "--nnodes", "2:3", str(TRAIN), str(tmp_path), "bare")
    flags = ("--on-lost", "restart", "--stop-grace", "5s", "--last-call", "5s")
    runs: dict[int, Running] = {}
    for number in (1, 2, 3):
        runs[number] = wait(three.node(number), "bert", *flags, cmd=torchrun)
        runs[number].until(f"{number}/2 to 3 here" if number < 3 else "this is node rank")
    for running in runs.values():
        running.until("begins at 0, ", " of 3 by ", "did 5 at ", kind="out")
    leader = number_of(runs, "this is node rank 0 of 3")
    dies = leader if victim == "rank 0" else max(set(runs) - {leader})
    kill_all(three, dies)
    runs.pop(dies).end()
    for running in runs.values():
        running.until("; joins again: restart 1 of 3")
        running.until(" of 2 by ", kind="out")
    begun = int(re.findall(r"begins at (\d+)", runs[min(runs)].out)[1])
    for running in runs.values():
        running.until(f"did {begun + 5} at ", kind="out")
    (tmp_path / "enough").touch()
    ends = {number: running.well() for number, running in runs.items()}

    (new_leader,) = [n for n, done in ends.items() if "this is node rank 0 of 2" in done.err]
    assert (new_leader == leader) == (victim == "follower")
    assert len({master(running) for running in runs.values()}) == 1
    did = []
    for done in ends.values():
        assert "restart 2 of 3" not in done.err, ends
        rounds = done.out.split("begins at ")[1:]
        assert [int(text.partition(",")[0]) for text in rounds] == [0, begun], done
        steps = [[int(step) for step in re.findall(r"did (\d+)", text)] for text in rounds]
        assert steps[0] == list(range(1, 1 + len(steps[0])))
        assert steps[1] == list(range(begun + 1, begun + 1 + len(steps[1])))
        did.append(len(steps[0]))
    assert max(did) <= begun <= max(did) + 1  # from the last checkpoint
    if victim == "rank 0":
        assert master(runs[new_leader]).partition(":")[0] != f"10.77.0.{dies}"
    nothing_left(three)


def kill_all(lan: Lan, number: int) -> None:
    """SIGKILL to mingle-wait, torchrun and its worker on that node, in this order."""
    lines = {pid: line for pid, line in processes(lan.node(number)) if TRAIN.name in line}
    assert len(lines) == 3, lines
    for pid in sorted(lines, key=lambda pid: "mingle-wait" not in lines[pid]):
        os.kill(pid, signal.SIGKILL)


def number_of(runs: dict[int, Running], text: str) -> int:
    (number,) = [n for n, running in runs.items() if text in running.err]
    return number


def master(running: Running) -> str:
    """MASTER_ADDR:PORT of its last round."""
    found: list[str] = re.findall(r"rank 0 is gpu\d \(([\d.:]+)\)", running.err)
    return found[-1]
