"""`examples/notebook/digits.ipynb`, as two people run it on two machines."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from mingled.lab import Node
from tests.lan.conftest import MakeLan, absent, lan
from tests.lan.helpers import Running, nothing_left, start

__all__ = ["lan"]

NOTEBOOK = Path(__file__).parents[2] / "examples/notebook/digits.ipynb"

EXECUTE = """
import os, sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
try:
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
finally:
    nbformat.write(notebook, "done.ipynb")
"""

pytestmark = [pytest.mark.lan, pytest.mark.torch]


@pytest.fixture(autouse=True)
def _needs() -> None:
    for module in ("torch", "sklearn", "accelerate", "nbclient", "ipykernel"):
        if importlib.util.find_spec(module) is None:
            absent(f"{module} is not installed")


def opened(node: Node, folder: Path, processes: int) -> Running:
    """A copy on that node, whose parameters were edited, with all cells being run."""
    notebook = json.loads(NOTEBOOK.read_text())
    (cell,) = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", ())]
    lines = [line for line in cell["source"] if not line.startswith("PROCESSES")]
    cell["source"] = [*lines, f"\nPROCESSES = {processes}"]
    here = folder / node.name
    here.mkdir()
    (here / "digits.ipynb").write_text(json.dumps(notebook))
    env = {"JUPYTER_RUNTIME_DIR": str(here), "IPYTHONDIR": str(here), "OMP_NUM_THREADS": "1"}
    script = f"import os; os.chdir({str(here)!r}){EXECUTE}"
    return start(node, sys.executable, "-c", script, "digits.ipynb", env=env)


def shown(folder: Path) -> str:
    """All that the cells printed."""
    cells = json.loads((folder / "done.ipynb").read_text())["cells"]
    outputs = [out for cell in cells for out in cell.get("outputs", ())]
    return "".join("".join(out.get("text", "")) for out in outputs)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_notebook_on_two_machines(lan: MakeLan, tmp_path: Path, processes: int) -> None:
    both = lan(nodes=2)
    running = [opened(node, tmp_path, processes) for node in both.nodes]
    for one in running:
        one.well()
    leader, follower = sorted(
        both.nodes, key=lambda n: not (tmp_path / n.name / "digits.pt").exists()
    )
    result = json.loads((tmp_path / leader.name / "digits.json").read_text())
    assert result["processes"] == 2 * processes
    assert result["accuracy"] > 0.9
    assert f"unseen digits, by {2 * processes} processes" in shown(tmp_path / leader.name)
    assert f"the model is on {leader.name}" in shown(tmp_path / follower.name)
    assert f"rank 0 is {leader.name} ({leader.address}:" in shown(tmp_path / follower.name)
    nothing_left(both)


def test_it_is_committed_as_it_is_written() -> None:
    """No outputs, no counts: those are of somebody's own run."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 3
    assert all((c["outputs"], c["execution_count"]) == ([], None) for c in code)
