"""torchrun with mingled's backend outlives what may happen to its nodes. `benchmarks/survival.py`
does the same to c10d, and measures both."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
from pathlib import Path

import pytest

from mingled.lab import Lan

from .agents import JOB, Agents
from .conftest import MakeLan, absent
from .helpers import Done, kill_daemon, nothing_left, until_fates

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _needs_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        absent("torch is not installed")


def three(lan: Lan, folder: Path, **options: object) -> Agents:
    """Three agents of 2 to 4 that train. Nobody has a restart to spend."""
    agents = Agents(lan, folder, **options)  # type: ignore[arg-type]
    agents.start((1, 2, 3))
    agents.until_trained()
    return agents


def well(lan: Lan, ends: dict[int, Done]) -> None:
    """All ended with success, and nothing is left."""
    for number, done in ends.items():
        assert done.code == 0, (number, done)
    nothing_left(lan)


def goes_on_from_the_checkpoint(agents: Agents, numbers: set[int]) -> None:
    """No step of the last round but one is lost on the way to the last."""
    for number in numbers:
        begun = [step for step, _, _ in agents.rounds(number)]
        did = [step.number for step in agents.steps(number)]
        assert did == sorted(did), (number, did)
        assert begun[-1] >= max(step for step in did if step <= begun[-1]), (number, begun)
        assert begun[-1] > 0


# ---------------------------------------------------------------- somebody dies


@pytest.mark.parametrize("victim", ["follower", "store host"])
def test_fault_03_a_node_is_killed_and_the_rest_go_on(
    lan: MakeLan, tmp_path: Path, victim: str
) -> None:
    net = lan(nodes=3)
    agents = three(net, tmp_path)
    store = agents.store_host
    dies = store if victim == "store host" else agents.follower()
    agents.kill(dies)
    agents.until_round(2, 2)
    assert (agents.store_host == store) == (victim == "follower")
    goes_on_from_the_checkpoint(agents, set(agents.alive()))
    ends = agents.enough()
    for done in ends.values():
        assert f"gpu{dies} (10.77.0.{dies}, node rank" in done.err
        assert "lost just now in round 1: killed by signal 9" in done.err
    well(net, ends)


def test_the_store_host_is_stopped_and_comes_back(lan: MakeLan, tmp_path: Path) -> None:
    net = lan(nodes=3)
    agents = three(net, tmp_path)
    stopped = agents.store_host
    agents.signal(stopped, signal.SIGSTOP)
    agents.dead.add(stopped)
    agents.until_round(2, 2)
    agents.signal(stopped, signal.SIGCONT)
    agents.dead.clear()
    agents.until_round(3, 2)
    assert agents.store_host != stopped
    assert len(agents.rounds(stopped)) == 2, "it was in no round but the first and the last"
    goes_on_from_the_checkpoint(agents, {1, 2, 3})
    well(net, agents.enough())


def test_a_node_is_cut_off_without_a_packet_and_plugged_in_again(
    lan: MakeLan, tmp_path: Path
) -> None:
    net = lan(nodes=3)
    agents = three(net, tmp_path)
    out = agents.store_host
    agents.cut(out)
    agents.until_round(2, 2)
    agents.running[out].until("waiting for 1 more")
    net.heal(out)
    agents.dead.clear()
    agents.until_round(3, 2)
    goes_on_from_the_checkpoint(agents, {1, 2, 3})
    well(net, agents.enough())


def test_one_worker_is_killed(lan: MakeLan, tmp_path: Path) -> None:
    net = lan(nodes=3)
    agents = three(net, tmp_path, restarts=1, nproc=2)
    node = agents.follower()
    os.kill(agents.workers(node)[0], signal.SIGKILL)
    agents.until_round(6, 2)
    for number in {1, 2, 3} - {node}:
        agents.running[number].until(f"gpu{node} (10.77.0.{node}, node rank", "begins anew")
    well(net, agents.enough())


# ---------------------------------------------------------------- somebody comes


def test_a_newcomer_is_let_in(lan: MakeLan, tmp_path: Path) -> None:
    net = lan(nodes=4)
    agents = three(net, tmp_path)
    agents.start([4])
    agents.until_round(4, 1)
    goes_on_from_the_checkpoint(agents, {1, 2, 3})
    well(net, agents.enough())


# ---------------------------------------------------------------- in the wrong moment


def test_fault_03_rank_0_dies_between_the_roster_and_the_ranks(
    lan: MakeLan, tmp_path: Path
) -> None:
    net = lan(nodes=3)
    agents = Agents(net, tmp_path, fatal=True)
    agents.start((1, 2, 3))
    dead = agents.until_one_ended()
    assert agents.running[dead].end().code == 128 + signal.SIGKILL
    agents.until_round(2, 1)
    well(net, agents.enough())


def test_one_agent_finishes_long_before_the_others(lan: MakeLan, tmp_path: Path) -> None:
    net = lan(nodes=3)
    agents = three(net, tmp_path)
    first = agents.store_host
    files = [agents.linger(number) for number in {1, 2, 3} - {first}]
    (tmp_path / "enough").touch()
    agents.running[first].until("this node has finished, and waits for gpu")
    until_fates(net.node(first), JOB, ["finished", "running", "running"])
    assert not agents.running[first].over
    for path in files:
        path.unlink()
    ends = agents.enough()
    for done in ends.values():
        assert "lost" not in done.err
    well(net, ends)


def test_a_store_host_that_has_finished_dies_in_the_exit_barrier(
    lan: MakeLan, tmp_path: Path
) -> None:
    net = lan(nodes=3)
    agents = three(net, tmp_path)
    store, late = agents.store_host, agents.follower()
    file = agents.linger(late)
    (tmp_path / "enough").touch()
    (other,) = {1, 2, 3} - {store, late}
    for number in (store, other):
        agents.running[number].until("this node has finished, and waits for gpu")
    until_fates(net.node(late), JOB, fates_of(agents, late, {store: "finished", other: "finished"}))
    agents.kill(store)
    until_fates(net.node(late), JOB, fates_of(agents, late, {store: "left", other: "finished"}))
    assert not agents.running[other].over
    file.unlink()
    well(net, agents.enough())


def test_no_success_is_said_where_rank_0_never_finished(lan: MakeLan, tmp_path: Path) -> None:
    net = lan(nodes=3)
    agents = three(net, tmp_path)
    store = agents.store_host
    agents.linger(store)
    (tmp_path / "enough").touch()
    others = {1, 2, 3} - {store}
    for number in others:
        agents.running[number].until("this node has finished, and waits for gpu")
    agents.kill(store)
    for number, done in agents.enough().items():
        assert number in others
        assert done.code == 1
        assert "job bert: this node has finished its work, but gpu" in done.err
        assert f"gpu{store} (10.77.0.{store}, node rank 0) lost" in done.err
    nothing_left(net)


def test_five_rounds_on_one_rank_0(lan: MakeLan, tmp_path: Path) -> None:
    net = lan(nodes=3)
    agents = three(net, tmp_path, restarts=4)
    store, node = agents.store_host, agents.follower()
    for round_ in range(2, 6):
        os.kill(agents.workers(node)[0], signal.SIGKILL)
        agents.until_round(3, round_)
        assert agents.store_host == store
    masters = re.findall(r"rank 0 is gpu\d \(10.77.0.\d:(\d+)\)", agents.running[store].err)
    assert len(set(masters)) == 5, "each round has a store of its own"
    goes_on_from_the_checkpoint(agents, {1, 2, 3})
    well(net, agents.enough())


# ---------------------------------------------------------------- the rest


def test_daemons_die_under_running_agents(lan: MakeLan, tmp_path: Path) -> None:
    net = lan(nodes=3)
    agents = three(net, tmp_path)
    for number in (agents.store_host, agents.follower()):
        kill_daemon(net.node(number))
        agents.running[number].until("a daemon is back: training is watched again")
    until_fates(net.node(agents.store_host), JOB, ["running"] * 3)
    dies = agents.follower()
    agents.kill(dies)
    agents.until_round(2, 2)
    well(net, agents.enough())


def test_whoever_waits_hears_that_the_run_has_ended(lan: MakeLan, tmp_path: Path) -> None:
    net = lan(nodes=4)
    agents = three(net, tmp_path, nodes="2:3")
    agents.start([4])
    agents.running[4].until("this one is for the next")
    late = agents.running.pop(4)
    (tmp_path / "enough").touch()
    done = late.end()
    assert done.code == 1
    assert "RendezvousClosedError: job bert: the run has ended: round 1 has finished" in done.err
    well(net, agents.enough())


def test_uneven_processes_and_the_address_that_was_asked_for(lan: MakeLan, tmp_path: Path) -> None:
    net = lan(nodes=2, networks=2)
    agents = Agents(net, tmp_path, nodes="2", nproc=1)
    second = net.node(1).addresses[1]
    agents.start([1], "rank=1", f"interface={second}")
    more = Agents(net, tmp_path, nodes="2", nproc=3, local_addr=net.node(2).addresses[1])
    more.start([2], "rank=0")
    agents.running[2] = more.running[2]
    agents.until_round(4, 1)
    assert agents.rounds(1) == [(0, 3, 4)]
    assert sorted(more.rounds(2)) == [(0, 0, 4), (0, 1, 4), (0, 2, 4)]
    assert f"rank 0 is gpu2 ({net.node(2).addresses[1]}:" in agents.running[1].err
    well(net, agents.enough())


def fates_of(agents: Agents, late: int, known: dict[int, str]) -> list[str]:
    """By rank, with the late one at work."""
    ranks = {n: agents.rounds(n)[-1][1] for n in agents.running}
    fates = {rank: known.get(n, "running") for n, rank in ranks.items()}
    assert fates[ranks[late]] == "running"
    return [fates[rank] for rank in sorted(fates)]
