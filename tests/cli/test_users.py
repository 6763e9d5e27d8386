"""One daemon, two users and root: real processes, each of which tries every request."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mingled import client
from mingled.core import local
from mingled.errors import DaemonError, NotPermitted
from mingled.processes import user_name

from .running import BIN, JOB, PATIENCE_S, WAIT, Running, reports, seats, until_nobody

OWNER, OTHER = 54_321, 65_534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users as well")

ASKS = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.settimeout(30)
for line in sys.argv[2:]:
    s.sendall(line.encode() + b"\\n")
    print(s.makefile("rb").readline().decode(), end="")
"""

SHAPE = {"form": "process", "size_min": 2, "size_max": 2}


def as_user(uid: int) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]


def asks(path: Path, uid: int, **request: Any) -> dict[str, Any]:
    """The first line that one request of this user is answered with."""
    done = subprocess.run(
        [*as_user(uid), sys.executable, "-Sc", ASKS, path, json.dumps(request)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def path(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A daemon's for every user, in a folder that all may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "socket")
        monkeypatch.setenv("MINGLE_SOCKET", str(path))
        with Running(BIN / "mingled", "--socket", path) as daemon:
            daemon.until(f" on {path}, link port ")
            assert path.stat().st_mode & 0o777 == 0o666
            assert path.with_name("socket.lock").stat().st_mode & 0o777 == 0o600
            assert not any(name.startswith("@") for name in held(daemon.process.pid))
            yield path
            until = time.monotonic() + PATIENCE_S
            while (left := held(daemon.process.pid)) != [str(path)]:  # that of the listening socket
                assert time.monotonic() < until, left
            daemon.process.terminate()
            assert daemon.end() == 0
            assert "bug:" not in daemon.err
        monkeypatch.delenv("MINGLE_SOCKET")


def held(pid: int) -> list[str]:
    """Of the descriptors that clients cost: the names of Unix sockets (an accepted one has that of
    the listening one; an abstract one begins with @), and the pidfds."""
    links = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(link))
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    named = {f"socket:[{words[6]}]": words[7] for line in lines if len(words := line.split()) > 7}
    return [named.get(link, link) for link in links if link in named or "pidfd" in link]


def test_fault_07_no_request_of_another_user_touches_a_job(path: Path) -> None:
    waits = [*as_user(OWNER), WAIT, "--job", JOB, "--world-size", "2", "--", "true"]
    with Running(*waits) as waiting:
        waiting.until("1/2 here")
        (seat,) = seats()  # root sees it
        assert (seat.user, seat.state) == (user_name(OWNER), "waiting")
        # Status.
        assert asks(path, OTHER, type="status")["jobs"] == []
        (job,) = asks(path, OWNER, type="status")["jobs"]
        assert job["job"] == JOB
        # Join, as the other user, and as root, which is no owner either.
        for uid in (OTHER, 0):
            refused = asks(path, uid, type="join", job=JOB, **SHAPE)
            assert (refused["type"], refused["code"]) == ("failed", "not-permitted")
            whose = f"belongs to {user_name(OWNER)}, you are {user_name(uid)}"
            assert whose in refused["sentence"]
        # Re-attach, to the very participant and to one that is made up.
        for participant in (seat.participant, "f" * 32):
            config = {
                "job": JOB,
                "form": "process",
                "round": 1,
                "claim": "c" * 32,
                "rank": 0,
                "master_addr": "127.0.0.1",
                "master_port": 1,
                "interface": "lo",
                "address": "127.0.0.1",
                "nnodes": 1,
                "node_rank": 0,
                "nproc_per_node": 1,
                "global_rank": 0,
                "world_size": 1,
                "local_rank": 0,
                "local_world_size": 1,
                "members": [],
                "leader_host": "x",
            }
            refused = asks(
                path,
                OTHER,
                type="reattach",
                join={"type": "join", "job": JOB, **SHAPE},
                participant=participant,
                config=config,
            )
            assert refused["code"] == "not-permitted", refused
        # Leave: the job, the participant.
        assert asks(path, OTHER, type="leave", job=JOB) == {"type": "done", "count": 0}
        left = asks(path, OTHER, type="leave", job=JOB, participant=seat.participant)
        assert left == {"type": "done", "count": 0}
        # What only a participant may say.
        for line in (
            {"type": "alive"},
            {"type": "finished"},
            {"type": "store-opened", "proof": "0" * 32, "port": 1},
            {"type": "store-failed", "proof": "0" * 32, "reason": "x"},
        ):
            assert asks(path, OTHER, **line)["code"] == "bad-input"
        assert [s.participant for s in seats()] == [seat.participant]
        assert asks(path, OWNER, type="leave", job=JOB) == {"type": "done", "count": 1}
        assert waiting.end() == 87
    until_nobody()


def test_fault_07_a_lease_is_adopted_by_its_owner_or_root(path: Path) -> None:
    join = {"type": "join", "job": JOB, "form": "plain", "rank": 0, "adopt": True}
    holds = [*as_user(OWNER), sys.executable, "-Sc", HOLDS, str(path), json.dumps(join)]
    with Running(*holds) as holder:
        holder.until('"ready"')
        line = next(line for line in holder.out.splitlines() if '"ready"' in line)
        token = json.loads(line)["token"]
        refused = asks(path, OTHER, type="adopt", token=token, pid=holder.process.pid)
        assert refused["code"] == "not-permitted"
        assert f"is {user_name(OWNER)}'s" in refused["sentence"]
        wrong = asks(path, OWNER, type="adopt", token="f" * 32, pid=holder.process.pid)
        assert wrong["code"] == "daemon"
        assert "no lease on" in wrong["sentence"]
        # Its owner cannot give it to another user's process, root may hand it on.
        foreign = asks(path, OWNER, type="adopt", token=token, pid=os.getpid())
        assert f"no process {os.getpid()}" in foreign["sentence"]
        done = asks(path, 0, type="adopt", token=token, pid=holder.process.pid)
        assert done == {"type": "done", "count": 1}
        (seat,) = seats()
        assert seat.pid == holder.process.pid
        assert asks(path, 0, type="leave", job=JOB) == {"type": "done", "count": 1}
    until_nobody()


HOLDS = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(sys.argv[2].encode() + b"\\n")
for line in s.makefile("rb"):
    print(line.decode(), end="", flush=True)
sys.stdin.read()
"""


def test_fault_44_whoever_is_killed_while_waiting_is_gone_at_once(path: Path) -> None:
    with Running(WAIT, "--job", JOB, "--world-size", "2", "--rank", "0", "--", "true") as waiting:
        waiting.until("1/2 here")
        assert len(seats()) == 1
        waiting.process.kill()
        waiting.end()
        until_nobody()
        (report,) = reports()
        assert report.jobs == ()  # its claim is withdrawn


def test_fault_45_a_second_daemon_leaves_the_first_alone(path: Path) -> None:
    """Also where somebody has removed the lock's file."""
    with Running(WAIT, "--job", JOB, "--world-size", "2", "--", "true") as waiting:
        waiting.until("1/2 here")
        path.with_name("socket.lock").unlink()
        second = subprocess.run(
            [BIN / "mingled", "--socket", path], capture_output=True, text=True, check=False
        )
        assert (second.returncode, second.stdout) == (80, "")
        assert f"another mingled already serves {path}; " in second.stderr.splitlines()[-1]
        (seat,) = seats()
        assert seat.pid == waiting.process.pid


# ---------------------------------------------------------------- private folders


@pytest.mark.parametrize("how", ["another user's", "a link", "open to others", "a file"])
def test_a_private_folder_in_tmp_that_is_not_the_users_own(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Without XDG_RUNTIME_DIR anybody may have made /tmp/mingled-UID before."""
    with pytest.raises(KeyError):
        pwd.getpwuid(OWNER)
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    folder = Path(f"/tmp/mingled-{OWNER}")
    assert not folder.exists()
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chown(elsewhere, OWNER, OWNER)
        if how == "a link":
            folder.symlink_to(elsewhere)
        elif how == "a file":
            folder.write_text("")
        else:
            folder.mkdir(mode=0o700)
            os.chown(folder, OTHER if how == "another user's" else OWNER, OWNER)
            if how == "open to others":
                folder.chmod(0o770)
        try:
            done = subprocess.run(
                [*as_user(OWNER), WAIT, "--job", JOB, "--world-size", "1", "--", "true"],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            (last,) = done.stderr.splitlines()
            if how == "a file":
                assert done.returncode == DaemonError.exit_code
                assert f"{folder}: File exists; a private daemon needs a folder" in last
            else:
                assert done.returncode == NotPermitted.exit_code
                assert (
                    f"{folder} is not a folder of yours alone (wanted: owner {OWNER}, mode" in last
                )
            assert os.listdir(elsewhere) == []
        finally:
            if folder.is_dir() and not folder.is_symlink():
                folder.rmdir()
            else:
                folder.unlink()


def test_a_private_folder_that_the_user_has_is_its_own(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.private_folder() == runtime
    assert runtime.stat().st_mode & 0o777 == 0o700
    with Running(WAIT, "--job", JOB, "--world-size", "2", "--", "true") as waiting:
        waiting.until("1/2 here")
        (report,) = reports()
        assert isinstance(report, local.Report)
        socket_path = Path(report.socket)
        assert socket_path.parent == runtime
        assert {f.stat().st_mode & 0o777 for f in runtime.iterdir()} == {0o600}
