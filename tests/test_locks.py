"""File locks: one holder at a time, and no file left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mingled import locks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.lock"


def test_one_holder_and_no_file_left(path: Path) -> None:
    held = locks.acquire(path, wait=False)
    with pytest.raises(BlockingIOError):
        locks.acquire(path, wait=False)
    assert path.stat().st_mode & 0o777 == 0o600
    locks.release(held, path)
    assert not path.exists()
    locks.release(locks.acquire(path, wait=False), path)
    assert not path.exists()


def test_each_of_many_gets_it_alone(path: Path) -> None:
    inside = 0
    most = 0
    turns = 0

    def take_turns() -> None:
        nonlocal inside, most, turns
        for _ in range(50):
            held = locks.acquire(path, wait=True)
            inside += 1
            most = max(most, inside)
            turns += 1
            inside -= 1
            locks.release(held, path)

    threads = [threading.Thread(target=take_turns) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most, turns) == (1, 400)
    assert not path.exists()


def test_a_lock_on_a_file_that_was_removed_counts_for_nothing(path: Path) -> None:
    stale = locks.acquire(path, wait=False)
    path.unlink()
    held = locks.acquire(path, wait=False)
    locks.release(stale, path)  # not its file any more: it stays
    assert path.exists()
    with pytest.raises(BlockingIOError):
        locks.acquire(path, wait=False)
    locks.release(held, path)
    assert not path.exists()


def test_it_ends_with_its_process(path: Path) -> None:
    code = "import sys; from mingled import locks; from pathlib import Path; "
    code += "locks.acquire(Path(sys.argv[1]), wait=False); print('held', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError):
        locks.acquire(path, wait=False)
    process.kill()
    process.communicate()
    locks.release(locks.acquire(path, wait=False), path)
    assert not path.exists()


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        locks.acquire(path, wait=False)
    assert not (tmp_path / "elsewhere").exists()


def test_children_do_not_inherit_it(path: Path) -> None:
    held = locks.acquire(path, wait=False)
    assert not os.get_inheritable(held)
    locks.release(held, path)
