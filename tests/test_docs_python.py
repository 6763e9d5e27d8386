"""The programs in docs/python.md run, two processes each, and say what is to be expected."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mingled.frameworks.environment import FAMILY, TUNING
from mingled.frameworks.url import PARAMETERS
from tests.lan.conftest import absent
from tests.unique import job

PAGE = (Path(__file__).parents[1] / "docs/python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
JOB = job("docs")

EXPECTED = (
    r"rank {rank} of 2, store at 127\.0\.0\.1:\d+\n",
    r"rank {rank} of 2, local rank {rank}: sum 3\n",
    r"rank {rank} of 2\n",
    r"pretraining: rank {rank}, round 1\nfinetuning: rank [01], round 2\n",
    rf"job {JOB}: no rendezvous on \S+ within .*: [12] of 1000 were here .*\n",
)
"""What each prints, in the order of the page."""


def test_each_program_is_tested() -> None:
    assert len(BLOCKS) == len(EXPECTED)


@pytest.mark.torch
@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_a_program(number: int) -> None:
    if importlib.util.find_spec("torch") is None:
        absent("torch is not installed")
    program = BLOCKS[number]
    assert "bert" in program
    words = [sys.executable, "-W", "error::UserWarning", "-c", program.replace("bert", JOB)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    outs = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        outs.append(out)
    wanted = [EXPECTED[number].replace("{rank}", str(rank)) for rank in (0, 1)]
    for pattern in wanted:
        assert any(re.fullmatch(pattern, out) for out in outs), (pattern, outs)


def names(heading: str) -> set[str]:
    """In the first column of the table below that heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return set(re.findall(r"`(\w+)`", " ".join(rows)))


def test_the_parameters_of_a_url_are_all_there() -> None:
    assert names("mingle:// URLs") == set(PARAMETERS)


def test_the_variables_for_interfaces_are_all_there() -> None:
    assert names("Interfaces") == {FAMILY[0], *(name for name, _ in TUNING)}


@pytest.mark.torch
def test_the_arguments_of_init_process_group_are_all_there() -> None:
    if importlib.util.find_spec("torch") is None:
        absent("torch is not installed")
    import inspect

    import mingled.torch

    arguments = set(inspect.signature(mingled.torch.init_process_group).parameters)
    assert names("mingled.torch") == arguments - {"backend"}
