"""Eight nodes with no rank anywhere: on a good LAN round after round, and on bad ones."""

from __future__ import annotations

import pytest

from mingled.lab import Lan

from .conftest import MakeLan
from .helpers import SHOW, STAY, daemons_on, one_round, wait

NODES = 8
FLAGS = ("--nnodes", str(NODES))


def run_round(lan: Lan, job: str, cmd: tuple[str, ...] = SHOW) -> list[str]:
    """All at once, to the end, which is a good one; what each said."""
    waits = {node.number: wait(node, job, *FLAGS, cmd=cmd) for node in lan.nodes}
    ends = {number: running.well() for number, running in waits.items()}
    leader = one_round(lan, {number: done.env for number, done in ends.items()})
    led = [n for n, done in ends.items() if "this is node rank 0 of 8" in done.err]
    assert led == [leader]
    # The numbers are the last bytes of the addresses.
    by_rank = sorted(ends, key=lambda n: int(ends[n].env["PET_NODE_RANK"]))
    assert by_rank[1:] == sorted(set(ends) - {leader})
    return [done.err for done in ends.values()]


def test_eight_at_once_agree_every_time(lan: MakeLan) -> None:
    eight = lan(nodes=NODES)
    daemons_on(eight.nodes)
    for number in range(20):
        run_round(eight, f"job {number}")


def test_fault_09_eight_agree_although_one_packet_in_ten_gets_lost(lan: MakeLan) -> None:
    eight = lan(nodes=NODES)
    daemons_on(eight.nodes)
    eight.loss(10)
    for number in range(3):
        run_round(eight, f"job {number}")


def test_fault_09_nobody_is_called_lost_although_30_percent_of_all_packets_are(
    lan: MakeLan,
) -> None:
    eight = lan(nodes=NODES)
    daemons_on(eight.nodes)
    eight.loss(30)
    run_round(eight, "short")
    for err in run_round(eight, "long", ("sh", "-c", "env -0; exec sleep 20")):
        assert "lost" not in err
        assert "no longer watched" not in err


@pytest.mark.parametrize("system", [False, True], ids=["private", "system"])
def test_fault_09_the_news_of_an_end_survives_the_loss_of_its_packet(
    lan: MakeLan, system: bool
) -> None:
    both = lan(nodes=2)
    if system:
        daemons_on(both.nodes)
    leader = wait(both.node(1), "bert", "--nnodes", "2", "--node-rank", "0", cmd=STAY)
    follower = wait(both.node(2), "bert", "--nnodes", "2", cmd=("sh", "-c", "cat; exit 5"))
    leader.until("this is node rank 0")
    follower.until("this is node rank 1")
    with both.capture(2, f"tcp and src host {both.node(1).address}") as asked:
        both.loss(100, node=2, direction="out")
        assert follower.finish().code == 5
        # The leader's daemon knows nothing of it, and goes on to ask.
        asked.wait_for(len(asked) + 4)
    both.loss(0, node=2)
    leader.until(f"gpu2 ({both.node(2).address}, node rank 1) lost", "exit 5")
    assert "no longer watched" not in leader.finish().err
