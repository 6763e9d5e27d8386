"""Counting processes, on a made-up root directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mingled.errors import BadInput
from mingled.net.gpus import gpus, processes

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def nvidia(root: Path, count: int, *, devices: int | None = None, told: bool = True) -> Path:
    for minor in range(count):
        folder = root / f"proc/driver/nvidia/gpus/0000:{minor:02x}:00.0"
        folder.mkdir(parents=True)
        if told:
            (folder / "information").write_text(
                f"Model: \t\t H200\nGPU UUID: \t GPU-{minor}abc-77\nDevice Minor: \t {minor}\n"
            )
    for minor in range(count if devices is None else devices):
        (root / "dev").mkdir(exist_ok=True)
        (root / f"dev/nvidia{minor}").touch()
    return root


def amd(root: Path, simds: list[int], *, devices: int) -> Path:
    for at, simd_count in enumerate(simds):
        folder = root / f"sys/class/kfd/kfd/topology/nodes/{at}"
        folder.mkdir(parents=True)
        minor = 127 + at if simd_count else 0
        (folder / "properties").write_text(f"simd_count {simd_count}\ndrm_render_minor {minor}\n")
    (root / "dev/dri").mkdir(parents=True)
    for at in range(1, devices + 1):
        (root / f"dev/dri/renderD{127 + at}").touch()
    return root


def test_numbers_and_cpus(tmp_path: Path) -> None:
    assert processes("4", env={}, root=tmp_path) == 4
    assert processes("cpu", env={}, root=tmp_path) == CPUS
    assert processes("auto", env={}, root=tmp_path) == CPUS


@pytest.mark.parametrize("word", ["0", "-1", "4097", "9" * 5000, "xpu", "two", "", "1.5", "GPU"])
def test_what_is_no_count(word: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--nproc-per-node"):
        processes(word, env={}, root=tmp_path)


def test_no_gpu_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="use --nproc-per-node cpu, or give the number"):
        processes("gpu", env={}, root=tmp_path)
    with pytest.raises(BadInput, match=r"CUDA_VISIBLE_DEVICES= hides every GPU .* unset it"):
        processes("gpu", env={"CUDA_VISIBLE_DEVICES": ""}, root=nvidia(tmp_path, 2))


@pytest.mark.parametrize(
    ("listed", "count"),
    [
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("0", 1),
        ("2, 0", 2),
        ("0,-1,1", 1),
        ("0,9,1", 1),
        ("0,0", 0),
        ("0,9,0", 0),
        ("1gpu2,2ampere", 2),
        ("none", 0),
        ("GPU-0abc-77,GPU-3abc-77", 2),
        ("GPU-0,GPU-1", 2),
        ("GPU-", 0),
        ("GPU-0,GPU-0abc", 0),
        ("GPU-0,GPU-9,GPU-1", 1),
        ("MIG-5c1f,MIG-77aa", 1),
    ],
)
def test_nvidia_as_cuda_would_see_it(listed: str | None, count: int, tmp_path: Path) -> None:
    env = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    nvidia(tmp_path, 4)
    assert gpus(env, tmp_path) == count
    assert processes("auto", env=env, root=tmp_path) == (count or CPUS)


def test_a_container_counts_the_device_files_it_was_given(tmp_path: Path) -> None:
    assert gpus({}, nvidia(tmp_path, 8, devices=2)) == 2


def test_a_driver_that_tells_little_is_believed(tmp_path: Path) -> None:
    nvidia(tmp_path, 2, told=False)
    assert gpus({}, tmp_path) == 2
    assert gpus({"CUDA_VISIBLE_DEVICES": "GPU-x"}, tmp_path) == 1


@pytest.mark.parametrize(
    ("env", "count"),
    [
        ({}, 2),
        ({"HIP_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0,1"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "1"}, 1),
        ({"ROCR_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "0"}, 1),
        ({"HIP_VISIBLE_DEVICES": ""}, 0),
    ],
)
def test_amd_as_hip_would_see_it(env: dict[str, str], count: int, tmp_path: Path) -> None:
    amd(tmp_path, [0, 304, 304], devices=2)
    assert gpus(env, tmp_path) == count


def test_amd_in_a_container(tmp_path: Path) -> None:
    assert gpus({}, amd(tmp_path, [0, 304, 304, 304], devices=1)) == 1
