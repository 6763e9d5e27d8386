"""For tests of the command line: a daemon that the test plays."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mingled.cli import mingle

from .fake_daemon import FakeDaemon
from .saying import Said, Say


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as fake:
        yield fake


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs `mingle WORDS` in this process."""

    def run(words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["mingle", *words.split()])
        code: object = 0
        try:
            mingle.main()
        except SystemExit as end:
            code = end.code
        return Said(code, *capsys.readouterr())

    return run
