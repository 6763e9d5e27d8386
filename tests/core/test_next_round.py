"""Sizes that may grow and shrink, losses, and the rounds after the first."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mingled.core import events, local
from mingled.core.messages import Running
from mingled.core.secrets import label_of
from mingled.core.words import Nonce
from tests.core.samples import ADVERT
from tests.core.stage import JOB, Stage, failed, fates, noticed, ready
from tests.sim.clients import Client


def elastic(stage: Stage, hosts: int, low: int, high: int) -> list[Client]:
    clients = [stage.join(host, size=low, size_max=high) for host in range(1, hosts + 1)]
    stage.wait(8.0)
    for client in clients:
        ready(client)
    return clients


def again(stage: Stage, clients: list[Client], **changes: Any) -> list[Client]:
    """They join as mingle-wait --on-lost restart does: the same process, the same wish."""
    newer = []
    for client in clients:
        join = client.join
        newer.append(
            stage.join(
                client.host + 1,
                size=join.size_min,
                size_max=join.size_max,
                like=client,
                **changes,
            )
        )
    return newer


def running(client: Client) -> Running | None:
    return [m.running for m in client.heard if isinstance(m, local.Progress)][-1]


def leader_of(clients: list[Client]) -> Client:
    return next(c for c in clients if ready(c).rank == 0)


# ---------------------------------------------------------------- the last call


def test_a_full_job_has_no_last_call() -> None:
    stage = Stage(2)
    pair = [stage.join(host, size=1, size_max=2) for host in (1, 2)]
    stage.wait(1.0)
    assert {ready(c).nnodes for c in pair} == {2}


@pytest.mark.parametrize(("seconds", "before", "after"), [(None, 2.5, 3.6), (1.0, 0.7, 1.6)])
def test_the_last_call_waits_for_newcomers(
    seconds: float | None, before: float, after: float
) -> None:
    stage = Stage(3)
    pair = [stage.join(host, size=2, size_max=4, last_call_s=seconds) for host in (1, 2)]
    stage.wait(before)
    assert all(c.waits for c in pair)
    third = stage.join(3, size=2, size_max=4, last_call_s=seconds)
    stage.wait(before)
    assert third.waits, "a newcomer starts it anew"
    stage.wait(after - before)
    assert {ready(c).nnodes for c in (*pair, third)} == {3}


# ---------------------------------------------------------------- a running round


def test_fault_13_a_late_join_is_told_what_runs_and_waits_for_its_end() -> None:
    stage = Stage(3)
    pair = elastic(stage, 2, 2, 3)
    late = stage.join(3, size=2, size_max=3)
    stage.wait(5.0)
    seen = running(late)
    assert seen is not None
    assert (seen.round, sorted(seen.hosts), seen.size) == (1, ["gpu1", "gpu2"], 2)
    assert seen.since_s > 0
    assert late.waits
    newer = again(stage, pair)
    stage.wait(2.0)
    assert sorted(ready(c).rank for c in (*newer, late)) == [0, 1, 2]
    assert {ready(c).round for c in (*newer, late)} == {2}


def test_a_second_seat_of_the_leaders_node_does_not_start_a_round_beside_it() -> None:
    stage = Stage(2)
    pair = elastic(stage, 2, 1, 2)
    beside = stage.join(leader_of(pair).host + 1, size=1, size_max=2)
    stage.wait(20.0)
    assert beside.waits
    for client in pair:
        stage.world.leave(client)
    stage.wait(5.0)
    assert ready(beside).nnodes == 1


def test_when_the_leader_has_left_waiters_do_not_block_on_its_followers() -> None:
    stage = Stage(4)
    pair = elastic(stage, 2, 2, 2)
    late = [stage.join(host, size=2) for host in (3, 4)]
    stage.wait(5.0)
    assert all(c.waits for c in late)
    stage.world.leave(leader_of(pair))
    stage.wait(5.0)
    assert {ready(c).nnodes for c in late} == {2}
    other = next(c for c in pair if ready(c).rank == 1)
    assert fates(other) == [(0, "left")], "it trains on"


@pytest.mark.parametrize("host", [1, 2, 3])
def test_fault_13_no_wait_is_refused_while_a_round_runs(host: int) -> None:
    stage = Stage(3)
    pair = elastic(stage, 2, 2, 2)
    hasty = stage.join(host, size=2, wait=False)
    stage.wait(3.0)
    sentence = failed(hasty, "refused")
    assert "job bert" in sentence
    assert "round 1 has run for" in sentence
    assert "gpu1" in sentence
    assert "gpu2" in sentence
    assert not any(fates(c) for c in pair)


def test_no_wait_is_no_obstacle_where_nothing_runs() -> None:
    stage = Stage(2)
    pair = [stage.join(host, wait=False) for host in (1, 2)]
    stage.wait(2.0)
    assert sorted(ready(c).rank for c in pair) == [0, 1]


# ---------------------------------------------------------------- after a loss


def test_survivors_go_on_without_a_last_call_once_all_are_back() -> None:
    stage = Stage(3)
    clients = elastic(stage, 3, 2, 3)
    leader = leader_of(clients)
    lost, other = (c for c in clients if c is not leader)
    stage.world.leave(lost, lost=True)
    stage.wait(0.2)
    assert fates(leader) == [(ready(lost).rank, "lost")]
    first = again(stage, [leader])
    stage.wait(1.0)
    assert first[0].waits, "another survivor may still join"
    second = again(stage, [other])
    stage.wait(0.5)
    assert [ready(c).round for c in (*first, *second)] == [2, 2]
    assert ready(first[0]).rank == 0


def test_a_survivor_that_does_not_come_back_is_waited_for_no_longer_than_its_grace() -> None:
    stage = Stage(3)
    clients = elastic(stage, 3, 1, 3)
    leader = leader_of(clients)
    lost = next(c for c in clients if c is not leader)
    stage.world.leave(lost, lost=True)
    stage.wait(0.2)
    newer = again(stage, [leader], stop_grace_s=10.0)
    stage.wait(14.0)
    assert newer[0].waits
    notes = [m.note for m in newer[0].heard if isinstance(m, local.Progress)]
    assert any("may still join again" in note for note in notes), notes
    stage.wait(2.0)
    assert ready(newer[0]).nnodes == 1


def test_a_survivor_that_leaves_is_not_waited_for() -> None:
    stage = Stage(3)
    clients = elastic(stage, 3, 1, 3)
    leader = leader_of(clients)
    lost, other = (c for c in clients if c is not leader)
    stage.world.leave(lost, lost=True)
    newer = again(stage, [leader])
    stage.wait(2.0)
    assert newer[0].waits
    stage.world.leave(other)
    stage.wait(0.5)
    assert ready(newer[0]).nnodes == 1


def test_fault_03_the_leaders_loss_elects_another_and_ranks_are_kept() -> None:
    stage = Stage(4)
    clients = elastic(stage, 4, 3, 4)
    leader = leader_of(clients)
    rest = sorted((c for c in clients if c is not leader), key=lambda c: ready(c).rank)
    stage.world.leave(leader, lost=True)
    stage.wait(0.2)
    assert all(fates(c) == [(0, "lost")] for c in rest)
    newer = again(stage, rest)
    stage.wait(3.0)
    assert {ready(c).round for c in newer} == {2}
    before = {c.host: ready(c).rank for c in rest}
    kept = [c for c in newer if ready(c).rank == before[c.host]]
    assert len(kept) >= 1, "those whose rank is still there keep it"
    assert sorted(ready(c).rank for c in newer) == [0, 1, 2]


def test_a_node_that_comes_back_gets_its_old_rank() -> None:
    stage = Stage(4)
    clients = elastic(stage, 4, 4, 4)
    before = {c.host: ready(c).rank for c in clients}
    back = next(c for c in clients if ready(c).rank == 2)
    stage.world.crash(back.host, power=True)
    stage.wait(20.0)
    newer = again(stage, [c for c in clients if c is not back])
    stage.wait(2.0)
    assert all(c.waits for c in newer)
    stage.world.restart(back.host)  # it has forgotten; whoever leads has not
    newer.append(stage.join(back.host + 1, size=4, size_max=4))
    stage.wait(2.0)
    assert {c.host: ready(c).rank for c in newer} == before


def test_a_node_that_comes_back_joins_those_who_went_on() -> None:
    stage = Stage(4)
    clients = elastic(stage, 4, 3, 4)
    leader = leader_of(clients)
    back = next(c for c in clients if ready(c).rank == 2)
    stage.world.crash(back.host, power=True)
    stage.wait(20.0)
    survivors = again(stage, [c for c in clients if c is not back])
    stage.wait(2.0)
    assert {ready(c).nnodes for c in survivors} == {3}
    stage.world.restart(back.host)
    returned = stage.join(back.host + 1, size=3, size_max=4)
    stage.wait(2.0)
    assert returned.waits
    third = again(stage, survivors)
    stage.wait(2.0)
    assert {ready(c).round for c in (*third, returned)} == {3}
    assert ready(third[0]).members[0].host == f"gpu{leader.host + 1}"


def test_rank_0_goes_to_a_survivor_and_not_to_a_newcomer() -> None:
    stage = Stage(4)
    clients = elastic(stage, 3, 3, 3)
    leader = leader_of(clients)
    rest = [c for c in clients if c is not leader]
    newcomer = stage.join(4, size=3, size_max=3)
    stage.wait(2.0)
    stage.world.leave(leader, lost=True)
    stage.wait(3.0)  # by now the newcomer leads
    newer = again(stage, rest)
    stage.wait(5.0)
    assert ready(newcomer).rank != 0
    assert {ready(c).claim for c in newer} == {ready(newcomer).claim}


def test_an_explicit_rank_0_that_died_must_come_back() -> None:
    stage = Stage(2)
    zero, one = stage.join(1, rank=0), stage.join(2, rank=1)
    stage.wait(1.0)
    stage.world.leave(zero, lost=True)
    stage.wait(0.2)
    newer = stage.join(2, rank=1, like=one)
    stage.wait(30.0)
    assert newer.waits
    back = stage.join(1, rank=0)
    stage.wait(2.0)
    assert [ready(c).rank for c in (back, newer)] == [0, 1]


def test_a_run_that_failed_is_told_as_lost_by_the_join_that_replaces_it() -> None:
    stage = Stage(2)
    pair = elastic(stage, 2, 1, 2)
    stage.join(pair[1].host + 1, size=1, size_max=2, like=pair[1], lost="CMD ended with exit 1")
    stage.wait(0.5)
    gone = [m for m in pair[0].heard if isinstance(m, local.Gone)]
    assert [(g.how, g.reason) for g in gone] == [("lost", "CMD ended with exit 1")]


def test_a_join_again_after_a_loss_is_no_reason_to_warn() -> None:
    stage = Stage(2)
    pair = elastic(stage, 2, 1, 2)
    stage.world.leave(pair[1], lost=True)
    stage.wait(0.5)
    newer = again(stage, pair[:1])
    stage.wait(1.0)
    assert not noticed(newer[0])
    assert "newer join of the same process" in failed_after(pair[0])


def failed_after(client: Client) -> str:
    assert client.failure is not None
    assert client.failure.code == "cancelled"
    return client.failure.sentence


# ---------------------------------------------------------------- whose job is it?


def test_fault_07_another_user_is_refused_with_both_names() -> None:
    stage = Stage(2)
    ann = stage.join(1, rank=0)
    bob = stage.join(2, rank=1, user="bob")
    stage.wait(2.0)
    sentence = failed(bob, "not-permitted")
    for word in ("job bert", "ann", "gpu1", "10.0.0.1", "bob", "gpu2", "10.0.0.2", "--any-user"):
        assert word in sentence
    assert ann.waits


@pytest.mark.parametrize(("mine", "theirs"), [(True, False), (False, True)])
def test_fault_07_any_user_must_be_said_by_both(mine: bool, theirs: bool) -> None:
    stage = Stage(2)
    stage.join(1, rank=0, any_user=mine)
    bob = stage.join(2, rank=1, user="bob", any_user=theirs)
    stage.wait(2.0)
    failed(bob, "not-permitted")


def test_fault_07_any_user_lets_two_users_train_together() -> None:
    stage = Stage(2)
    ann = stage.join(1, rank=0, any_user=True)
    bob = stage.join(2, rank=1, user="bob", any_user=True)
    stage.wait(2.0)
    assert [m.user for m in ready(ann).members] == ["ann", "bob"]
    assert ready(bob).rank == 1


# ---------------------------------------------------------------- a store of one's own


def test_who_brings_a_store_joins_again_without_a_word() -> None:
    stage = Stage(2)
    olds = [stage.join(n, rank=n - 1, store=True) for n in (1, 2)]
    stage.wait(1.0)
    news = [stage.join(n, rank=n - 1, store=True, like=olds[n - 1]) for n in (1, 2)]
    stage.wait(2.0)
    assert [ready(client).round for client in news] == [2, 2]
    assert ready(news[0]).master_port != ready(olds[0]).master_port
    assert [noticed(client) for client in news] == [[], []]


def test_rank_0_opens_its_own_store_before_the_seal() -> None:
    stage = Stage(2)
    zero, one = stage.join(1, rank=0, store=True), stage.join(2, rank=1, store=True)
    stage.wait(1.0)
    asked = [m for m in zero.heard if isinstance(m, local.OpenStore)]
    assert asked
    assert asked[-1].address == ready(one).master_addr
    assert ready(one).master_port in stage.world.daemons[0].stores
    assert not [m for m in one.heard if isinstance(m, local.OpenStore)]


# ---------------------------------------------------------------- ghosts


def test_fault_22_ghosts_do_not_delay_a_live_leader_by_more_than_one_attempt() -> None:
    stage = Stage(4)
    ghosts = [stage.join(host, size=9) for host in (1, 2)]
    stage.wait(1.0)
    for host in (0, 1):
        stage.world.crash(host, power=True)
    for host in (2, 3):
        assert stage.core(host + 1).jobs == {}
    stage.wait(1.0)
    live = stage.join(3, rank=0)
    stage.wait(1.0)
    late = stage.join(4, rank=1)
    stage.wait(1.5)
    assert ready(late).master_addr == ready(live).master_addr == "10.0.0.3"
    assert ghosts


# ---------------------------------------------------------------- what reviewers found


@pytest.mark.parametrize("gap", [0.0, 0.05, 0.2, 1.0, 5.0])
def test_every_survivor_of_a_lost_rank_0_is_in_the_next_round(gap: float) -> None:
    stage = Stage(4)
    clients = elastic(stage, 4, 2, 4)
    leader = leader_of(clients)
    stage.world.leave(leader, lost=True)
    stage.wait(0.5)
    newer = []
    for client in clients:
        if client is not leader:
            newer += again(stage, [client])
            stage.wait(gap + 1e-6)
    stage.wait(5.0)
    assert {ready(c).nnodes for c in newer} == {3}


def test_once_the_grace_is_over_the_last_call_is_an_ordinary_one() -> None:
    stage = Stage(4)
    clients = elastic(stage, 4, 2, 4)
    leader = leader_of(clients)
    rest = [c for c in clients if c is not leader]
    for client in rest:
        stage.world.leave(client, lost=True)
    stage.wait(0.5)
    newer = again(stage, [leader])
    stage.wait(60.0)
    for client in rest:
        newer.append(stage.join(client.host + 1, size=2, size_max=4))
        stage.wait(1.0)
    stage.wait(5.0)
    assert {ready(c).nnodes for c in newer} == {4}


def test_a_full_house_prefers_survivors_to_newcomers() -> None:
    stage = Stage(4)
    clients = elastic(stage, 3, 3, 3)
    leader = leader_of(clients)
    newcomer = stage.join(4, size=3, size_max=3)
    stage.wait(1.0)
    newer = []
    for client in sorted(clients, key=lambda c: c is leader):
        newer += again(stage, [client])
        stage.wait(0.2)
    stage.wait(3.0)
    assert sorted(ready(c).rank for c in newer) == [0, 1, 2]
    assert newcomer.waits


def test_any_user_is_asked_of_everybody_who_is_here() -> None:
    stage = Stage(3)
    stage.join(1, rank=0, size=3, any_user=True)
    stage.join(2, size=3, user="bob", any_user=True)
    stage.wait(1.0)
    strict = stage.join(3, size=3)
    stage.wait(2.0)
    assert "bob" in failed(strict, "not-permitted")


def test_an_incumbent_that_nobody_can_connect_to_does_not_insist() -> None:
    stage = Stage(3)
    clients = elastic(stage, 2, 2, 3)
    leader = leader_of(clients)
    other = next(c for c in clients if c is not leader)
    stage.world.leave(leader, lost=True)
    stage.wait(0.5)
    stage.world.shut_in.add(other.host)
    newcomer = stage.join(3, size=2, size_max=3)
    stage.wait(3.0)
    newer = again(stage, [other])
    stage.wait(60.0)
    assert ready(newcomer).rank == 0
    assert ready(newer[0]).rank == 1


@pytest.mark.parametrize("count", [1, 4, 16])
def test_fault_22_no_number_of_silent_ghosts_costs_more_than_one_attempt(count: int) -> None:
    stage = Stage(2)
    label = label_of(JOB, b"")
    for k in range(count):
        address = f"10.0.0.{200 + k}"
        ghost = msgspec.structs.replace(
            ADVERT, label=label, claim=Nonce(f"{k:032x}"), addresses=(address,)
        )
        for daemon in stage.world.daemons:
            stage.world.deliver(daemon, events.AdvertHeard(advert=ghost, rung="mdns"))
    pair = [stage.join(host) for host in (1, 2)]
    stage.wait(3.5)
    assert sorted(ready(c).rank for c in pair) == [0, 1]


def test_fault_13_no_wait_is_refused_when_a_round_is_sealed_without_it() -> None:
    stage = Stage(3)
    stage.world.air.firewalled.add(0)
    zero, hasty = stage.join(1, rank=0), stage.join(3, wait=False)
    stage.wait(2.0)
    one = stage.join(2, rank=1)
    stage.wait(2.0)
    stage.world.air.firewalled.clear()
    stage.wait(10.0)
    assert [ready(c).rank for c in (zero, one)] == [0, 1]
    assert "round 1 has run" in failed(hasty, "refused")


def test_a_rank_that_would_leave_a_gap_is_named() -> None:
    stage = Stage(2)
    zero = stage.join(1, size=2, size_max=3)
    stage.wait(1.0)
    stage.join(2, rank=2, size=2, size_max=3)
    stage.wait(5.0)
    notes = [m.note for m in zero.heard if isinstance(m, local.Progress)]
    assert "rank 2, asked for by gpu2 (10.0.0.2), needs 3 to be here" in notes
