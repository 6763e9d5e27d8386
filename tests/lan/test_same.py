"""Nodes that do not run the same: told before CMD starts, or refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from mingled.lab import Lan

from .conftest import MakeLan
from .helpers import Running, nothing_left, python, wait

TRAIN = 'import sys; sys.stderr.write("training\\n")\n'

IN_PYTHON = """
import sys, warnings, mingled
warnings.simplefilter("always")
sys.argv = ["train.py"]
mingled.join("bert", nnodes=3)
sys.stderr.write("training\\n")
"""


Env = dict[str, str]


class Same(NamedTuple):
    """Three nodes with one script; `old` and `new` are where Python finds another torch first."""

    lan: Lan
    cmd: tuple[str, ...]
    old: Env
    new: Env


@pytest.fixture
def three(lan: MakeLan, tmp_path: Path) -> Same:
    (tmp_path / "train.py").write_text(TRAIN)
    found = []
    for version in ("2.11.0", "2.13.0"):
        (tmp_path / version / "torch").mkdir(parents=True)
        text = f"__version__ = '{version}'\ncuda = '12.8'\n"
        (tmp_path / version / "torch" / "version.py").write_text(text)
        found.append({"PYTHONPATH": str(tmp_path / version)})
    return Same(lan(nodes=3), (sys.executable, str(tmp_path / "train.py")), *found)


def in_order(running: Running, sentence: str) -> None:
    """It ends well, and was told before it began to train."""
    err = running.well().err
    assert sentence in err, err
    assert err.index(sentence) < err.index("training")


def test_a_difference_is_told_on_every_node_before_cmd_starts(three: Same) -> None:
    nodes = three.lan.nodes
    size = ("--nnodes", "3")
    runs = [wait(nodes[0], "bert", *size, cmd=three.cmd, env=three.new)]
    runs.append(wait(nodes[2], "bert", *size, cmd=three.cmd, env=three.old))
    runs.append(python(nodes[1], IN_PYTHON, env=three.new))
    for running in runs:
        in_order(running, "job bert: gpu3 runs torch 2.11.0, the others 2.13.0")
    nothing_left(three.lan)


def test_whoever_differs_is_refused_and_the_others_go_on(three: Same) -> None:
    nodes = three.lan.nodes
    size, same = ("--nnodes", "2"), ("--require-same", "torch,cuda")
    first = wait(nodes[0], "bert", *size, *same, cmd=three.cmd, env=three.new)
    first.until("1/2 here: gpu1")
    for flags in ((), same):
        refused = wait(nodes[2], "bert", *size, *flags, cmd=three.cmd, env=three.old).end()
        assert refused.code == 81
        assert (
            "mingle-wait: job bert: gpu3 (10.77.0.3) runs torch 2.11.0, gpu1 (10.77.0.1) 2.13.0"
        ) in refused.err
        assert "--require-same torch" in refused.err
        assert "training" not in refused.err
    second = wait(nodes[1], "bert", *size, cmd=three.cmd, env=three.new)
    for running in (first, second):
        assert "warning: job bert: gpu3 runs" not in running.well().err
    nothing_left(three.lan)
