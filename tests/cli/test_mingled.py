"""`mingled`: the daemon that an administrator starts, its socket, and who may use it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mingled import client
from mingled.core import local
from mingled.core.words import Form, JobId
from mingled.errors import DaemonError, NotPermitted

from .running import BIN, JOB, WAIT, Running, reports, seats

OTHER_UID = 65_534

AS_ANOTHER = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user as well")


@pytest.fixture
def path(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a daemon's socket, in a folder that every user may enter; clients look there."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv("MINGLE_SOCKET", f"{folder}/socket")
        yield Path(folder, "socket")
        monkeypatch.delenv("MINGLE_SOCKET", raising=False)


@pytest.fixture
def daemon(path: Path) -> Iterator[Running]:
    with Running(BIN / "mingled", "--socket", path) as running:
        running.until(f" on {path}, link port ")
        yield running
        running.process.terminate()
        assert running.end() == 0
        assert list(path.parent.iterdir()) == []


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    os.seteuid(OTHER_UID)
    try:
        yield
    finally:
        os.seteuid(0)


# ---------------------------------------------------------------- life


def test_it_serves_and_leaves_no_file(daemon: Running, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o666
    (report,) = reports()
    assert (report.pid, report.private, report.socket) == (daemon.process.pid, False, str(path))
    done = subprocess.run(
        [WAIT, "--job", JOB, "--world-size", "1", "--", "true"], capture_output=True, check=False
    )
    assert done.returncode == 0
    assert not client.private_folder(create=False).exists()


def test_a_terminal_that_closes_does_not_end_it(daemon: Running) -> None:
    daemon.process.send_signal(signal.SIGHUP)
    (report,) = reports()
    assert report.pid == daemon.process.pid


def test_fault_45_a_second_one_is_refused_and_the_first_unharmed(
    daemon: Running, path: Path
) -> None:
    with Running(WAIT, "--job", JOB, "--world-size", "2", "--", "true") as waiting:
        waiting.until("1/2 here")
        second = subprocess.run(
            [BIN / "mingled", "--socket", path], capture_output=True, text=True, check=False
        )
        assert (second.returncode, second.stdout) == (80, "")
        last = second.stderr.splitlines()[-1]
        assert last.startswith(f"mingled: another mingled already serves {path}; ")
        (seat,) = seats()
        assert seat.pid == waiting.process.pid
        (report,) = reports()
        assert report.pid == daemon.process.pid


def test_a_client_that_waits_is_told_of_its_end(path: Path) -> None:
    with Running(BIN / "mingled", "--socket", path) as daemon:
        daemon.until(" link port ")
        with Running(WAIT, "--job", JOB, "--world-size", "2", "--", "true") as waiting:
            waiting.until("1/2 here")
            daemon.process.send_signal(signal.SIGINT)
            assert waiting.end() == 80
            assert "SIGINT" in waiting.err.splitlines()[-1]
        assert daemon.end() == 0
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--interface", "eth99"], "has no interface eth99; it has "),
        (["--interface", ""], "--interface is given with nothing in it"),
        (["--peers", " "], "--peers is given with nothing in it"),
        (["--interface", "10.255.255.1"], "has no address 10.255.255.1; it has "),
        (["--socket", "/no/such/folder/s"], "give --socket another path"),
        (["--socket", "x" * 200], "AF_UNIX path too long; give --socket another path"),
    ],
)
def test_what_it_cannot_serve(path: Path, words: list[str], sentence: str) -> None:
    done = subprocess.run(
        [BIN / "mingled", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=path.parent,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == (2 if "nothing in it" in sentence else 80)
    assert sentence in done.stderr.splitlines()[-1]
    assert list(path.parent.iterdir()) == []


def test_what_to_correct_is_where_it_was_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_words(*words: str) -> str:
        done = subprocess.run(
            [BIN / "mingled", *words], capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode != 0
        return done.stderr.splitlines()[-1]

    config = path.parent / "mingled.toml"
    config.write_text('interface = ["eth99"]')
    monkeypatch.delenv("MINGLE_INTERFACE", raising=False)
    monkeypatch.setenv("MINGLE_CONFIG", str(config))
    assert last_words().endswith(f": correct interface in {config}")
    assert last_words("--interface", "eth98").endswith(": correct --interface")
    monkeypatch.setenv("MINGLE_INTERFACE", "eth97")
    assert last_words().endswith(": correct MINGLE_INTERFACE")
    monkeypatch.setenv("MINGLE_BROADCAST_PORT", "abc")
    assert last_words().endswith("(it is MINGLE_BROADCAST_PORT)")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("MINGLE_CONFIG", "/no/such/file", "/no/such/file on .*: no such file; correct --config"),
        ("MINGLE_BROADCAST_PORT", "abc", "'abc' is not .*MINGLE_BROADCAST_PORT"),
        ("MINGLE_LINK_PORT", "0", "0 is not in the range .*MINGLE_LINK_PORT"),
    ],
)
def test_a_client_is_told_why_its_private_daemon_does_not_start(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.delenv("MINGLE_SOCKET", raising=False)
    monkeypatch.setattr(client, "SYSTEM_SOCKET", runtime / "none")
    monkeypatch.setenv(variable, value)
    with pytest.raises(DaemonError, match=f"job {JOB}: a private daemon could not be .*{words}"):
        client.find(JobId(JOB))


# ---------------------------------------------------------------- other users


@AS_ANOTHER
def test_a_socket_without_permission_is_said_aloud(
    path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch, daemon: Running
) -> None:
    path.chmod(0o600)
    with another_user(), pytest.raises(NotPermitted, match="no permission to ask this daemon") as e:
        client.find(JobId(JOB))
    assert str(path) in str(e.value)
    assert e.value.exit_code == 85
    # The system's daemon is not stepped over either.
    monkeypatch.delenv("MINGLE_SOCKET")
    monkeypatch.setattr(client, "SYSTEM_SOCKET", path)
    with another_user(), pytest.raises(NotPermitted):
        client.find(JobId(JOB))
    assert not runtime.exists()


@AS_ANOTHER
def test_fault_07_a_job_of_another_user(daemon: Running) -> None:
    with Running(WAIT, "--job", JOB, "--world-size", "2", "--", "true") as waiting:
        waiting.until("1/2 here")
        join = local.Join(job=JobId(JOB), form=Form.PROCESS, size_min=2, size_max=2)
        with another_user():
            with pytest.raises(NotPermitted, match=f"job {JOB}.* root"):
                client.join(join, lambda _: None)
            done = client.ask(client.find(JobId(JOB)), local.Leave(job=JobId(JOB)))
        assert done == local.Done(count=0)
        assert [seat.pid for seat in seats()] == [waiting.process.pid]


@AS_ANOTHER
def test_a_lease_cannot_be_handed_to_a_process_of_another_user(daemon: Running) -> None:
    join = local.Join(job=JobId(JOB), form=Form.PLAIN, rank=0, adopt=True)
    with another_user():
        lease = client.join(join, lambda _: None)
        with pytest.raises(DaemonError, match=f"no process {os.getppid()}"):
            client.adopt(f"{lease.connection.path}#{lease.token}", os.getppid())
        lease.leave()
