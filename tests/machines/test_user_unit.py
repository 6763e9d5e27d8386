"""A user's own daemon, under the user's own service manager, beside the machine's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from .image import USER, VENV
from .machine import Machine, until

MINGLE = f"{VENV}/bin/mingle"
WAIT = f"{VENV}/bin/mingle-wait"

Site = tuple[Machine, ...]


class Own:
    """What the user says to the manager and to the daemon of theirs."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.uid = machine.root("id", "-u", USER).stdout.strip()
        self.socket = f"/run/user/{self.uid}/mingled.sock"

    def manager(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        runtime = f"XDG_RUNTIME_DIR=/run/user/{self.uid}"
        return self.machine.user("env", runtime, "systemctl", "--user", *argv, check=check)

    def words(self, *argv: str) -> tuple[str, ...]:
        return ("env", f"MINGLE_SOCKET={self.socket}", *argv)

    def shown(self, name: str) -> str:
        return self.manager("show", "mingled", f"--property={name}", "--value").stdout.strip()


@pytest.fixture
def own(site: Site) -> Iterator[Own]:
    own = Own(site[0])
    unit = f"user@{own.uid}.service"
    site[0].root("systemctl", "start", unit)
    try:
        own.manager("start", "mingled")
        yield own
    finally:
        site[0].root("systemctl", "stop", unit)


def test_it_serves_its_user_beside_the_machines_own(own: Own, site: Site) -> None:
    one, other = site[:2]
    (report,) = json.loads(one.user(*own.words(MINGLE, "status", "--json")).stdout)
    assert (str(report["pid"]), report["socket"]) == (own.shown("MainPID"), own.socket)
    assert one.root("ps", "-o", "user=", "-p", str(report["pid"])).stdout.strip() == USER
    assert report["pid"] != one.daemon
    assert own.shown("StatusText").startswith("no jobs; link port ")

    flags = ("--job", "own", "--world-size", "2", "--timeout", "60s", "--", "printenv", "RANK")
    here = one.start(*own.words(WAIT, *flags))
    there = other.start(WAIT, *flags)
    assert sorted((here.end().out, there.end().out)) == ["0\n", "1\n"]


def test_a_reload_keeps_it_and_a_crash_brings_another(own: Own) -> None:
    before = own.shown("MainPID")
    own.manager("reload", "mingled")
    assert own.shown("MainPID") == before
    own.manager("kill", "--signal=KILL", "mingled")
    until(
        lambda: own.shown("MainPID") not in ("0", before) and own.shown("ActiveState") == "active",
        "no new daemon comes",
    )
    (report,) = json.loads(own.machine.user(*own.words(MINGLE, "status", "--json")).stdout)
    assert str(report["pid"]) == own.shown("MainPID")


def test_with_the_manager_it_ends_and_leaves_no_socket(own: Own) -> None:
    own.manager("stop", "mingled")
    assert own.machine.root("test", "-e", own.socket, check=False).returncode == 1
    done = own.machine.user(*own.words(MINGLE, "status"), check=False)
    assert done.returncode == 80
    assert own.socket in done.stderr
