"""The demo's training script, as a user runs it: by torchrun, and with variables set by hand."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "digits" / "train.py"
TIMEOUT_S = 120


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**without_rendezvous(), "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def without_rendezvous() -> dict[str, str]:
    names = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    return {k: v for k, v in os.environ.items() if k not in names and not k.startswith("PET_")}


def timing(stdout: str) -> dict[str, Any]:
    (line,) = [line for line in stdout.splitlines() if line.startswith("{")]
    report: dict[str, Any] = json.loads(line)
    assert report["event"] == "timing"
    return report


def losses(stdout: str) -> list[float]:
    return [float(line.split()[-1]) for line in stdout.splitlines() if " loss " in line]


@pytest.mark.torch
def test_two_processes_learn_the_digits() -> None:
    for module in ("torch", "sklearn"):
        pytest.importorskip(module)
    done = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT))
    assert done.returncode == 0, done.stderr
    report = timing(done.stdout)
    assert report["world_size"] == 2
    assert report["accuracy"] > 0.95
    assert report["started_at"] < report["group_ready_at"] < report["ended_at"]
    assert {"import_torch_s", "init_process_group_s", "training_s"} <= report.keys()
    # A line each few epochs, and what it says goes down.
    assert len(losses(done.stdout)) >= 4
    assert losses(done.stdout)[-1] < losses(done.stdout)[0] / 10
    assert f"{report['master_addr']}:{report['master_port']}" in done.stdout
    assert "Warning" not in done.stderr


@pytest.mark.torch
def test_environment_of_the_process_form_is_enough() -> None:
    for module in ("torch", "sklearn"):
        pytest.importorskip(module)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = run(
        str(SCRIPT),
        "--epochs=1",
        RANK="0",
        WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    assert done.returncode == 0, done.stderr
    assert timing(done.stdout)["master_port"] == port


def test_started_alone_it_says_what_to_type() -> None:
    done = run(str(SCRIPT))
    assert done.returncode == 1
    assert "WORLD_SIZE" in done.stderr
    assert "mingle-wait --job digits --nnodes 2 -- torchrun train.py" in done.stderr
