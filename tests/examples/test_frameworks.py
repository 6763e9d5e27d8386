"""Lightning, DeepSpeed and Accelerate on two nodes, as their examples' READMEs say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.lan.conftest import MakeLan
from tests.lan.helpers import nothing_left

from .documented import commands, copy_of, needs, typed

pytestmark = [pytest.mark.lan, pytest.mark.torch]


TORCHRUN, LAUNCH = "torchrun train.py", "accelerate launch train.py"

completes_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("mingled.cli.accelerate") is None,
    reason="this mingle-wait does not complete the lines of `accelerate launch`",
)


@pytest.mark.parametrize(
    ("framework", "cmd"),
    [
        ("lightning", TORCHRUN),
        ("deepspeed", TORCHRUN),
        ("accelerate", TORCHRUN),
        pytest.param("accelerate", LAUNCH, marks=completes_accelerate),
    ],
)
def test_two_nodes_train_together(lan: MakeLan, tmp_path: Path, framework: str, cmd: str) -> None:
    needs("torch", "sklearn", framework)
    both = lan(nodes=2)
    (line,) = commands(framework, f"mingle-wait --job digits --nnodes 2 -- {cmd}")
    alike = copy_of(framework, tmp_path)
    running = [typed(node, line, alike) for node in both.nodes]
    ends = [one.well() for one in running]
    (said,) = [done.out for done in ends if "test accuracy" in done.out]  # rank 0 alone
    losses = [float(loss) for loss in re.findall(r"epoch .* loss ([\d.]+)", said)]
    assert len(losses) == 12
    assert losses[-1] < losses[0] / 10
    assert float(re.findall(r"test accuracy ([\d.]+)%", said)[0]) > 90
    assert trains_with_two(framework, said + ends[0].err + ends[1].err)
    nothing_left(both)


def trains_with_two(framework: str, said: str) -> bool:
    """The framework's own word for it: alone, each would learn as well."""
    return {
        "lightning": "Starting with 2 processes",
        "deepspeed": "2 processes on cpu, ZeRO stage 1",
        "accelerate": "2 processes, DistributedType.MULTI_CPU",
    }[framework] in said
