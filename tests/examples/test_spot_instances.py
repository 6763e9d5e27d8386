"""`examples/spot-instances`: a node is told to go, goes, and comes back as another one goes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lan.conftest import MakeLan, absent
from tests.lan.helpers import nothing_left

from .documented import EXAMPLES, commands, copy_of, needs, typed, who_says

EXAMPLE = "spot-instances"
UNIT = EXAMPLES / EXAMPLE / "spot.service"


def started() -> str:
    """The unit's command, without the folder it is in."""
    (line,) = [text for text in UNIT.read_text().splitlines() if text.startswith("ExecStart=")]
    return line.removeprefix("ExecStart=/opt/mingled/bin/")


def test_unit_and_readme_start_the_same() -> None:
    assert commands(EXAMPLE, "mingle-wait --job spot") == [started()]


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        absent("The command `systemd-analyze` is missing: install it with `apt install systemd`.")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/mingled/bin/mingle-wait", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert UNIT.name not in done.stderr


@pytest.mark.lan
@pytest.mark.torch
def test_a_preempted_node_comes_back(lan: MakeLan, tmp_path: Path) -> None:
    needs("torch", "sklearn")
    three = lan(nodes=3, hostname="spot{n}")
    disks = {n: copy_of(EXAMPLE, tmp_path / f"disk{n}") for n in (1, 2, 3)}
    runs = {n: typed(three.node(n), f"exec {started()}", disks[n]) for n in (1, 2, 3)}
    for running in runs.values():
        running.until("this is node rank")
    (first,) = [n for n, running in runs.items() if "this is node rank 0 of 3" in running.err]
    runs[first].until("3 processes begin at step 0", "step 50/1200", kind="out")

    # The machine of rank 0 is shut down: SIGTERM, then no power.
    runs[first].process.terminate()
    gone = runs.pop(first).end()
    assert gone.code not in (0, 137)
    three.node(first).kill()
    kept = int(re.findall(r"a node is to go: kept step (\d+)", gone.out)[0])
    for running in runs.values():
        running.until("this is node rank", times=2)
    (second,) = [n for n, running in runs.items() if "this is node rank 0 of 2" in running.err]
    runs[second].until(f"2 processes begin at step {kept}, kept by spot", kind="out")

    # It is back, and waits for its turn, which comes as another one has to go.
    three.node(first).boot()
    runs[first] = typed(three.node(first), f"exec {started()}", disks[first])
    runs[first].until("round 2 has run for")
    runs[second].process.terminate()
    gone = runs.pop(second).end()
    then_kept = int(re.findall(r"a node is to go: kept step (\d+)", gone.out)[0])
    assert kept < then_kept < 1200
    ends = {n: running.well() for n, running in runs.items()}
    (said,) = [done.out for done in ends.values() if "test accuracy" in done.out]
    assert f"2 processes begin at step {then_kept}, kept by spot" in said
    assert float(re.findall(r"test accuracy ([\d.]+)%", said)[0]) > 90
    nothing_left(three)


@pytest.mark.lan
@pytest.mark.torch
def test_with_the_plugin_it_is_taken_in_at_once(lan: MakeLan, tmp_path: Path) -> None:
    needs("torch", "sklearn")
    three = lan(nodes=3, hostname="spot{n}")
    (line,) = commands(EXAMPLE, "torchrun --rdzv-backend mingle --rdzv-id spot")
    disks = {n: copy_of(EXAMPLE, tmp_path / f"disk{n}") for n in (1, 2, 3)}
    runs = {n: typed(three.node(n), f"exec {line}", disks[n]) for n in (1, 2, 3)}
    first = who_says(runs, "3 processes begin at step 0", "step 50/1200")
    runs[first].process.terminate()
    gone = runs.pop(first).end()
    assert gone.code != 0
    three.node(first).kill()
    kept = int(re.findall(r"a node is to go: kept step (\d+)", gone.out)[0])
    second = who_says(runs, f"2 processes begin at step {kept}, kept by spot")

    three.node(first).boot()
    runs[first] = typed(three.node(first), f"exec {line}", disks[first])
    third = who_says(runs, "3 processes begin at step")
    again = int(re.findall(r"3 processes begin at step (\d+)", runs[third].out)[-1])
    # All ranks got SIGTERM for the newcomer's sake, so this step was kept as well.
    assert f"a node is to go: kept step {again}" in runs[second].out
    ends = {n: running.well() for n, running in runs.items()}
    (said,) = [done.out for done in ends.values() if "test accuracy" in done.out]
    assert float(re.findall(r"test accuracy ([\d.]+)%", said)[0]) > 90
    nothing_left(three)
