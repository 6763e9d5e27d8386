"""A daemon is killed at any moment: before the seal nobody gets half a round, after it training
goes on, and is watched again as soon as a daemon is back."""

from __future__ import annotations

import random
import signal
import time

import pytest

from mingled.lab import Node

from .conftest import MakeLan
from .helpers import (
    SOCKET,
    STAY,
    Done,
    Running,
    daemon,
    daemons,
    daemons_on,
    kill_daemon,
    nothing_left,
    one_round,
    ready_to_wait,
    until_fates,
    variables,
    wait,
)

NODES = 4
ENDS = (0, 80, 82, 86)
"""How a wait may end: in a round, or by a named error."""


@pytest.mark.parametrize("phase", ["gathering", "sealing"])
@pytest.mark.parametrize("percent", [0, 20])
def test_fault_01_a_daemon_is_killed_before_the_end_of_the_seal(
    lan: MakeLan, phase: str, percent: int
) -> None:
    four = lan(nodes=NODES)
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    print(f"seed {seed}")  # noqa: T201  pytest shows it on failure
    running = dict(zip(range(1, NODES + 1), daemons_on(four.nodes), strict=True))
    for victim in four.nodes:
        job = f"bert {victim.number}"
        four.loss(percent)
        flags = ("--nnodes", str(NODES))
        first = {node.number: ready_to_wait(node, job, *flags) for node in four.nodes}
        last = chance.choice(four.nodes).number
        for number, one in first.items():
            if number != last:
                one.go()
        if phase == "sealing":
            for number, one in first.items():
                if number != last:
                    one.until("3/4 here")
        first[last].go()
        # The one place where time is what a test is about: any moment will do.
        time.sleep(chance.uniform(0, 0.05 if percent == 0 else 1.0))
        kill_daemon(victim)
        running[victim.number].end()
        four.loss(0)
        together(four.nodes, job, first)
        running[victim.number] = daemon(victim)


def together(nodes: tuple[Node, ...], job: str, first: dict[int, Running]) -> None:
    """Whoever ended starts again, until all are in one round. Nobody is in half a round, and the
    first starts were in one round at most."""
    rounds: dict[tuple[str, str], dict[int, dict[str, str]]] = {}
    of_first = set()
    waits = dict(first)
    transcript = []
    while not any(len(envs) == len(nodes) for envs in rounds.values()):
        over = [number for number, running in waits.items() if running.over]
        if not over:
            time.sleep(0.01)
        for number in over:
            done = waits[number].end()
            transcript.append(f"gpu{number}: {done.code}\n{done.err}")
            said = "\n".join(transcript)
            assert done.code in ENDS, said
            if done.code == 0:
                key = (done.env["MINGLE_CLAIM"], done.env["MINGLE_ROUND"])
                mates = rounds.setdefault(key, {})
                assert number not in mates, said
                mates[number] = done.env
                assert len({env["MINGLE_HOSTS"] for env in mates.values()}) == 1, said
                assert len({env["MASTER_PORT"] for env in mates.values()}) == 1, said
                if waits[number] is first[number]:
                    of_first.add(key)
            else:
                assert done.out == "", said
                assert f"job {job}" in done.err or "the daemon at" in done.err, said
            assert len(of_first) <= 1, said
            waits[number] = wait(nodes[number - 1], job, "--nnodes", str(len(nodes)))
    for running in waits.values():
        if not running.over:
            running.process.send_signal(signal.SIGTERM)
        running.end()


by_whose_daemon = pytest.mark.parametrize("whose", ["leader", "follower"])


@pytest.mark.parametrize("system", [False, True], ids=["private", "system"])
@by_whose_daemon
def test_fault_01_a_daemon_is_killed_after_the_seal_and_comes_back(
    lan: MakeLan, whose: str, system: bool
) -> None:
    three = lan(nodes=3)
    env = {"MINGLE_SOCKET": SOCKET} if system else {}
    if system:
        daemons_on(three.nodes)
    leader = wait(three.node(1), "bert", "--nnodes", "3", cmd=STAY, env=env)
    leader.until("1/3 here: gpu1; waiting for 2 more\n")
    cmd = ("sh", "-c", "env -0; cat; exit 5")
    rest = {
        number: wait(three.node(number), "bert", "--nnodes", "3", cmd=cmd, env=env)
        for number in (2, 3)
    }
    runs = {1: leader, **rest}
    for running in runs.values():
        running.until("this is node rank")
        running.until("MINGLE_EXPORTED", kind="out")
    assert one_round(three, {n: variables(running.out) for n, running in runs.items()}) == 1
    victim = 1 if whose == "leader" else 2
    node = three.node(victim)
    kill_daemon(node)
    runs[victim].until("the daemon ended; training goes on unwatched until one is back")
    who = f"gpu{victim} ({node.address}, node rank {victim - 1})"
    for number in set(runs) - {victim}:
        runs[number].until(f"{who} is no longer watched")
    if system:
        daemon(node, SOCKET)
    runs[victim].until("a daemon is back: training is watched again")
    for number in set(runs) - {victim}:
        runs[number].until(f"{who} is watched again")
    for one in three.nodes:
        until_fates(one, "bert", ["running"] * 3)
    for running in runs.values():
        assert "lost" not in running.err
        assert not running.over
    # Watched as before: an end is told, in either direction.
    assert rest[2].finish().code == 5
    runs[1].until(f"gpu2 ({three.node(2).address}, node rank 1) lost", "exit 5")
    runs[3].until(f"gpu2 ({three.node(2).address}, node rank 1) lost", "exit 5")
    kill_cmd(leader)
    runs[3].until("gpu1 (10.77.0.1, node rank 0) lost", "killed by")
    assert runs[3].finish().code == 5
    if not system:
        nothing_left(three)


def kill_cmd(running: Running) -> Done:
    """SIGKILL to mingle-wait; CMD ends with its stdin."""
    running.process.kill()
    return running.finish()


def test_fault_01_both_daemons_are_killed_and_come_back(lan: MakeLan) -> None:
    both = lan(nodes=2)
    runs = [wait(node, "bert", "--nnodes", "2", cmd=STAY) for node in both.nodes]
    for running in runs:
        running.until("this is node rank")
    for node in both.nodes:
        kill_daemon(node)
    for running in runs:
        running.until("a daemon is back: training is watched again")
    for node in both.nodes:
        until_fates(node, "bert", ["running", "running"])
        assert len(daemons(node)) == 1
    for running in runs:
        assert "lost" not in running.finish().err
    nothing_left(both)
