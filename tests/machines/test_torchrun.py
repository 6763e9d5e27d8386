"""A real torchrun job on booted machines, with this Python's torch, while daemons are restarted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.lan.conftest import absent
from tests.lan.helpers import Running

from .conftest import torch_packages
from .image import VENV
from .machine import Machine

JOB = "bert"
TRAIN = Path(__file__).parents[1] / "lan/train_steps.py"
AGAIN = "a daemon is back: training is watched again"


@pytest.mark.torch
def test_systemctl_restart_under_torchrun(site: tuple[Machine, ...]) -> None:
    packages = torch_packages()
    version = site[0].root("python3", "-c", "import sys; print(sys.version_info[:2])").stdout
    if packages is None:
        absent("torch is not installed")
    if version.strip() != str(sys.version_info[:2]):
        pytest.skip(f"the machines' Python is {version.strip()} and cannot import this one's torch")
    machines = site[:2]
    running: dict[str, Running] = {}
    for machine in machines:
        machine.user("mkdir", "-p", "/home/ada/steps")
        machine.user("sh", "-c", f"cat > /home/ada/train.py <<'END'\n{TRAIN.read_text()}\nEND")
        flags = ("--rdzv-backend", "mingle", "--rdzv-id", JOB, "--nnodes", "2")
        words = (f"{VENV}/bin/python", "-m", "torch.distributed.run", *flags)
        script = ("--nproc-per-node", "1", "/home/ada/train.py", "/home/ada/steps")
        # The machine's own packages first: of this Python's only what they lack.
        path = f"PYTHONPATH={site_packages(machine)}:{packages}"
        running[machine.name] = machine.start("env", path, *words, *script)
    for one in running.values():
        one.until("did 5 at ", kind="out")
    ranks = {name: one.out.split("rank ")[1][0] for name, one in running.items()}
    for machine in sorted(machines, key=lambda m: ranks[m.name]):
        before = machine.daemon
        machine.root("systemctl", "restart", "mingled")
        running[machine.name].until(AGAIN)
        assert machine.daemon != before
        for one in running.values():
            done = one.out.count("\ndid ")
            one.until_true(lambda r=one, d=done: r.out.count("\ndid ") >= d + 10)  # type: ignore[misc]
    for one in running.values():
        assert one.out.count("begins at ") == 1, "no worker was started anew"
        assert "lost" not in one.err
    for machine in machines:
        machine.user("touch", "/home/ada/steps/enough")
    for one in running.values():
        one.well()


def site_packages(machine: Machine) -> str:
    words = (f"{VENV}/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    return machine.root(*words).stdout.strip()
