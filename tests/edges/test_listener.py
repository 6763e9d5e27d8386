"""The socket at its path: one daemon, whatever became of files and of other daemons."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mingled.edges import listener
from mingled.edges.listener import Listener
from mingled.errors import DaemonError

ENDING = """
import sys
from pathlib import Path
from mingled.edges.listener import Listener
mine = Listener(Path(sys.argv[1]), 0o600)
mine.sock.close()
print("ending", flush=True)
sys.stdin.readline()
if sys.argv[2] == "in peace":
    mine.close()
"""
"""A daemon that no longer listens, and still holds its lock until told."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def reached(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


def end(mine: Listener) -> None:
    mine.sock.close()
    mine.close()


def test_fault_45_a_second_one_is_refused_and_the_first_unharmed(path: Path) -> None:
    first = Listener(path, 0o600)
    with pytest.raises(DaemonError, match=f"another mingled already serves {path}; see `mingle"):
        Listener(path, 0o600)
    assert reached(path)
    assert path.stat().st_mode & 0o777 == 0o600
    end(first)
    assert list(path.parent.iterdir()) == []


def test_fault_45_neither_where_the_locks_file_was_removed(path: Path) -> None:
    first = Listener(path, 0o600)
    path.with_name("s.lock").unlink()
    with pytest.raises(DaemonError, match="another mingled already serves"):
        Listener(path, 0o600)
    assert reached(path)
    end(first)
    assert list(path.parent.iterdir()) == []


def test_fault_45_neither_where_its_queue_is_full(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "BACKLOG", 0)
    first = Listener(path, 0o600)
    path.with_name("s.lock").unlink()
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        one.connect(str(path))
        two.setblocking(False)
        with pytest.raises(BlockingIOError):
            two.connect(str(path))
        with pytest.raises(DaemonError, match="another mingled already serves"):
            Listener(path, 0o600)
    end(first)


@pytest.mark.parametrize("how", ["in peace", "at once"])
def test_fault_45_one_that_ends_is_waited_for(path: Path, how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDING, path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == b"ending\n"
        assert not reached(path)
        first.stdin.write(b"\n")
        first.stdin.flush()
        second = Listener(path, 0o600)
    assert reached(path)
    end(second)
    assert list(path.parent.iterdir()) == []


def test_fault_45_but_not_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "ENDING_S", 0.1)
    first = Listener(path, 0o600)
    first.sock.close()
    with pytest.raises(DaemonError, match="another mingled already serves"):
        Listener(path, 0o600)
    first.close()


def test_an_end_leaves_a_successors_socket_alone(path: Path) -> None:
    first = Listener(path, 0o600)
    first.sock.close()
    path.with_name("s.lock").unlink()
    second = Listener(path, 0o600)
    first.close()
    assert reached(path)
    end(second)
    assert list(path.parent.iterdir()) == []


def test_a_stale_socket_is_replaced_and_nothing_else_is(path: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    end(Listener(path, 0o666))
    path.write_text("data")
    with pytest.raises(DaemonError, match="is there and is no socket"):
        Listener(path, 0o600)
    assert path.read_text() == "data"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DaemonError, match="is there and is no socket"):
        Listener(path, 0o600)
    assert path.is_symlink()
    with pytest.raises(DaemonError, match="make its folder"):
        Listener(tmp_path / "no" / "folder", 0o600)
    with pytest.raises(DaemonError):
        Listener(tmp_path / ("x" * 150), 0o600)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user as well")
def test_what_is_another_users_is_said_so(path: Path) -> None:
    for folder in (path.parent, *path.parents[1:3]):
        folder.chmod(0o755)
    first = Listener(path, 0o666)
    os.seteuid(12_345)
    try:
        with pytest.raises(DaemonError, match=f"another mingled already serves {path}"):
            Listener(path, 0o600)
        first.sock.close()  # killed: its files stay
        with pytest.raises(DaemonError, match=r"/s\.lock: you may not write there; start"):
            Listener(path, 0o600)
        with pytest.raises(DaemonError, match=f"^{path.parent}: you may not write"):
            Listener(path.with_name("t"), 0o600)
    finally:
        os.seteuid(0)
    first.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_the_mode_is_what_was_asked_for_whatever_the_umask(
    path: Path, mode: int, umask: int
) -> None:
    before = os.umask(umask)
    try:
        mine = Listener(path, mode)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    assert path.with_name("s.lock").stat().st_mode & 0o077 == 0
    end(mine)


def test_no_name_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An abstract socket has no mode: anybody could have taken its name before."""
    monkeypatch.chdir(tmp_path)
    mine = Listener(Path("@mingled"), 0o600)
    assert mine.sock.getsockname() == "@mingled"
    assert (tmp_path / "@mingled").is_socket()
    end(mine)
    with pytest.raises((DaemonError, ValueError)):
        Listener(Path("\0mingled"), 0o600)
