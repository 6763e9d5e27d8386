"""Addresses and interfaces that change under a round that is sealed, and that do not come to
rest."""

from __future__ import annotations

import pytest

from .conftest import MakeLan
from .helpers import STAY, daemons_on, job_on, one_round, until_fates, variables, wait


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_fault_16_an_address_changes_after_the_seal(lan: MakeLan, who: str) -> None:
    both = lan(nodes=2)
    daemons_on(both.nodes)
    flags, ends = ("--nnodes", "2", "--node-rank"), ("sh", "-c", "env -0; cat; exit 5")
    leader = wait(both.node(1), "bert", *flags, "0", cmd=STAY)
    follower = wait(both.node(2), "bert", *flags, "1", cmd=ends)
    runs = {1: leader, 2: follower}
    for running in runs.values():
        running.until("MINGLE_EXPORTED", kind="out")
    assert one_round(both, {n: variables(r.out) for n, r in runs.items()}) == 1
    roster = [member["address"] for member in job_on(both.node(1), "bert")["rounds"][-1]["members"]]
    moved = both.node(1 if who == "leader" else 2)
    new = f"10.77.0.{90 + moved.number}"
    moved.configure([f"addr del {moved.address}/24 dev eth0", f"addr add {new}/24 brd + dev eth0"])
    gone = f"{moved.address} of {moved.name} is gone"
    runs[moved.number].until("job bert", gone, "round 1", f"eth0 {new}")
    for node in both.nodes:
        until_fates(node, "bert", ["running", "running"])
        kept = job_on(node, "bert")["rounds"][-1]["members"]
        assert [member["address"] for member in kept] == roster == ["10.77.0.1", "10.77.0.2"]
    assert follower.finish().code == 5  # the news finds its way from the new address, or to it
    leader.until("gpu2 (10.77.0.2, node rank 1) lost just now in round 1", "exit 5")
    assert leader.err.count(" lost ") == 1
    assert leader.finish().code == 0


def test_fault_17_an_interface_flaps_and_is_bound_again(lan: MakeLan) -> None:
    both = lan(nodes=2)
    for node in both.nodes:
        node.drop("udp dport 29491")  # mDNS alone is to find them: groups must be joined anew
    daemon, _ = daemons_on(both.nodes)
    flaps = 50
    both.node(1).configure(["link set eth0 down", "link set eth0 up"] * flaps)
    runs = {n: wait(both.node(n), "bert", "--nnodes", "2") for n in (1, 2)}
    one_round(both, {n: r.well().env for n, r in runs.items()})
    assert daemon.err.count("addresses are now") < flaps / 2
