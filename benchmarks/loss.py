"""From the kill of one member's process until every other one has been told."""

from __future__ import annotations

import time

from benchmarks.fleet import SETTLE_S, Fleet
from benchmarks.result import Result, result

TOLD_MAX_MS = 100.0


def killed(fleet: Fleet, repeat: int) -> list[Result]:
    """Rank 0's process, or a follower's, of a running round."""
    return [
        _killed(fleet, repeat, who, index)
        for who, index in (("a follower's", len(fleet) - 1), ("rank 0's", 0))
    ]


def _killed(fleet: Fleet, repeat: int, who: str, victim: int) -> Result:
    took = []
    for _ in range(repeat):
        job, size = fleet.job(), len(fleet)
        for rank, agent in enumerate(fleet.agents):
            do = "victim" if rank == victim else "join"
            agent.order(do, job=job, size=size, rank=rank, watch=rank != victim)
        for agent in fleet.agents:
            agent.hear("end")
        time.sleep(SETTLE_S)
        dying = fleet.agents[victim]
        dying.order("die")
        start = dying.hear("killed")["killed"]
        others = [agent for agent in fleet.agents if agent is not dying]
        told = [agent.hear("lost")["lost"] for agent in others]
        took.append((max(told) - start) * 1000)
        for agent in others:
            agent.order("leave")
            agent.hear("left")
    return result(
        f"killed-{len(fleet)}-{'rank-0' if victim == 0 else 'follower'}",
        f"{who} process is killed, to all told, N={len(fleet)}",
        took,
        goal=("median", TOLD_MAX_MS),
    )
