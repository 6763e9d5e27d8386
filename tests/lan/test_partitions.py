"""Cables that are pulled, power that is cut, firewalls between followers."""

from __future__ import annotations

from mingled.lab import Lan

from .conftest import MakeLan
from .helpers import (
    STAY,
    Running,
    daemons_on,
    nothing_left,
    one_round,
    until_fates,
    variables,
    wait,
)


def gather(lan: Lan, size: int, numbers: tuple[int, ...]) -> dict[int, Running]:
    """Launchers on these nodes, of which the first leads; back when all of them are here."""
    waits: dict[int, Running] = {}
    for number in numbers:
        waits[number] = wait(lan.node(number), "bert", "--nnodes", str(size), cmd=STAY)
        if len(waits) == 1:  # it leads once it no longer says that nobody does
            waits[number].until(f"1/{size} here: gpu{number}; waiting for {size - 1} more\n")
        waits[number].until(f"{len(waits)}/{size} here")
    for running in waits.values():
        running.until(f"{len(numbers)}/{size} here: gpu{numbers[0]}")
    return waits


def sealed(lan: Lan, waits: dict[int, Running]) -> int:
    """All of them are in one round; the number of the node that leads it."""
    for running in waits.values():
        running.until("this is node rank")
        running.until("MINGLE_EXPORTED", kind="out")
    return one_round(lan, {number: variables(r.out) for number, r in waits.items()})


# ---------------------------------------------------------------- partitions


def test_fault_11_the_leader_is_cut_off_while_all_gather_and_comes_back(lan: MakeLan) -> None:
    four = lan(nodes=4)
    waits = gather(four, 4, (1, 2, 3))
    alone = waits[1].err.count("1/4 here")
    few = {number: waits[number].err.count("2/4 here") for number in (2, 3)}
    four.cut(1)
    waits[1].until("1/4 here: gpu1; waiting for 3 more", times=alone + 1)
    for number, count in few.items():  # they have elected another
        waits[number].until("2/4 here", times=count + 1)
        waits[number].until("gpu1 (10.77.0.1): silent for ", "3 fresh connections failed")
    both = {number: waits[number].err.count("3/4 here") for number in waits}
    four.heal(1)
    for number, running in waits.items():
        running.until("3/4 here", times=both[number] + 1)
    waits[4] = wait(four.node(4), "bert", "--nnodes", "4", cmd=STAY)
    sealed(four, waits)
    for running in waits.values():
        assert running.finish().code == 0
    nothing_left(four)


def test_fault_11_the_leader_is_cut_off_from_a_round_and_called_lost(lan: MakeLan) -> None:
    three = lan(nodes=3)
    waits = gather(three, 3, (1, 2))
    waits[3] = wait(three.node(3), "bert", "--nnodes", "3", cmd=STAY)
    assert sealed(three, waits) == 1
    three.cut(1)
    first = "gpu1 (10.77.0.1, node rank 0) lost"
    waits[2].until(first, "silent for", "fresh connections failed")
    waits[3].until(first, "silent for", "fresh connections failed")
    waits[1].until("gpu2 (10.77.0.2, node rank 1) lost", "gpu3 (10.77.0.3, node rank 2) lost")
    waits[1].until("silent for", "fresh connections failed", times=2)
    three.heal(1)
    for running in waits.values():
        assert running.finish().code == 0
    nothing_left(three)


def test_fault_11_a_short_partition_of_a_round_loses_nobody(lan: MakeLan) -> None:
    three = lan(nodes=3)
    daemons_on(three.nodes)
    waits = gather(three, 3, (1, 2))
    ending = ("sh", "-c", "env -0; cat; exit 5")
    waits[3] = wait(three.node(3), "bert", "--nnodes", "3", cmd=ending)
    assert sealed(three, waits) == 1
    three.cut(1)
    three.node(1).run(["sleep", "6"], check=True)
    three.heal(1)
    for node in three.nodes:
        until_fates(node, "bert", ["running"] * 3)
    assert waits[3].finish().code == 5
    for number in (1, 2):  # the news gets through
        waits[number].until("gpu3 (10.77.0.3, node rank 2) lost", "exit 5")
        assert waits[number].err.count(" lost ") == 1
        assert waits[number].finish().code == 0


# ---------------------------------------------------------------- power


def test_fault_04_a_node_without_power_is_dropped_and_its_place_taken(lan: MakeLan) -> None:
    four = lan(nodes=4)
    waits = gather(four, 3, (1, 2))
    alone = waits[1].err.count("1/3 here")
    four.node(2).kill()
    waits.pop(2)
    waits[1].until("1/3 here: gpu1; waiting for 2 more", times=alone + 1)
    why = waits[1].err.splitlines()[-1]
    waits |= {n: wait(four.node(n), "bert", "--nnodes", "3", cmd=STAY) for n in (3, 4)}
    assert sealed(four, waits) == 1
    for running in waits.values():
        assert "with gpu1 (10.77.0.1, root), gpu3 (10.77.0.3, root), gpu4" in running.err
        assert running.finish().code == 0
    for word in ("gpu2 (10.77.0.2)", "silent for ", "3 fresh connections failed"):
        assert word in why


# ---------------------------------------------------------------- firewalls


def test_fault_28_a_firewall_between_two_followers_is_named_and_can_be_opened(lan: MakeLan) -> None:
    three = lan(nodes=3)
    admitted = "{ 29490-29499, 29500-29999 }"  # besides UDP 5353
    for here, there in ((2, 3), (3, 2)):
        match = f"ip saddr {three.node(there).address} tcp flags & (syn | ack) == syn"
        three.node(here).drop(f"{match} tcp dport != {admitted}")
    waits = gather(three, 3, (1, 2))
    waits[3] = wait(three.node(3), "bert", "--nnodes", "3", cmd=STAY)
    for running in waits.values():
        running.until(
            "gpu2 (10.77.0.2) cannot reach gpu3, TCP 10.77.0.3 port ",
            "no answer within 5 s; a firewall on the ephemeral ports? ",
        )
        assert "this is node rank" not in running.err
    for number in (2, 3):
        three.node(number).undrop()
    assert sealed(three, waits) == 1
    for running in waits.values():
        assert running.finish().code == 0
    nothing_left(three)


def test_fault_12_the_direction_that_leads_nowhere_is_named(lan: MakeLan) -> None:
    """As behind a firewall that lets nothing in but answers: gpu2 connects to gpu1, and never the
    other way."""
    both = lan(nodes=2)
    here, there = both.nodes
    links = "29490-29499"  # the daemons'
    there.drop(f"ip saddr {here.address} tcp flags & (syn | ack) == syn tcp dport != {links}")
    flags = ("--nnodes", "2", "--node-rank")
    waits = {n: wait(both.node(n), "bert", *flags, str(n - 1), cmd=STAY) for n in (1, 2)}
    for running in waits.values():
        running.until(
            f"gpu1 ({here.address}) cannot reach gpu2, TCP {there.address} port ",
            "no answer within 5 s; a firewall",
        )
        assert f"gpu2 ({there.address}) cannot reach" not in running.err
        assert "this is node rank" not in running.err
    there.undrop()
    assert sealed(both, waits) == 1
    for running in waits.values():
        assert running.finish().code == 0
