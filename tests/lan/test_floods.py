"""Floods, and what runs out: whatever it is, a sealed job stays sealed and a new one still starts.

How late the loop was is measured by `python -m benchmarks.floods`: machines are noisy.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable

import pytest

from mingled.lab import Lan, Node

from . import attacks
from .conftest import MakeLan
from .helpers import (
    BIN,
    PATIENCE_S,
    SOCKET,
    STAY,
    Running,
    daemons,
    daemons_on,
    job_on,
    start,
    status,
    until_fates,
    wait,
)

GARBAGE = 10_000
SERVICES = 12_000
CONNECTIONS = 1_000
CLIENTS = 1_000

MEMORY_MAX_KIB = 48 * 1024
"""What a flood may add to a daemon: see docs/endurance.md for what it consists of."""

DESCRIPTORS_MORE = 8
"""Than before, once it is over: a link or two more, a probe in between."""

LINK_PORT = 29_490


class Sealed:
    """A job that runs on the first two nodes; the third is the attacker's."""

    def __init__(self, lan: Lan) -> None:
        self.lan = lan
        self.nodes = lan.nodes[:2]
        self.jobs = 0
        self.daemons = daemons_on(self.nodes)
        first, second = self.nodes
        self.leader = wait(first, "sealed", "--nnodes", "2", "--node-rank", "0", cmd=STAY)
        self.follower = wait(second, "sealed", "--nnodes", "2", "--node-rank", "1", cmd=STAY)
        for running in (self.leader, self.follower):
            running.until("MINGLE_EXPORTED", kind="out")
        self.before = self.counts()

    def counts(self) -> dict[str, int]:
        """Of the leader's daemon."""
        (report,) = status(self.nodes[0])
        return dict(report["counts"])

    @property
    def label(self) -> str:
        return str(job_on(self.nodes[0], "sealed")["label"])

    def until(self, holds: Callable[[dict[str, int]], bool]) -> dict[str, int]:
        """Ask for the counts until they are so."""
        until_s = time.monotonic() + PATIENCE_S
        while not holds(counts := self.counts()):
            assert time.monotonic() < until_s, (self.before, counts)
        return counts

    def starts_another(self) -> None:
        self.jobs += 1
        job = f"another {self.jobs}"
        runs = [wait(node, job, "--nnodes", "2") for node in self.nodes]
        assert len({running.well().env["MASTER_ADDR"] for running in runs}) == 1

    def stands(self) -> None:
        """Nobody was called lost, and what was taken is given back."""
        for running in (self.leader, self.follower):
            assert not running.over
            assert "lost" not in running.err
            assert "no longer watched" not in running.err
        for node in self.nodes:
            until_fates(node, "sealed", ["running", "running"])
        most = self.before["descriptors"] + DESCRIPTORS_MORE
        tasks = self.before["tasks"] + DESCRIPTORS_MORE
        now = self.until(
            lambda c: c["descriptors"] <= most and c["tasks"] <= tasks and c["clients"] <= 3
        )
        assert now["resident KiB"] - self.before["resident KiB"] < MEMORY_MAX_KIB
        assert now["adverts heard"] <= 4_096
        assert now["names cached"] <= 10_000

    def ends(self) -> None:
        """A member that is killed is still told of."""
        self.follower.process.kill()
        self.leader.until(f"gpu2 ({self.nodes[1].address}, node rank 1) lost", "killed by signal 9")
        self.follower.finish()
        assert self.leader.finish().code == 0


@pytest.fixture
def sealed(lan: MakeLan) -> Sealed:
    return Sealed(lan(nodes=3))


def attack(node: Node, *words: object) -> Running:
    """Started, and all of it under way."""
    argv = [sys.executable, attacks.__file__, *map(str, words)]
    running = start(node, *argv)
    running.until("done", kind="out")
    return running


def test_fault_32_ten_thousand_garbage_datagrams(sealed: Sealed) -> None:
    over = attack(sealed.lan.node(3), "garbage", sealed.nodes[0].address, GARBAGE)
    sealed.starts_another()
    assert over.finish().code == 0
    sealed.stands()
    sealed.ends()


@pytest.mark.parametrize("own", [False, True], ids=["strangers' labels", "the job's own, too"])
def test_fault_33_twelve_thousand_forged_services(sealed: Sealed, own: bool) -> None:
    label = sealed.label if own else ""
    over = attack(sealed.lan.node(3), "services", SERVICES, label)
    sealed.starts_another()
    assert over.finish().code == 0
    sealed.stands()
    sealed.ends()


def test_a_thousand_connections_that_show_no_certificate(sealed: Sealed) -> None:
    address = sealed.nodes[0].address
    over = attack(sealed.lan.node(3), "connections", address, LINK_PORT, CONNECTIONS)
    sealed.starts_another()
    sealed.until(lambda counts: counts["handshakes"] == 0)  # hung up on, though they hold on
    assert over.finish().code == 0
    sealed.stands()
    sealed.ends()


def test_a_thousand_local_clients(sealed: Sealed) -> None:
    over = attack(sealed.nodes[0], "clients", SOCKET, CLIENTS)
    sealed.until(lambda counts: counts["clients"] < 10)
    sealed.starts_another()
    assert over.finish().code == 0
    sealed.stands()
    sealed.ends()


# ---------------------------------------------------------------- what runs out


def test_fault_30_the_disk_is_full_and_nobody_reads_the_log(lan: MakeLan) -> None:
    """Its folder and its log are on a disk without a free byte."""
    both = lan(nodes=3)
    for node in both.nodes[:2]:
        node.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/run"], check=True)
        node.run(["sh", "-c", "mkdir /run/mingled; cat /dev/zero > /run/filler"])
        assert node.run(["sh", "-c", "echo x > /run/more"]).returncode != 0
    daemon = f"exec {BIN}/mingled --socket {SOCKET} --log-level debug 2>> /run/mingled/log"
    served = [start(node, "sh", "-c", daemon) for node in both.nodes[:2]]
    for node in both.nodes[:2]:
        until_served(node)
    runs = [wait(node, "bert", "--nnodes", "2", cmd=STAY) for node in both.nodes[:2]]
    for running in runs:
        running.until("MINGLE_EXPORTED", kind="out")
    for node in both.nodes[:2]:
        until_fates(node, "bert", ["running", "running"])
        assert not node.run(["cat", "/run/mingled/log"]).stdout
    for running in runs:
        assert running.finish().code == 0
    for one in served:
        one.process.terminate()
        assert one.end().code == 0


@pytest.mark.parametrize("how", ["closed", "stuck"])
def test_fault_30_the_log_pipe_has_no_reader(lan: MakeLan, how: str) -> None:
    """Its end is closed, or whoever has it reads no more."""
    both = lan(nodes=2)
    keep = "" if how == "closed" else "; sleep 1000"
    # The pipe is full before the daemon says a word.
    fill = "dd if=/dev/zero bs=4096 count=15 status=none"
    daemon = f"{{ {fill}; exec {BIN}/mingled --socket {SOCKET} --log-level debug; }} 2>&1"
    started = [
        start(node, "sh", "-c", f"{daemon} | {{ exec 3<&0; head -c 1 >/dev/null{keep}; }}")
        for node in both.nodes
    ]
    for node in both.nodes:
        until_served(node)
    for number in range(3):
        runs = [wait(node, f"job {number}", "--nnodes", "2", cmd=STAY) for node in both.nodes]
        for running in runs:
            running.until("MINGLE_EXPORTED", kind="out")
        for node in both.nodes:
            until_fates(node, f"job {number}", ["running", "running"])
        for running in runs:
            assert running.finish().code == 0
    assert not any(running.over for running in started if how == "stuck")


def until_served(node: Node) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not (daemons(node) and status(node)):
        assert time.monotonic() < until_s, f"no daemon answers on {node.name}"


def test_fault_31_descriptors_are_exhausted(sealed: Sealed) -> None:
    node, other = sealed.nodes
    (pid,) = daemons(node)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(used) + 12, limits[1]))
    # Some get in and keep what there is; the rest are turned away.
    over = [attack(node, "clients", SOCKET, 100) for _ in range(3)]
    sealed.daemons[0].until(
        "new clients are turned away: the daemon on gpu1 has no file descriptor left"
    )
    strangers = attack(sealed.lan.node(3), "connections", node.address, LINK_PORT, 60)
    until_fates(other, "sealed", ["running", "running"])
    for one in (*over, strangers):
        assert one.finish().code == 0
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    sealed.starts_another()
    sealed.stands()
    sealed.ends()
    lines = sealed.daemons[0].err.splitlines()
    assert sum("descriptor" in line for line in lines) <= 4
    assert not [line for line in lines if "Traceback" in line or "bug" in line]
