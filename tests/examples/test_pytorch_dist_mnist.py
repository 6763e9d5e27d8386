"""`examples/pytorch-dist-mnist`: the others come from a launcher, a scheduler or mingled."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.lan.conftest import MakeLan
from tests.lan.helpers import Running, nothing_left

from .documented import commands, copy_of, known_hosts, needs, typed

pytestmark = [pytest.mark.lan, pytest.mark.torch]

EXAMPLE = "pytorch-dist-mnist"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    needs("torch", "sklearn")
    return copy_of(EXAMPLE, tmp_path)


def learned(running: list[Running], source: str) -> str:
    """All end well, and exactly one of them, rank 0, reports. What it says."""
    outs = [one.well().out for one in running]
    (said,) = [out for out in outs if out]
    assert f"{len(running)} processes, found by {source}" in said
    losses = [float(line.split()[-1]) for line in said.splitlines() if "  loss " in line]
    assert losses[-1] < losses[0] / 5
    assert accuracy(said) > 0.9
    return said


def accuracy(said: str) -> float:
    (line,) = [line for line in said.splitlines() if line.startswith("test accuracy")]
    return float(line.split()[-1].removesuffix("%")) / 100


def test_the_launchers_variables(lan: MakeLan, folder: Path) -> None:
    both = lan(nodes=2)
    line = commands(EXAMPLE, "mingle-wait --job mnist --world-size 2 -- python dist.py")[0]
    running = [typed(node, line, folder) for node in both.nodes]
    said = learned(running, "the launcher's variables")
    assert "1437 images" in said
    nothing_left(both)


def test_mingled_finds_them_by_the_jobs_name(lan: MakeLan, folder: Path) -> None:
    both = lan(nodes=2)
    (line,) = [c for c in commands(EXAMPLE, "python dist.py --job mnist") if "docker" not in c]
    running = [typed(node, line, folder) for node in both.nodes]
    learned(running, "mingled, job mnist")
    assert any("job mnist: 1/2 here" in one.err for one in running)
    nothing_left(both)


def test_a_scheduler_that_knows_no_address(lan: MakeLan, folder: Path) -> None:
    both = lan(nodes=2)
    running = [
        typed(node, "python dist.py", folder, sing(rank, JOB_NAME="bert"))
        for node, rank in zip(both.nodes, (1, 0), strict=True)
    ]
    learned(running, "mingled, job bert")
    assert "test accuracy" in running[1].out  # SING_RANK 0 it is


def test_a_schedulers_variables(lan: MakeLan, folder: Path, tmp_path: Path) -> None:
    both = lan(nodes=2)
    known_hosts(both, tmp_path)
    lines = commands(EXAMPLE, "SING_MASTER_ADDR")
    assert both.node(1).address in lines[0]
    running = [typed(node, line, folder) for node, line in zip(both.nodes, lines, strict=True)]
    learned(running, "SING_*; rank 0 is at 10.77.0.1")


def test_rank_0s_name_follows_from_the_job(lan: MakeLan, folder: Path, tmp_path: Path) -> None:
    both = lan(nodes=2)
    known_hosts(both, tmp_path, {"bert-0.demo-project.svc": both.node(2).address})
    given = {"JOB_NAME": "bert", "HOSTNAME_SUFFIX": "demo-project.svc"}
    running = [
        typed(node, "python dist.py", folder, sing(rank, **given))
        for node, rank in zip(both.nodes, (1, 0), strict=True)
    ]
    learned(running, "SING_*; rank 0 is at bert-0.demo-project.svc")


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_from_a_folder(lan: MakeLan, folder: Path, tmp_path: Path, packed: bool) -> None:
    both = lan(nodes=2)
    (line,) = [c for c in commands(EXAMPLE, "MNIST_DIR=/data/mnist") if "docker" not in c]
    write_mnist(tmp_path / "mnist", packed)
    line = line.replace("/data/mnist", str(tmp_path / "mnist"))
    said = learned([typed(node, line, folder) for node in both.nodes], "the launcher's variables")
    assert "3000 images to train on, 500 to test" in said


def test_alone_it_says_so(lan: MakeLan, folder: Path) -> None:
    done = typed(lan(nodes=1).node(1), "python dist.py --epochs 2", folder).well()
    assert "1 processes, found by nobody (no job is named: alone)" in done.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--data .", "has no train-images-idx3-ubyte, gzipped or not: is it MNIST?"),
        ("--data broken", "is no IDX file of 3 dimensions, or is cut off"),
        ("--job bert", "job bert: how many processes? Add --world-size N"),
    ],
)
def test_what_cannot_work_is_said(lan: MakeLan, folder: Path, flags: str, words: str) -> None:
    broken = folder / "broken"
    broken.mkdir()
    (broken / "train-images-idx3-ubyte").write_bytes(bytes((0, 0, 8, 3)) + bytes(11) + b"\5\1")
    done = typed(lan(nodes=1).node(1), f"python dist.py {flags}", folder).end()
    assert done.code == 1
    assert words in done.err


def sing(rank: int, **more: str) -> dict[str, str]:
    values = {"RANK": str(rank), "WORLD_SIZE": "2", **more}
    return {f"SING_{name}": value for name, value in values.items()}


def write_mnist(folder: Path, packed: bool) -> None:
    """The digits, thrice as large, in MNIST's files: 3000 of 28 x 28 pixels, and 500 others."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.pad(np.kron(bunch.images * 15, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    folder.mkdir()
    for part, chosen in (("train", np.arange(3000) % 1297), ("t10k", np.arange(1297, 1797))):
        for name, values in (("images", images[chosen]), ("labels", bunch.target[chosen])):
            sizes = np.array(values.shape, ">u4").tobytes()
            data = bytes((0, 0, 8, values.ndim)) + sizes + values.astype(np.uint8).tobytes()
            path = folder / f"{part}-{name}-idx{values.ndim}-ubyte"
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data))
            else:
                path.write_bytes(data)
