"""Members of a running round: who has finished, who is stopped, who waits for the next round, and
the end of the run."""

from __future__ import annotations

from typing import Any

import pytest

from mingled.core import local
from tests.core.stage import Stage, failed, fates, ready
from tests.sim.clients import Client

BEAT_S = 1.0


def trio(stage: Stage, **changes: Any) -> list[Client]:
    """2 to 4 nodes, of which three are here; by rank."""
    clients = [stage.join(host, size=2, size_max=4, **changes) for host in (1, 2, 3)]
    stage.wait(8.0)
    return sorted(clients, key=lambda c: ready(c).rank)


def again(stage: Stage, client: Client, **changes: Any) -> Client:
    return stage.join(client.host + 1, size=2, size_max=4, like=client, **changes)


def waiting(client: Client) -> list[int]:
    """The numbers it was told of those that wait for the next round."""
    return [m.count for m in client.heard if isinstance(m, local.Waiting)]


def own(client: Client) -> list[str]:
    """What it was told of itself."""
    rank = ready(client).rank
    gone = [m for m in client.heard if isinstance(m, local.Gone) and m.rank == rank]
    return [f"{m.how}: {m.reason}" for m in gone]


# ---------------------------------------------------------------- finished


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_member_that_finishes_stays_and_the_others_are_told(rank: int) -> None:
    stage = Stage(3)
    members = trio(stage)
    stage.world.finish(members[rank])
    stage.wait(1.0)
    for client in members:
        assert fates(client) == ([] if client is members[rank] else [(rank, "finished")])


@pytest.mark.parametrize("rank", [0, 1])
def test_the_death_of_one_that_has_finished_is_no_loss(rank: int) -> None:
    stage = Stage(3)
    members = trio(stage)
    stage.world.finish(members[rank])
    stage.wait(1.0)
    stage.world.leave(members[rank], lost=True)
    stage.wait(1.0)
    assert fates(members[2]) == [(rank, "finished"), (rank, "left")]


def test_nobody_waits_for_one_that_has_finished() -> None:
    stage = Stage(4)
    members = trio(stage)
    stage.world.finish(members[1])
    stage.world.leave(members[0], lost=True)
    stage.wait(1.0)
    newer = [again(stage, members[2]), stage.join(4, size=2, size_max=4)]
    stage.wait(5.0)
    assert {ready(c).round for c in newer} == {2}
    assert {ready(c).nnodes for c in newer} == {2}


def test_a_new_daemon_learns_who_has_finished() -> None:
    stage = Stage(3)
    stage.world.reattaches = 1.0
    members = trio(stage)
    stage.world.finish(members[1])
    stage.wait(1.0)
    host = members[0].host
    stage.world.crash(host)
    stage.world.restart(host)
    stage.wait(10.0)
    stage.world.finish(members[1])  # as its client does once it is watched again, or was all along
    stage.wait(2.0)
    assert fates(members[2])[0] == (1, "finished")
    assert (1, "running") not in fates(members[2])
    assert (1, "lost") not in fates(members[2])


# ---------------------------------------------------------------- whoever waits


def test_members_are_told_how_many_wait_for_the_next_round() -> None:
    stage = Stage(4)
    members = trio(stage)
    late = stage.join(4, size=2, size_max=4)
    stage.wait(2.0)
    assert [waiting(c) for c in members] == [[1]] * 3
    stage.world.leave(late)
    stage.wait(2.0)
    assert [waiting(c) for c in members] == [[1, 0]] * 3


def test_a_daemon_that_comes_back_is_told_who_waits() -> None:
    stage = Stage(4)
    stage.world.reattaches = 1.0
    members = trio(stage)
    stage.join(4, size=2, size_max=4)
    stage.wait(2.0)
    host = members[2].host
    stage.world.crash(host)
    stage.world.restart(host)
    stage.wait(10.0)
    assert waiting(members[2])[-1] == 1


def test_a_member_that_joins_anew_is_said_to() -> None:
    stage = Stage(3)
    members = trio(stage)
    again(stage, members[1])
    stage.wait(2.0)
    for client in (members[0], members[2]):
        gone = [m for m in client.heard if isinstance(m, local.Gone)]
        assert [(m.rank, m.again) for m in gone] == [(1, True)]


# ---------------------------------------------------------------- the end of the run


def test_whoever_waits_is_told_that_the_run_has_ended() -> None:
    stage = Stage(4)
    members = trio(stage)
    late = stage.join(4, size=2, size_max=4)
    stage.wait(2.0)
    for client in members:
        stage.world.finish(client)
    stage.wait(1.0)
    stage.world.leave(members[2], closes=True)
    stage.wait(1.0)
    sentence = failed(late, "closed")
    assert "job bert: the run has ended: round 1 has finished on gpu" in sentence
    assert "start a new run with the same line" in sentence


def test_nobody_closes_a_run_while_somebody_works() -> None:
    stage = Stage(4)
    members = trio(stage)
    late = stage.join(4, size=2, size_max=4)
    stage.wait(2.0)
    stage.world.finish(members[1])
    stage.world.leave(members[1], closes=True)
    stage.wait(2.0)
    assert late.waits


def test_after_a_closed_run_the_same_id_starts_another() -> None:
    stage = Stage(3)
    for client in trio(stage):
        stage.world.leave(client, closes=True)
    stage.wait(2.0)
    assert {ready(c).nnodes for c in trio(stage)} == {3}


# ---------------------------------------------------------------- stopped


def test_a_stopped_client_is_lost_and_learns_it_when_it_goes_on() -> None:
    stage = Stage(3)
    members = trio(stage, heartbeat_s=BEAT_S)
    stage.wait(30.0)
    assert [fates(c) for c in members] == [[], [], []]
    members[0].stopped_until = stage.world.clock.now + 20.0
    stage.wait(15.0)
    assert fates(members[1]) == fates(members[2]) == [(0, "lost")]
    assert own(members[0]) == ["lost: stopped: no sign of life for 10 s"]
    stage.wait(8.0)
    newer = [again(stage, c, heartbeat_s=BEAT_S) for c in members]
    stage.wait(8.0)
    assert {ready(c).nnodes for c in newer} == {3}


def test_fault_21_a_machine_that_was_suspended_as_a_whole_loses_nobody_of_its_own() -> None:
    stage = Stage(1)
    alone = stage.join(1, size=1, heartbeat_s=BEAT_S)
    stage.wait(5.0)
    night_s = 8 * 3600.0
    alone.stopped_until = stage.world.clock.now + night_s
    stage.world.freeze(stage.world.daemons[0], night_s)
    stage.wait(night_s + 60.0)
    assert own(alone) == []


def test_a_client_without_heartbeats_may_be_silent() -> None:
    stage = Stage(3)
    members = trio(stage)
    stage.wait(3600.0)
    assert [fates(c) for c in members] == [[], [], []]


# ---------------------------------------------------------------- out of reach, and back


@pytest.mark.parametrize(
    ("moved_on", "thawed_after_s", "said"),
    [
        (False, 25.0, "rank 0's daemon did not hear of it for a while"),
        (True, 30.0, "round 2 was sealed without it"),
    ],
)
def test_whoever_was_lost_for_a_while_is_told_that_the_others_went_on(
    moved_on: bool, thawed_after_s: float, said: str
) -> None:
    stage = Stage(3)
    members = trio(stage)
    world, out = stage.world, members[2]
    world.harmed = True
    world.freeze(world.daemons[out.host], thawed_after_s)
    while (ready(out).rank, "lost") not in fates(members[0]):
        stage.wait(0.1)
    newer = [again(stage, c) for c in members[:2]] if moved_on else []
    stage.wait(60.0)
    assert [ready(c).round for c in newer] == [2] * len(newer)
    assert own(out) == [f"lost: {said}"]
