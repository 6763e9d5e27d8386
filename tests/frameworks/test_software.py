"""What is gathered at a join: from made-up packages, and from those that are here."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mingled.core.software import ITEMS, VALUE_CHARS_MAX, WHY_CHARS_MAX, Software
from mingled.frameworks import software as gathering
from mingled.frameworks.software import software

VERSION_PY = """\
from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'rocm', 'xpu']
__version__ = '{torch}'
debug = False
cuda: Optional[str] = {cuda!r}
git_version = 'cf30153c4c131c8164ee7798e5022d810682e2cb'
hip: Optional[str] = {hip!r}
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, and nothing else, for the Python that runs this."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "missing"), str(folder)])
    return folder


def install_torch(
    site: Path, torch: str = "2.13.0+cu128", cuda: str | None = "12.8", hip: str | None = None
) -> None:
    (site / "torch").mkdir()
    text = VERSION_PY.format(torch=torch, cuda=cuda, hip=hip)
    (site / "torch" / "version.py").write_text(text)


def here(tmp_path: Path, *cmd: str) -> Software:
    return software((sys.executable, *cmd), tmp_path)


# ---------------------------------------------------------------- packages


def test_what_is_installed(site: Path, tmp_path: Path) -> None:
    install_torch(site)
    (site / "nvidia_nccl_cu12-2.27.3.dist-info").mkdir()
    (site / "nvidia_nccl_cu11-2.20.5.dist-info").mkdir()
    found = here(tmp_path, "train.py")
    assert found.python == sys.version.split(maxsplit=1)[0]
    assert (found.torch, found.cuda, found.nccl) == ("2.13.0+cu128", "12.8", "2.27.3")
    assert "torch" not in dict(found.why)


def test_a_torch_without_cuda(site: Path, tmp_path: Path) -> None:
    install_torch(site, "2.13.0+cpu", None)
    found = here(tmp_path)
    assert (found.torch, found.cuda, found.nccl) == ("2.13.0+cpu", "none", "none")


def test_a_torch_for_rocm(site: Path, tmp_path: Path) -> None:
    install_torch(site, "2.13.0+rocm6.4", None, "6.4.43482")
    found = here(tmp_path)
    assert (found.cuda, found.nccl) == ("rocm 6.4.43482", None)
    assert "nvidia-nccl" in found.reason("nccl")


def test_a_torch_that_is_run_in_its_source_folder(site: Path, tmp_path: Path) -> None:
    (site / "torch-2.14.0a0+git1234567.dist-info").mkdir()
    found = here(tmp_path)
    assert (found.torch, found.cuda) == ("2.14.0a0+git1234567", None)


def test_no_torch(site: Path, tmp_path: Path) -> None:
    (site / "nvidia_nccl_cu12-2.27.3.dist-info").mkdir()
    (site / "torchvision-0.20.dist-info").mkdir()
    found = here(tmp_path)
    assert (found.torch, found.cuda, found.nccl) == (None, None, "2.27.3")
    assert found.reason("torch") == "no torch is found for its Python"
    (site / "nvidia_nccl_cu13-2.28.1.dist-info").mkdir()
    assert here(tmp_path).nccl is None, "which of the two is anybody's guess"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "__version__ = \n",
        "__version__ = 2\n",
        "garbage\0\x1b[2J",
        "__version__ = '\u00e9\u202e'",
        "__version__ = '" + "1" * (VALUE_CHARS_MAX + 1) + "'",
    ],
)
def test_a_version_file_that_makes_no_sense(site: Path, tmp_path: Path, text: str) -> None:
    (site / "torch").mkdir()
    (site / "torch" / "version.py").write_text(text)
    assert here(tmp_path).torch is None


def test_what_lies_there_blocks_nobody(site: Path, tmp_path: Path) -> None:
    (site / "torch").mkdir()
    os.mkfifo(site / "torch" / "version.py")
    os.mkfifo(tmp_path / "train.py")
    found = here(tmp_path, "train.py")
    assert (found.torch, found.script) == (None, None)
    assert found.reason("script") == "train.py cannot be read"


@pytest.mark.torch
def test_the_torch_that_is_here(tmp_path: Path) -> None:
    """Against what it says itself, in a process of its own; here it is never imported."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("no torch")
    said = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__version__, torch.version.cuda)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    found = software(("torchrun", "train.py"), tmp_path) if _torchrun_is_ours() else here(tmp_path)
    assert [found.torch, "None" if found.cuda == "none" else found.cuda] == said
    assert str(found.torch).startswith(metadata.version("torch"))


def _torchrun_is_ours() -> bool:
    folders = os.environ.get("PATH", "").split(os.pathsep)
    return bool(folders) and Path(folders[0]) == Path(sys.executable).parent


def test_gathering_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mingled.frameworks.software import software; "
        "software(None, Path()); software(('torchrun', 'x.py'), Path()); "
        "print({'torch', 'subprocess', 'importlib.metadata', 'hashlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()"


# ---------------------------------------------------------------- the driver


@pytest.mark.parametrize(
    ("module", "proc", "expected"),
    [
        ("550.54.15\n", "", "550.54.15"),
        ("", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC 12.3.0",
         "550.54.15"),
        ("", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build",
         "570.86.15"),
        ("", "GCC version: 12", None),
        ("", "", None),
    ],
)  # fmt: skip
def test_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, proc: str, expected: str | None
) -> None:
    paths = (tmp_path / "module", tmp_path / "proc")
    for path, text in zip(paths, (module, proc), strict=True):
        path.write_text(text)
    monkeypatch.setattr(gathering, "DRIVER", tuple(map(str, paths)))
    found = here(tmp_path)
    assert found.driver == expected
    assert ("driver" in dict(found.why)) == (expected is None)


# ---------------------------------------------------------------- CMD and its script


def test_the_script_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print(1)\n")
    expected = hashlib.sha256(b"print(1)\n").hexdigest()[:12]
    for cmd in (
        ("python", "-u", "train.py", "--config", "other.py"),
        ("torchrun", "--nnodes", "4", str(tmp_path / "train.py")),
        ("torchrun", "-m", "train"),
        ("accelerate", "launch", "train.py"),
    ):
        assert software(cmd, tmp_path).script == expected, cmd
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__main__.py").write_text("print(1)\n")
    assert software(("python", "-m", "pkg"), tmp_path).script == expected
    (tmp_path / "train.py").write_text("print(2)\n")
    assert software(("python", "train.py"), tmp_path).script != expected


def test_scripts_that_there_are_not(tmp_path: Path) -> None:
    assert software(("python", "gone.py"), tmp_path).reason("script") == "gone.py cannot be read"
    assert software(("python", "-m", "os"), tmp_path).reason("script") == "CMD names none"
    assert software((), tmp_path).reason("cmd") == "there is no CMD"
    (tmp_path / "huge.py").write_bytes(b"#" * (gathering.SCRIPT_BYTES_MAX + 1))
    assert software(("python", "huge.py"), tmp_path).script is None


def test_one_command_on_different_machines(tmp_path: Path) -> None:
    def cmd(*words: str) -> str | None:
        return software(words, tmp_path).cmd

    plain = cmd("torchrun", "--nnodes", "4", "train.py", "--lr", "1")
    for same in (
        ("/home/ann/.venv/bin/torchrun", "--nnodes", "4", "train.py", "--lr", "1"),
        ("torchrun", "--node-rank", "3", "--nnodes", "4", "train.py", "--lr", "1"),
        ("torchrun", "--node_rank=3", "--nnodes", "4", "train.py", "--lr", "1"),
        ("torchrun", "--nnodes", "4", f"{tmp_path}/train.py", "--lr", "1"),
        ("env", "CUDA_VISIBLE_DEVICES=1", "torchrun", "--nnodes", "4", "train.py", "--lr", "1"),
    ):
        assert cmd(*same) == plain, same
    for other in (
        ("torchrun", "--nnodes", "4", "train.py", "--lr", "2"),
        ("torchrun", "--nnodes", "4", "train.py", "--lr 1"),
        ("python", "--nnodes", "4", "train.py", "--lr", "1"),
    ):
        assert cmd(*other) != plain, other
    assert cmd("python", "caf\udce9.py"), "whatever the bytes of a word are"


def test_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text("print(1)\n")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py"), "--lr", "1"])
    found = software(None, tmp_path)
    assert found.script == hashlib.sha256(b"print(1)\n").hexdigest()[:12]
    assert found.python == sys.version.split(maxsplit=1)[0]
    for typed in ([""], ["-c"], []):
        monkeypatch.setattr(sys, "argv", typed)
        assert software(None, tmp_path).cmd is None
    module = tmp_path / "site-packages" / "torch" / "run.py"
    monkeypatch.setattr(sys, "argv", [str(module), "train.py"])
    assert software(None, tmp_path).script == found.script


def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert software(("python", "x.py"), Path()).reason("git") == "the working folder is gone"


def test_reasons_are_fit_to_be_sent(tmp_path: Path) -> None:
    found = software(("\u00e9\x1b[2J" + "x" * 500, "y\n.py"), tmp_path)
    for item, reason in found.why:
        assert item in ITEMS
        assert len(reason) <= WHY_CHARS_MAX
        assert reason.isascii()
        assert reason.isprintable()
    assert found.python is None
