"""Daemons end and come back while a sealed round goes on."""

from __future__ import annotations

import msgspec
import pytest

from mingled.core import actions, events, local
from mingled.core.words import Form, JobId, ParticipantId
from tests.core.stage import JOB, Stage, fates, ready
from tests.sim.clients import Client


def sealed(stage: Stage, hosts: int = 3) -> list[Client]:
    stage.world.reattaches = 1.0
    clients = [stage.join(host, rank=host - 1, size=hosts) for host in range(1, hosts + 1)]
    stage.wait(1.0)
    for client in clients:
        ready(client)
    return clients


def anew(stage: Stage, host: int) -> None:
    stage.world.crash(host - 1)
    stage.wait(1.0)
    stage.world.restart(host - 1)
    stage.wait(15.0)


def test_a_followers_daemon_comes_back() -> None:
    stage = Stage(3)
    clients = sealed(stage)
    anew(stage, 2)
    for client in (clients[0], clients[2]):
        assert fates(client) == [(1, "unwatched"), (1, "running")]
    stage.world.leave(clients[1], lost=True)
    stage.wait(1.0)
    assert fates(clients[2])[-1] == (1, "lost"), "it is watched again"


def test_the_leaders_daemon_comes_back() -> None:
    stage = Stage(3)
    clients = sealed(stage)
    anew(stage, 1)
    for client in clients[1:]:
        assert fates(client) == [(0, "unwatched"), (0, "running")]
    stage.world.leave(clients[2], lost=True)
    stage.wait(1.0)
    assert fates(clients[0])[-1] == fates(clients[1])[-1] == (2, "lost"), "it is the hub again"


def test_all_daemons_come_back() -> None:
    stage = Stage(3)
    clients = sealed(stage)
    for host in (1, 2, 3):
        stage.world.crash(host - 1)
    for host in (3, 1, 2):
        stage.world.restart(host - 1)
        stage.wait(1.0)
    stage.wait(15.0)
    stage.world.leave(clients[1])
    stage.wait(1.0)
    assert fates(clients[0])[-1] == fates(clients[2])[-1] == (1, "left")


def test_a_late_join_still_finds_the_round_whose_daemon_came_back() -> None:
    stage = Stage(4)
    clients = sealed(stage)
    anew(stage, 1)
    late = stage.join(4, size=3)
    stage.wait(5.0)
    running = [m.running for m in late.heard if isinstance(m, local.Progress)][-1]
    assert running is not None
    assert running.hosts == ("gpu1", "gpu2", "gpu3")
    assert late.waits
    for client in clients:
        stage.world.leave(client)
    others = [stage.join(host, size=3) for host in (1, 2)]
    stage.wait(5.0)
    assert {ready(c).nnodes for c in (late, *others)} == {3}


def test_a_participant_that_ends_while_the_leaders_daemon_is_gone_is_told_of_later() -> None:
    stage = Stage(3)
    clients = sealed(stage)
    stage.world.crash(0)
    stage.wait(1.0)
    stage.world.leave(clients[2])
    extra = stage.join(3, rank=None, size=3)  # so that gpu3 keeps its memory of the round
    stage.world.restart(0)
    stage.wait(15.0)
    assert fates(clients[0])[-1][0] == 2
    stage.world.leave(extra)


def test_a_plain_rank_0_goes_on_to_be_found() -> None:
    stage = Stage(3)
    stage.world.reattaches = 1.0
    zero = stage.join(1, rank=0, form=Form.PLAIN)
    stage.wait(1.0)
    anew(stage, 1)
    late = stage.join(3, rank=1, form=Form.PLAIN)
    stage.wait(2.0)
    assert ready(late).master_port == ready(zero).master_port


def asks(stage: Stage, client: Client, **changes: object) -> local.Local:
    """That client's re-attachment, to gpu1's daemon."""
    asked = events.ReattachAsked(
        request=77,
        participant=client.participant,
        join=client.join,
        config=ready(client),
        holder=client.holder,
    )
    stage.world.deliver(stage.world.daemons[0], msgspec.structs.replace(asked, **changes))
    answer = stage.world.answers[-1]
    assert isinstance(answer, actions.Answer)
    return answer.message


def test_only_the_connection_was_gone() -> None:
    stage = Stage(1)
    client = stage.join(1, size=1)
    stage.wait(1.0)
    vanished = events.ClientVanished(participant=client.participant)
    stage.world.deliver(stage.world.daemons[0], vanished)
    assert asks(stage, client) == local.Done(count=1)
    assert len(stage.core(1).jobs[JOB].seats) == 1


def test_another_users_lease_is_not_taken() -> None:
    stage = Stage(1)
    client = stage.join(1, size=1)
    stage.wait(1.0)
    bob = msgspec.structs.replace(client.holder, uid=1001, user="bob")
    answer = asks(stage, client, holder=bob)
    assert isinstance(answer, local.Failed)
    assert answer.code == "not-permitted"
    other = msgspec.structs.replace(client.join, job=JobId("gpt"))
    answer = asks(stage, client, holder=bob, join=other)
    assert isinstance(answer, local.Failed), "nor under a job of its own"
    assert stage.core(1).jobs[JOB].seats[client.participant].holder.user == "ann"


# ---------------------------------------------------------------- what reviewers found


def two_on_gpu2(stage: Stage) -> list[Client]:
    hosts = (1, 2, 2, 3)
    clients = [stage.join(host, rank=rank, size=4) for rank, host in enumerate(hosts)]
    stage.wait(1.0)
    for client in clients:
        ready(client)
    return clients


@pytest.mark.parametrize("gap", [0.1, 2.0])
def test_a_second_participant_of_a_node_is_watched_again_too(gap: float) -> None:
    stage = Stage(3)
    zero, one, two, three = two_on_gpu2(stage)
    stage.world.reattaches = 0.0
    stage.world.crash(1)
    stage.world.restart(1)
    daemon = stage.world.daemons[1]
    stage.world.reattach(daemon, one)
    stage.wait(gap)
    stage.world.reattach(daemon, two)
    stage.wait(10.0)
    stage.world.leave(two, lost=True)
    stage.wait(1.0)
    assert all(fates(c)[-1] == (2, "lost") for c in (zero, one, three))


@pytest.mark.parametrize("host", [1, 2])
def test_a_roster_too_long_for_a_line_is_put_together_again(host: int) -> None:
    stage = Stage(3)
    clients = two_on_gpu2(stage)
    stage.world.reattaches = 0.0
    stage.world.crash(host - 1)
    stage.world.restart(host - 1)
    for client in clients:
        if client.host == host - 1:
            whole = ready(client)
            kept = [m for m in whole.members if m.rank in (0, whole.rank)]
            client.config = msgspec.structs.replace(whole, members=tuple(kept))
            stage.world.reattach(stage.world.daemons[host - 1], client)
            client.config = whole
    stage.wait(15.0)
    stage.world.leave(clients[2], lost=True)
    stage.wait(1.0)
    assert all(fates(c)[-1] == (2, "lost") for c in (clients[0], clients[1], clients[3]))


def test_an_end_while_rank_0s_daemon_was_gone_is_told_once_it_is_back() -> None:
    stage = Stage(3)
    clients = sealed(stage)
    stage.world.crash(0)
    stage.wait(0.5)
    stage.world.leave(clients[1], lost=True)
    stage.wait(0.5)
    stage.world.restart(0)
    stage.wait(15.0)
    assert fates(clients[0])[-1] == fates(clients[2])[-1] == (1, "lost")


@pytest.mark.parametrize("first", ["rank 0", "a newcomer"])
def test_a_newcomer_beside_a_rank_0_whose_daemon_is_new_waits(first: str) -> None:
    stage = Stage(2)
    pair = [stage.join(host, size=1, size_max=2) for host in (1, 2)]
    stage.wait(5.0)
    zero = next(c for c in pair if ready(c).rank == 0)
    stage.world.reattaches = 0.0
    stage.world.crash(zero.host)
    stage.world.restart(zero.host)
    daemon = stage.world.daemons[zero.host]
    if first == "rank 0":
        stage.world.reattach(daemon, zero)
    newcomer = stage.join(zero.host + 1, size=1, size_max=2)
    stage.wait(1.0)
    if first != "rank 0":
        stage.world.reattach(daemon, zero)
    stage.wait(30.0)
    assert newcomer.waits
    stage.world.leave(zero)
    stage.wait(5.0)
    assert ready(newcomer).rank == 0


def test_after_all_daemons_are_new_rank_0_is_still_a_survivors() -> None:
    stage = Stage(4)
    clients = sealed(stage)
    for host in (0, 1, 2):
        stage.world.crash(host)
    for host in (0, 1, 2):
        stage.world.restart(host)
    stage.wait(15.0)
    stage.world.leave(clients[0], lost=True)
    newcomer = stage.join(4, size=3)
    stage.wait(3.0)
    newer = [stage.join(c.host + 1, size=3, like=c) for c in clients[1:]]
    stage.wait(5.0)
    assert ready(newcomer).rank != 0
    assert {ready(c).claim for c in newer} == {ready(newcomer).claim}


def test_a_survivor_with_a_new_daemon_is_known_by_its_address() -> None:
    stage = Stage(3)
    clients = sealed(stage)
    anew(stage, 3)
    stage.world.crash(0, power=True)
    stage.wait(20.0)
    newer = [stage.join(c.host + 1, size=2, size_max=3, like=c) for c in clients[1:]]
    stage.wait(2.0)
    assert {ready(c).nnodes for c in newer} == {2}, "nobody else is waited for"


def test_one_process_cannot_re_attach_many_times() -> None:
    stage = Stage(1)
    client = stage.join(1, size=1)
    stage.wait(1.0)
    for k in range(5):
        again = ParticipantId(f"{k + 100:032x}")
        stage.world.clients[again] = Client(again, client.join, client.holder, runs_s=1e6)
        assert asks(stage, client, participant=again) == local.Done(count=1)
    assert len(stage.core(1).jobs[JOB].seats) == 1
