"""`examples/jax`: two processes that mingled.jax connects, and two whose launcher has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lan.conftest import MakeLan
from tests.lan.helpers import nothing_left

from .documented import commands, copy_of, known_hosts, needs, typed

pytestmark = pytest.mark.lan


@pytest.mark.parametrize("command", ["python train.py", "mingle-wait"])
def test_two_nodes_train_together(lan: MakeLan, tmp_path: Path, command: str) -> None:
    needs("jax", "sklearn", "mingled.jax")
    both = lan(nodes=2)
    known_hosts(both, tmp_path)
    (line,) = [c for c in commands("jax", "python train.py") if c.startswith(command)]
    running = [typed(node, line, copy_of("jax", tmp_path / node.name)) for node in both.nodes]
    (said,) = [done.out for one in running if "test accuracy" in (done := one.well()).out]
    assert "2 processes, 2 devices (cpu)" in said
    losses = [float(loss) for loss in re.findall(r"epoch .* loss ([\d.]+)", said)]
    assert len(losses) == 12
    assert losses[-1] < losses[0] / 5
    assert float(re.findall(r"test accuracy ([\d.]+)%", said)[0]) > 90
    nothing_left(both)
