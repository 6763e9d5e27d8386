"""A machine is rebooted in the middle of a job, and takes part again when it is back."""

from __future__ import annotations

from pathlib import Path

from tests.lan.helpers import Running

from .machine import Machine

STANDIN = Path(__file__).with_name("standin.py")
FOLDER = "/home/ada/job"


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
