"""A machine is rebooted in the middle of a job, and takes part again when it is back."""

from __future__ import annotations

from pathlib import Path

from tests.lan.helpers import Running

from .image import VENV
from .machine import Machine

STANDIN = Path(__file__).with_name("standin.py")
FOLDER = "/home/ada/job"
PATH = f"{VENV}/bin:/usr/bin:/bin"


def start(machine: Machine) -> Running:
    machine.user("mkdir", "-p", FOLDER)
    flags = ("--job", "elastic", "--nnodes", "3", "--on-lost", "restart")
    cmd = ("python3", str(STANDIN), FOLDER)
    return machine.start("mingle-wait", *flags, "--timeout", "60s", "--", *cmd)


def test_a_machine_is_rebooted_and_back_in_the_next_round(site: tuple[Machine, ...]) -> None:
    running = {machine.name: start(machine) for machine in site}
    for one in running.values():
        one.until("of 3 round 1\n", "did 5\n", kind="out")
    rebooted = next(m for m in site if "begins rank 0 " not in running[m.name].out)
    before = rebooted.user("stat", "-c", "%Y", "/proc/1").stdout
    out = running.pop(rebooted.name)
    rebooted.reboot()
    assert out.end().code != 0
    assert rebooted.user("stat", "-c", "%Y", "/proc/1").stdout != before
    # The service is there by itself, and the others wait for it.
    assert rebooted.shown("ActiveState") == "active"
    running[rebooted.name] = start(rebooted)
    for one in running.values():
        one.until("of 3 round 2\n", kind="out")
        one.until_true(lambda r=one: "did 5\n" in r.out.partition("round 2\n")[2])  # type: ignore[misc]
    for name, one in running.items():
        if name != rebooted.name:
            assert f"{rebooted.name} ({rebooted.address}, node rank " in one.err
    for machine in site:
        machine.user("touch", f"{FOLDER}/enough")
    for one in running.values():
        one.well()


def test_a_shutdown_says_what_ends_with_it(site: tuple[Machine, ...]) -> None:
    """Sessions of users end before the daemon: nobody waits for what may go on unwatched."""
    flags = ("--job", "elastic", "--nnodes", "2:3", "--on-lost", "restart", "--timeout", "60s")
    running = {}
    for machine in site:
        machine.user("mkdir", "-p", FOLDER)
        machine.user("rm", "-f", f"{FOLDER}/enough")
        cmd = ("mingle-wait", *flags, "--", "python3", str(STANDIN), FOLDER)
        # As a session's scope is, that logind makes.
        session = ("--uid", "ada", "-p", "After=systemd-user-sessions.service")
        words = ("systemd-run", "--quiet", "--pipe", *session, f"--setenv=PATH={PATH}", *cmd)
        running[machine.name] = machine.start(*words, user="root")
    for one in running.values():
        one.until("of 3 round 1\n", "did 5\n", kind="out")
    rebooted = next(m for m in site if "begins rank 0 " not in running[m.name].out)
    running.pop(rebooted.name)
    rebooted.reboot()
    for one in running.values():
        one.until("of 2 round 2\n", kind="out")
        assert "is no longer watched" not in one.err
    for machine in site:
        machine.user("touch", f"{FOLDER}/enough")
    for one in running.values():
        one.well()
