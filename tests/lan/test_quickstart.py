"""docs/quickstart.md on two machines: its script, its line."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lan.conftest import MakeLan, absent

PAGE = (Path(__file__).parents[2] / "docs/quickstart.md").read_text()
WITHIN_S = 120.0


@pytest.mark.torch
def test_the_quick_starts_script_trains_on_two_machines(lan: MakeLan, tmp_path: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        absent("torch is not installed")
    (script,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "hello.py").write_text(script)
    (line,) = re.findall(r"^    (mingle-wait .* -- torchrun hello.py)$", PAGE, re.MULTILINE)[:1]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    env = {"PATH": path, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    pipe = subprocess.PIPE
    made = lan(nodes=2)
    started = [
        node.popen(line.split(), cwd=tmp_path, env=env, stdout=pipe, stderr=pipe)
        for node in made.nodes
    ]
    done = [(*process.communicate(timeout=WITHIN_S), process.wait()) for process in started]
    addresses = [node.address for node in made.nodes]
    assert [code for _, _, code in done] == [0, 0], done
    said = "".join(out for out, _, _ in done)
    match = re.fullmatch(r"2 processes, rank 0 at (\S+): loss (\S+)\n", said)
    assert match is not None, done
    assert match[1] in addresses
    assert float(match[2]) < 1.0  # it began at about 8, the variance of a sum of eight
    for _, err, _ in done:
        assert re.search(r"job hello: runs torchrun --nnodes=2 --node-rank=[01] ", err), err
