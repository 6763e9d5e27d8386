"""Wheels of this very source, built for a test."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from mingled import __version__

REPOSITORY = Path(__file__).parents[1]


def build(folder: Path, release: str = __version__) -> Path:
    """The wheel, in `folder` (made), with that release's number. Nothing is fetched: setuptools is
    this Python's."""
    source = folder / f"source-{release}"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("mingled", "systemd", "man"):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    init = source / "mingled/__init__.py"
    text = init.read_text()
    assert text.count(f'"{__version__}"') == 1
    init.write_text(text.replace(f'"{__version__}"', f'"{release}"'))
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run(
        [*words, "--wheel-dir", folder, source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob(f"mingled-{release}-*.whl")
    return wheel
