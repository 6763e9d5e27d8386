"""Silence makes suspect, fresh connections decide."""

from __future__ import annotations

from mingled.core import local
from mingled.core.table import State
from tests.core.stage import Stage, fates, ready
from tests.sim.clients import Client


def sealed(stage: Stage, hosts: int = 2) -> list[Client]:
    clients = [stage.join(host, rank=host - 1, size=hosts) for host in range(1, hosts + 1)]
    stage.wait(1.0)
    for client in clients:
        ready(client)
    return clients


def last(client: Client) -> local.Gone:
    return [m for m in client.heard if isinstance(m, local.Gone)][-1]


def test_a_host_without_power_is_lost_after_its_silence_and_three_connections() -> None:
    stage = Stage(3)
    clients = sealed(stage, 3)
    stage.world.crash(1, power=True)
    stage.wait(14.0)
    assert not fates(clients[0])
    stage.wait(4.0)
    for client in (clients[0], clients[2]):
        assert fates(client) == [(1, "lost")]
        assert "fresh connections failed" in last(client).reason
        assert 15.0 <= last(client).ago_s < 18.0


def test_fault_04_rank_0s_host_without_power_is_noticed_by_each_follower() -> None:
    stage = Stage(3)
    clients = sealed(stage, 3)
    stage.world.crash(0, power=True)
    stage.wait(18.0)
    assert all(fates(client) == [(0, "lost")] for client in clients[1:])


def test_while_gathering_six_seconds_are_enough() -> None:
    stage = Stage(3)
    leader = stage.join(1, rank=0, size=3)
    stage.join(2, rank=1, size=3)
    stage.wait(1.0)
    stage.world.crash(1, power=True)
    stage.wait(7.0)
    told = [m for m in leader.heard if isinstance(m, local.Progress)]
    assert [m.here for m in told][-2:] == [2, 1]
    assert stage.core(1).jobs["bert"].claim.sessions == {}  # type: ignore[index, union-attr]


def test_fault_11_a_short_silence_calls_nobody_lost() -> None:
    stage = Stage(2)
    clients = sealed(stage)
    stage.world.air.split({0}, 2, [0])
    stage.wait(12.0)
    stage.world.air.heal()
    stage.wait(30.0)
    assert not fates(clients[0])
    assert not fates(clients[1])


def test_a_daemon_that_stands_still_while_its_host_answers_is_not_lost() -> None:
    stage = Stage(2)
    clients = sealed(stage)
    stage.world.freeze(stage.world.daemons[1], 12.0)
    stage.wait(40.0)
    assert not [how for _, how in fates(clients[0]) if how == "lost"]


def test_a_daemon_that_is_gone_leaves_its_participants_unwatched() -> None:
    stage = Stage(2)
    stage.world.reattaches = 0.0
    clients = sealed(stage)
    stage.world.crash(1)
    stage.wait(60.0)
    assert fates(clients[0]) == [(1, "unwatched")], "its host answers, so nobody is lost"


def test_a_host_that_goes_dark_after_its_daemon_is_lost_in_the_end() -> None:
    stage = Stage(2)
    clients = sealed(stage)
    stage.world.crash(1)
    stage.wait(20.0)
    stage.world.air.down.add(1)
    stage.world.harmed = True
    stage.wait(30.0)
    assert fates(clients[0]) == [(1, "unwatched"), (1, "lost")]


def test_a_daemon_started_anew_is_noticed_though_its_link_breaks_in_silence() -> None:
    stage = Stage(2)
    stage.world.reattaches = 0.0
    clients = sealed(stage)
    for link, side in list(stage.world.daemons[1].ends.values()):
        link.broken = side.open = True  # nothing arrives any more, and nobody is told
    stage.world.daemons[1].ends.clear()
    stage.world.crash(1)
    stage.world.restart(1)
    stage.wait(10.0)
    assert fates(clients[0]) == [(1, "unwatched")]
    assert "its daemon is gone, its host answers" in last(clients[0]).reason


def test_a_link_that_stays_silent_is_given_up_and_made_anew() -> None:
    stage = Stage(2)
    clients = sealed(stage)
    for link, _ in list(stage.world.daemons[1].ends.values()):
        link.broken = True
    stage.wait(40.0)
    assert fates(clients[0]) == [(1, "unwatched"), (1, "running")]
    assert stage.state(1) is State.LEADING
    stage.world.leave(clients[1])
    stage.wait(1.0)
    assert fates(clients[0])[-1] == (1, "left")
