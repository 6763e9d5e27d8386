"""`examples/image-classifier`: a machine is lost in the middle, and each has a disk of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from mingled.lab import Lan
from tests.lan.conftest import MakeLan, absent
from tests.lan.helpers import PATIENCE_S, ended, nothing_left, processes

from .documented import commands, copy_of, needs, typed

pytestmark = [pytest.mark.lan, pytest.mark.torch]

EXAMPLE = "image-classifier"

EVENTS = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
tags = events.Tags()["scalars"]
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags}))
"""


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    needs("torch", "sklearn", "tensorboard")
    return [copy_of(EXAMPLE, tmp_path / f"disk{number}") for number in (1, 2, 3)]


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard would show of these runs: values by step, by tag."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EVENTS, folder / "runs"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read = msgspec.json.decode(done.stdout, type=dict[str, list[tuple[int, float]]])
    for tag, values in read.items():
        assert len(values) == len({step for step, _ in values}), f"{tag} has a step twice"
    return {tag: dict(values) for tag, values in read.items()}


@pytest.mark.parametrize("victim", ["rank 0 is killed", "a follower loses its power"])
def test_the_rest_resumes_from_the_checkpoint(
    lan: MakeLan, folders: list[Path], victim: str
) -> None:
    three = lan(nodes=3)
    line = next(c for c in commands(EXAMPLE, "mingle-wait --job course") if "tmux" not in c)
    runs = {n: typed(three.node(n), line, folders[n - 1]) for n in (1, 2, 3)}
    for running in runs.values():
        running.until("this is node rank")
    (leader,) = [n for n, running in runs.items() if "this is node rank 0 of 3" in running.err]
    runs[leader].until("starts anew with 3 processes", "epoch  3/30", kind="out")

    if victim == "rank 0 is killed":
        dies = leader
        kill_all(three, dies)
    else:
        dies = max(set(runs) - {leader})
        three.node(dies).kill()
    last = runs.pop(dies)
    last.end()
    for running in runs.values():
        running.until("joins again: restart 1 of 3")
    ends = {n: running.well() for n, running in runs.items()}

    (new_leader,) = [n for n, done in ends.items() if "this is node rank 0 of 2" in done.err]
    resumed = ends[new_leader].out.split("resumes with 2 processes after epoch ")[1]
    epoch, step = (int(word) for word in re.findall(r"^(\d+), step (\d+),", resumed)[0])
    # The step is that of the last epoch that was finished, and it goes on from there.
    first_part = last.out if dies == leader else ends[new_leader].out.split("resumes with")[0]
    did = [(int(e), int(s)) for e, s in re.findall(r"epoch +(\d+)/30  step (\d+)", first_part)]
    assert did[-1] in ((epoch, step), (epoch - 1, step - did[0][1])), (did, resumed)
    then = [int(e) for e in re.findall(r"epoch +(\d+)/30", resumed)]
    assert then == list(range(epoch + 1, 31))
    assert float(re.findall(r"test accuracy ([\d.]+)%", resumed)[0]) > 90

    before, after = scalars(folders[leader - 1]), scalars(folders[new_leader - 1])
    together = before["loss/step"] | after["loss/step"]
    assert min(after["loss/step"]) == (step + 1 if new_leader != leader else 1)
    assert sorted(together) == list(range(1, max(together) + 1))
    assert len(before["accuracy"] | after["accuracy"]) == 30
    if not three.node(dies).alive:
        three.node(dies).boot()
    nothing_left(three)


def kill_all(lan: Lan, number: int) -> None:
    """SIGKILL to mingle-wait, torchrun and its worker on that node, in this order."""
    lines = {pid: line for pid, line in processes(lan.node(number)) if "train.py" in line}
    for pid in sorted(lines, key=lambda pid: "mingle-wait" not in lines[pid]):
        os.kill(pid, signal.SIGKILL)


def test_in_tmux_it_goes_on_without_a_terminal(lan: MakeLan, folders: list[Path]) -> None:
    both = lan(nodes=2)
    (line,) = commands(EXAMPLE, "tmux new -d")
    if typed(both.node(1), "command -v tmux", folders[0]).end().code:
        absent("The command `tmux` is missing: install it with `apt install tmux`.")
    for node, folder in zip(both.nodes, folders, strict=False):
        typed(node, line, folder).well()
    for node in both.nodes:  # its server ends with what runs in it
        assert ended(pid for pid, words in processes(node) if "tmux" in words)
    logs = [(folder / "train.log").read_text() for folder in folders[:2]]
    assert all("this is node rank" in log for log in logs)
    assert sum("test accuracy" in log for log in logs) == 1
