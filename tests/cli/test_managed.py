"""`mingled` under a service manager, which the test plays: sockets, readiness, watchdog, reload."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mingled import client
from mingled.core import local

from .running import BIN, PATIENCE_S, Running
from .test_mingled import path

__all__ = ["path"]  # a fixture, not a name that we call

ACTIVATED = 'LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=x exec "$0" "$@" 3<&{fd}'


class Manager:
    """Reads what a service says."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self.said: list[dict[str, str]] = []

    def until(self, name: str, value: str | None = None) -> dict[str, str]:
        """The next message with this variable (and value)."""
        while True:
            assert select.select([self._sock], [], [], PATIENCE_S)[0], f"no {name} in {self.said}"
            lines = self._sock.recv(4096).decode().splitlines()
            found = dict(line.split("=", 1) for line in lines)
            self.said.append(found)
            if name in found and value in (None, found[name]):
                return found

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def manager(tmp_path: Path, path: Path) -> Iterator[Manager]:
    found = Manager(path.with_name("notify"))
    yield found
    found.close()
    path.with_name("notify").unlink()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "mingled.toml"
    found.write_text('log_level = "info"\n')
    return found


def environ(path: Path, **more: str) -> dict[str, str]:
    notify = str(path.with_name("notify"))
    return os.environ | {"NOTIFY_SOCKET": notify} | more


def managed(path: Path, file: Path, **more: str) -> Running:
    words = (BIN / "mingled", "--socket", path, "--config", file)
    return Running(*words, env=environ(path, **more))


def ended(running: Running, manager: Manager) -> None:
    running.process.terminate()
    manager.until("STOPPING", "1")
    assert running.end() == 0


def report() -> local.Report:
    (connection,) = client.daemons()
    found = client.ask(connection, local.Status())
    assert isinstance(found, local.Report)
    return found


def test_it_says_ready_what_it_does_and_that_it_stops(
    manager: Manager, path: Path, file: Path
) -> None:
    with managed(path, file) as running:
        manager.until("READY", "1")
        assert report().pid == running.process.pid, "clients can connect by then"
        manager.until("STATUS")
        assert manager.said[-1]["STATUS"].startswith("no jobs; link port ")
        ended(running, manager)
    assert not any("WATCHDOG" in said for said in manager.said), "nobody asked for it"


def test_the_loop_itself_says_that_it_lives(manager: Manager, path: Path, file: Path) -> None:
    with managed(path, file, WATCHDOG_USEC="100000") as running:
        manager.until("READY")
        for _ in range(3):
            manager.until("WATCHDOG", "1")
        ended(running, manager)


def test_another_process_watchdog_is_not_ours(manager: Manager, path: Path, file: Path) -> None:
    with managed(path, file, WATCHDOG_USEC="1000", WATCHDOG_PID="1") as running:
        manager.until("STATUS")
        report()
        ended(running, manager)
    assert not any("WATCHDOG" in said for said in manager.said)


# ---------------------------------------------------------------- its socket


def test_it_takes_the_managers_socket_and_leaves_it_there(
    manager: Manager, path: Path, file: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as given:
        given.bind(str(path))
        given.listen()
        before = path.stat().st_ino
        words = (BIN / "mingled", "--socket", "/nonexistent/socket", "--config", file)
        script = ACTIVATED.format(fd=given.fileno())
        for _ in range(2):  # it starts again at the same socket
            with Running(
                "bash", "-c", script, *words, env=environ(path), pass_fds=[given.fileno()]
            ) as running:
                manager.until("READY")
                found = report()
                assert (found.pid, found.socket) == (running.process.pid, str(path))
                ended(running, manager)
            assert path.stat().st_ino == before
        # Whoever comes between two daemons waits for the next.
        between = client.connect(path)
        with Running(
            "bash", "-c", script, *words, env=environ(path), pass_fds=[given.fileno()]
        ) as running:
            answer = client.ask(between, local.Status())
            assert isinstance(answer, local.Report)
            assert answer.pid == running.process.pid
            ended(running, manager)
    path.unlink()


def test_a_given_socket_whose_file_was_removed_is_refused(path: Path, file: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as given:
        given.bind(str(path))
        given.listen()
        path.unlink()
        words = (BIN / "mingled", "--config", file)
        with Running(
            "bash", "-c", ACTIVATED.format(fd=given.fileno()), *words, pass_fds=[given.fileno()]
        ) as running:
            assert running.end() == 80
    assert running.err == (
        f"mingled: {path} on {socket.gethostname()}: the service manager listens there, but its "
        "file was removed and nobody can connect; systemctl restart mingled.socket\n"
    )
    assert list(path.parent.iterdir()) == []


def test_a_socket_of_another_kind_is_refused(path: Path, file: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as given:
        given.bind(("127.0.0.1", 0))
        given.listen()
        words = (BIN / "mingled", "--config", file)
        with Running(
            "bash", "-c", ACTIVATED.format(fd=given.fileno()), *words, pass_fds=[given.fileno()]
        ) as running:
            assert running.end() == 80
    assert "it is no listening Unix stream socket; mingled.socket needs ListenStream=" in (
        running.err
    )
    assert "Traceback" not in running.err


# ---------------------------------------------------------------- reload


def test_a_reload_changes_what_can_change_and_names_the_rest(
    manager: Manager, path: Path, file: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("ab" * 32 + "\n")
    key.chmod(0o600)
    with managed(path, file) as running:
        manager.until("READY")
        before = report()
        file.write_text(
            f'log_level = "debug"\npeers = ["127.0.0.9"]\nkey_file = "{key}"\nlink_port = 29999\n'
        )
        running.process.send_signal(signal.SIGHUP)
        again = manager.until("RELOADING", "1")
        assert int(again["MONOTONIC_USEC"]) > 0
        manager.until("READY", "1")
        running.until("restart mingled to change link_port")
        running.until("configuration read again: changed: key_file, peers, log_level")
        after = report()
        assert (after.pid, after.link_port) == (before.pid, before.link_port)
        assert after.key_ids != before.key_ids
        assert any("127.0.0.9" in line for line in after.discovery)
        running.process.send_signal(signal.SIGHUP)
        running.until("configuration read again: restart mingled to change link_port")
        ended(running, manager)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\nlog_levle = 1\n", "line 2 on {host}: no key 'log_levle'; there are socket, link_port"),
        ("peers = 7\n", "line 1 on {host}: peers = 7: not a list of texts; want something like"),
        ("peers = [", "is no TOML"),
        ('key_file = "/a\\u0000b"\n', "want something like key_file = "),
        ('key_file = "/nonexistent/key"\n', "key file /nonexistent/key on {host}: no such file"),
    ],
)
def test_a_bad_configuration_leaves_the_one_before_in_force(
    manager: Manager, path: Path, file: Path, text: str, says: str
) -> None:
    with managed(path, file) as running:
        manager.until("READY")
        before = report()
        file.write_text(text)
        running.process.send_signal(signal.SIGHUP)
        manager.until("RELOADING")
        manager.until("READY")
        running.until("; the configuration of before stays in force\n")
        assert says.format(host=socket.gethostname()) in running.err
        after = report()
        assert (after.pid, after.key_ids) == (before.pid, before.key_ids)
        assert after.discovery == before.discovery
        ended(running, manager)
    assert "Traceback" not in running.err


def test_a_check_says_what_is_wrong_and_starts_nothing(path: Path, file: Path) -> None:
    words = (BIN / "mingled", "--check", "--socket", path, "--config", file)
    with Running(*words) as good:
        assert good.end() == 0
    assert good.err == "mingled: the configuration is good\n"
    file.write_text("discovery = []\n")
    with Running(*words) as bad:
        assert bad.end() == 2
    assert "line 1" in bad.err
    assert "nothing is no way of discovery" in bad.err
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [("peers = 7\n", "peers = 7: not a list"), ('key_file = "/nonexistent/key"\n', "no such file")],
)
def test_why_it_does_not_start_is_an_error_in_the_journal(
    path: Path, file: Path, tmp_path: Path, text: str, says: str
) -> None:
    file.write_text(text)
    with (tmp_path / "stderr").open("w+") as stderr:
        about = os.fstat(stderr.fileno())
        done = subprocess.run(
            [BIN / "mingled", "--socket", path, "--config", file],
            stderr=stderr,
            env=os.environ | {"JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino}"},
            timeout=PATIENCE_S,
            check=False,
        )
        stderr.seek(0)
        said = stderr.read()
    assert done.returncode == 2
    assert said.startswith("<3>mingled: ")
    assert says in said


def test_a_stale_socket_is_replaced_and_somebody_elses_is_not(path: Path, file: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    assert stat.S_ISSOCK(path.stat().st_mode)
    with Running(BIN / "mingled", "--socket", path, "--config", file) as running:
        running.until(f" on {path}, link port ")
        running.process.terminate()
        assert running.end() == 0
    path.write_text("a file of somebody's")
    with Running(BIN / "mingled", "--socket", path, "--config", file) as refused:
        assert refused.end() == 80
    assert refused.err.endswith(
        f"mingled: {path} is there and is no socket; remove it or choose another path\n"
    )
    path.unlink()
