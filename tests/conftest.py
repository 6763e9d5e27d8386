"""For local tests: a runtime folder of its own, and traffic on loopback only."""

from __future__ import annotations

import os
import select
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mingled import client
from mingled.core import local
from mingled.errors import DaemonError


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever has a runtime folder may start daemons: `make check` leaves those tests out."""
    for item in items:
        if "runtime" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.daemon)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of private daemons, for this process and its children; they end with the test."""
    if client.SYSTEM_SOCKET.exists():
        pytest.skip(f"a system daemon would be used here: stop it ({client.SYSTEM_SOCKET})")
    around = ("MINGLE", "PET_", "SLURM_", "OMPI_", "PMIX_", "SING_", "JOB_COMPLETION_INDEX")
    for name in [name for name in os.environ if name.startswith(around)]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MINGLE_INTERFACE", "lo")
    # A path below tmp_path can be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="mingle-") as run:
        monkeypatch.setenv("XDG_RUNTIME_DIR", run)
        folder = Path(run, "mingled")
        yield folder
        _end_daemons(folder)


def _end_daemons(folder: Path) -> None:
    for path in folder.glob("*.sock"):
        try:
            report = client.ask(client.connect(path), local.Status())
        except DaemonError:
            continue
        assert isinstance(report, local.Report)
        try:
            fd = os.pidfd_open(report.pid)
        except ProcessLookupError:
            continue  # its last lease had ended
        with open(fd) as pidfd:
            signal.pidfd_send_signal(pidfd.fileno(), signal.SIGTERM)
            assert select.select([pidfd], [], [], 60)[0]
