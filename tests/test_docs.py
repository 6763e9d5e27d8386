"""The generated documents are what the code says."""

import re
import subprocess
import sys
from pathlib import Path

from mingled.frameworks.parameters import OURS

ROOT = Path(__file__).parents[1]


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate_docs.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_setting_of_torchruns_backend_has_its_row() -> None:
    text = (ROOT / "docs" / "torchrun.md").read_text()
    table = text.partition("| key | meaning |")[2].partition("\n\n")[0]
    named = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    keys = [key for cell in named for key in re.findall(r"`(\w+)`", cell)]
    assert sorted(keys) == sorted(OURS)
