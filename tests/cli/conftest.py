"""For tests of the command line: a daemon that the test plays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .fake_daemon import FakeDaemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as fake:
        yield fake
