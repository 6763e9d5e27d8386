"""For tests of the torchrun plugin: a daemon that the test plays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.fake_daemon import FakeDaemon


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as fake:
        monkeypatch.setenv("MINGLE_SOCKET", str(fake.path))
        yield fake
