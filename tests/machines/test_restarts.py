"""The daemon ends and comes back in the middle of a job of an ordinary user: the job goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.lan.helpers import Running

from .conftest import INSTALLED, UPGRADE, install
from .image import VENV
from .machine import Machine, until

JOB = "bert"
STANDIN = Path(__file__).with_name("standin.py")
ENDED = "the daemon ended; training goes on unwatched until one is back"
AGAIN = "a daemon is back: training is watched again"

Site = tuple[Machine, ...]


class Training(NamedTuple):
    """A job that runs on two machines."""

    leader: Machine
    follower: Machine
    running: dict[str, Running]

    def steps(self, machine: Machine) -> int:
        return len(re.findall(r"^did \d+$", self.running[machine.name].out, re.MULTILINE))

    def goes_on(self) -> None:
        """Ten more steps on each machine."""
        for name, running in self.running.items():
            done = running.out.count("\ndid ")
            running.until_true(lambda r=running, d=done: r.out.count("\ndid ") >= d + 10)  # type: ignore[misc]
            assert not running.over, name

    def unharmed(self) -> None:
        """It is the round that it was, with the connections that it had."""
        self.goes_on()
        for running in self.running.values():
            assert len(re.findall("^begins ", running.out, re.MULTILINE)) == 1
            assert "lost" not in running.err


def begin(machines: tuple[Machine, ...], folder: str) -> Training:
    running = {}
    for machine in machines:
        machine.user("rm", "-rf", folder)
        machine.user("mkdir", folder)
        flags = ("--job", JOB, "--nnodes", str(len(machines)), "--timeout", "60s")
        cmd = ("python3", str(STANDIN), folder)
        running[machine.name] = machine.start("mingle-wait", *flags, "--", *cmd)
    for one in running.values():
        one.until("did 5\n", kind="out")
    ranks = {name: one.out.split("rank ")[1][0] for name, one in running.items()}
    leader, follower = sorted(machines, key=lambda m: ranks[m.name])
    return Training(leader, follower, running)


def end(training: Training, folder: str) -> None:
    for machine in (training.leader, training.follower):
        machine.user("touch", f"{folder}/enough")
    for running in training.running.values():
        running.well()


@pytest.fixture
def training(site: Site) -> Iterator[Training]:
    found = begin(site[:2], "/tmp/job")
    yield found
    found.unharmed()
    end(found, "/tmp/job")


def job(machine: Machine) -> dict[str, Any]:
    (report,) = json.loads(machine.user("mingle", "status", "--json").stdout)
    (found,) = [job for job in report["jobs"] if job["job"] == JOB]
    return dict(found)


def fates(machine: Machine) -> list[str]:
    return [member["state"] for member in job(machine)["rounds"][-1]["members"]]


def all_run(training: Training) -> None:
    for machine in (training.leader, training.follower):
        until(
            lambda m=machine: fates(m) == ["running", "running"],  # type: ignore[misc]
            f"{machine.name} does not know of both",
        )


def other(training: Training, machine: Machine) -> Machine:
    return training.follower if machine is training.leader else training.leader


def role(training: Training, name: str) -> Machine:
    return training.leader if name == "leader" else training.follower


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_systemctl_restart(training: Training, who: str) -> None:
    machine = role(training, who)
    before, socket = machine.daemon, machine.root("stat", "-c", "%i", SOCKET).stdout
    machine.root("systemctl", "restart", "mingled")
    training.running[machine.name].until(ENDED, AGAIN)
    assert machine.daemon != before
    assert machine.root("stat", "-c", "%i", SOCKET).stdout == socket, "the socket stays"
    all_run(training)
    rank = 0 if who == "leader" else 1
    told = f"{machine.name} ({machine.address}, node rank {rank})"
    journal = other(training, machine).journal()
    assert f"job {JOB}: {told} is no longer watched" in journal
    assert f"job {JOB}: {told} is watched again" in journal
    assert re.search(rf"job {JOB}: pid \d+ of ada is back", machine.journal())


SOCKET = "/run/mingled/control.sock"


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_the_daemon_is_killed(training: Training, who: str) -> None:
    machine = role(training, who)
    before = machine.daemon
    machine.root("kill", "-KILL", str(before))
    machine.until_another_daemon(before)
    assert int(machine.shown("NRestarts")) > 0
    training.running[machine.name].until(ENDED, AGAIN)
    all_run(training)


def test_a_daemon_whose_loop_is_stuck_is_restarted_by_the_watchdog(site: Site) -> None:
    """With 2 s instead of 20, for the test's sake."""
    machine = site[0]
    folder = "/run/systemd/system/mingled.service.d"
    machine.root("mkdir", "-p", folder)
    machine.root("sh", "-c", f"printf '[Service]\\nWatchdogSec=2\\n' > {folder}/test.conf")
    machine.root("systemctl", "daemon-reload")
    machine.root("systemctl", "restart", "mingled")
    try:
        training = begin(site[:2], "/tmp/job")
        before = machine.daemon
        machine.root("kill", "-STOP", str(before))
        machine.until_another_daemon(before)
        assert "Watchdog timeout (limit 2s)!" in machine.journal()
        assert "Current thread" in machine.journal(), "where it was stuck"
        training.running[machine.name].until(ENDED, AGAIN)
        all_run(training)
        training.unharmed()
        end(training, "/tmp/job")
    finally:
        machine.root("rm", "-r", folder)
        machine.root("systemctl", "daemon-reload")
        machine.root("systemctl", "restart", "mingled")


def test_an_upgrade_in_the_middle_of_training(training: Training, wheels: Path) -> None:
    for machine in (training.follower, training.leader):
        install(machine, wheels, UPGRADE)
        (report,) = json.loads(machine.user("mingle", "status", "--json").stdout)
        assert report["release"] == INSTALLED, "the old one runs until it is restarted"
        done = machine.root(f"{VENV}/bin/mingle", "service", "install")
        assert (
            f"restarted the daemon: {INSTALLED} before, {UPGRADE} now; jobs that run go on"
        ) in done.stderr
        training.running[machine.name].until(ENDED, AGAIN)
        (report,) = json.loads(machine.user("mingle", "status", "--json").stdout)
        assert report["release"] == UPGRADE
    all_run(training)
    for machine in (training.follower, training.leader):
        install(machine, wheels, INSTALLED)
        machine.root(f"{VENV}/bin/mingle", "service", "install")
        training.running[machine.name].until(AGAIN, times=2)
    all_run(training)


def test_the_journal_knows_the_job_and_the_level(training: Training) -> None:
    machine = training.leader
    training.follower.root("systemctl", "restart", "mingled")
    until(
        lambda: "is no longer watched" in machine.journal(f"MINGLE_JOB={JOB}", "-p", "warning"),
        "the loss of watch is no warning",
    )
    lines = machine.journal(f"MINGLE_JOB={JOB}", "-o", "json").splitlines()
    entries = [json.loads(line) for line in lines]
    assert all(entry["MINGLE_JOB"] == JOB for entry in entries)
    joins = [e for e in entries if re.fullmatch(r"job bert: pid \d+ of ada joins", e["MESSAGE"])]
    assert joins
    assert {entry["PRIORITY"] for entry in joins} == {"6"}
    assert {entry["SYSLOG_IDENTIFIER"] for entry in joins} == {"mingled"}


def test_the_end_of_another_users_process_is_seen(site: Site) -> None:
    """The daemon's own user may not trace it, and sees it end nevertheless."""
    training = begin(site[:2], "/tmp/job")
    seat = job(training.follower)["seats"][0]
    assert seat["user"] == "ada"
    training.follower.root("kill", "-KILL", str(seat["pid"]))
    training.running[training.leader.name].until(
        f"{training.follower.name} ({training.follower.address}, node rank 1) lost"
    )
    assert "killed by signal 9" in training.running[training.leader.name].err
