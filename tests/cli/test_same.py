"""What `mingle-wait` states of the software it would run, and what it says of differences."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from mingled.core import local
from mingled.core.software import ITEMS
from mingled.core.words import Form

from .fake_daemon import JOB, RESTART, THREE, FakeDaemon, gone, ready
from .running import WAIT, Running

DIFFERS = f"job {JOB}: gpu3 runs torch 2.11.0, the others 2.13.0"

TRAIN = """\
import sys
sys.stderr.write("training\\n")
sys.stdin.readline()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """To work in: a script, and a torch beside it."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "train.py").write_text(TRAIN)
    (tmp_path / "packages" / "torch").mkdir(parents=True)
    version = tmp_path / "packages" / "torch" / "version.py"
    version.write_text("__version__ = '2.11.0+cpu'\ncuda: str | None = None\n")
    return tmp_path / "project"


def training(daemon: FakeDaemon, folder: Path, *flags: str, **more: str) -> Running:
    words = [*THREE, *flags, "--", sys.executable, "train.py"]
    env = daemon.environ(PYTHONPATH=str(folder.parent / "packages"), **more)
    return Running(WAIT, *words, env=env, cwd=folder)


def test_what_would_run_is_stated_and_a_difference_told_before_it_does(
    daemon: FakeDaemon, folder: Path
) -> None:
    with training(daemon, folder) as waiting:
        notice = local.Notice(kind="warning", sentence=DIFFERS)
        _, join = daemon.join(notice, ready())
        waiting.until("training\n")
        waiting.say("go")
        daemon.leave()
        assert waiting.end() == 0
    assert join.require_same == ()
    stated = join.software
    assert stated is not None
    assert (stated.torch, stated.cuda, stated.nccl) == ("2.11.0+cpu", "none", "none")
    assert stated.python == sys.version.split(maxsplit=1)[0]
    assert stated.script == hashlib.sha256(TRAIN.encode()).hexdigest()[:12]
    lines = waiting.err.splitlines()
    assert lines.index(f"mingle-wait: warning: {DIFFERS}") < lines.index("training")


def test_each_join_states_anew(daemon: FakeDaemon, folder: Path) -> None:
    """A script may be mended before the next round."""
    with training(daemon, folder, *RESTART) as waiting:
        served, first = daemon.join(ready())
        waiting.until("training\n")
        (folder / "train.py").write_text(TRAIN + "# mended\n")
        served.say(gone())
        _, second = daemon.join(ready(2))
        waiting.until("training\n")
        waiting.say("go")
        daemon.leave()
        assert waiting.end() == 0
    assert first.software is not None
    assert second.software is not None
    assert first.software.script != second.software.script
    assert first.software.cmd == second.software.cmd


@pytest.mark.parametrize(
    ("flags", "variable", "expected"),
    [
        (["--require-same", "git,torch"], "", ("torch", "git")),
        (["--require-same", "torch", "--require-same", "all"], "", tuple(ITEMS)),
        ([], "cuda torch", ("torch", "cuda")),
        (["--require-same", "python"], "cuda", ("python",)),
    ],
)
def test_what_is_required(
    daemon: FakeDaemon, folder: Path, flags: list[str], variable: str, expected: tuple[str, ...]
) -> None:
    refusal = local.Failed(code="refused", sentence=f"job {JOB}: gpu3 runs torch 2.11.0")
    with training(daemon, folder, *flags, MINGLE_REQUIRE_SAME=variable) as waiting:
        _, join = daemon.join(refusal)
        assert waiting.end() == 81
    assert join.require_same == expected
    assert f"mingle-wait: job {JOB}: gpu3 runs torch 2.11.0" in waiting.err


@pytest.mark.parametrize(
    ("flags", "variable", "says"),
    [
        (["--require-same", "tourch"], "", "--require-same 'tourch': there are python, torch"),
        (["--require-same", ""], "", "--require-same is given with nothing in it"),
        ([], "weather", "--require-same 'weather': there are"),
    ],
)
def test_what_cannot_be_required(
    daemon: FakeDaemon, folder: Path, flags: list[str], variable: str, says: str
) -> None:
    with training(daemon, folder, *flags, MINGLE_REQUIRE_SAME=variable) as waiting:
        assert waiting.end() == 2
    assert f"mingle-wait: job {JOB}: {says}" in waiting.err


@pytest.mark.parametrize("flags", [(), ("--require-same", "python")])
def test_whoever_is_alone_has_nothing_to_compare(
    daemon: FakeDaemon, folder: Path, flags: tuple[str, ...]
) -> None:
    words = ("--job", JOB, "--world-size", "1", *flags, "--", sys.executable, "train.py")
    with Running(WAIT, *words, env=daemon.environ(), cwd=folder) as waiting:
        _, join = daemon.join(ready(form=Form.PROCESS))
        waiting.until("training\n")
        waiting.say("go")
        daemon.leave()
        assert waiting.end() == 0
    assert (join.software is None) == (not flags)


def test_without_cmd_nobody_knows_what_will_run(daemon: FakeDaemon, folder: Path) -> None:
    with Running(WAIT, *THREE, env=daemon.environ(), cwd=folder) as waiting:
        _, join = daemon.join(ready())
        assert waiting.end() == 0
    assert join.software is not None
    assert join.software.torch is None
    assert "without CMD" in join.software.reason("torch")
