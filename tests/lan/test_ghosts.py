"""What is left of the dead: records in every cache, and no goodbye that would remove them."""

from __future__ import annotations

import pytest

from .conftest import MakeLan
from .helpers import daemons_on, kill_daemon, one_round, wait


@pytest.mark.parametrize("how", ["killed", "no power"])
def test_fault_22_fault_23_a_dead_leaders_records_hold_nobody_up(lan: MakeLan, how: str) -> None:
    """gpu1 refuses connections, or lets them hang, and its advert is believed for 75 minutes."""
    three = lan(nodes=3)
    daemons_on(three.nodes)
    flags = ("--nnodes", "2", "--node-rank")
    with three.capture(3, f"udp port 29491 and src host {three.node(1).address}") as adverts:
        ghost = wait(three.node(1), "bert", *flags, "0")
        adverts.wait_for(1)
    if how == "killed":
        kill_daemon(three.node(1))
        assert ghost.end().code == 80
    else:
        three.node(1).kill()
    # What is in the cache is tried first, and the next as soon as there is one.
    late = wait(three.node(3), "bert", *flags, "1")
    late.until(
        "(no rank 0 yet)", "10.77.0.1 port 29490", "where a leader of this job was advertised"
    )
    live = wait(three.node(2), "bert", *flags, "0")
    assert one_round(three, {2: live.well().env, 3: late.well().env}) == 2
