"""From those present to ranks and configs."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mingled.core.config import Config, Member
from mingled.core.messages import Entry
from mingled.core.roster import (
    Present,
    address_order,
    choose,
    config_of,
    members_of,
    missing_ranks,
    successors,
)
from mingled.core.words import Form, NodeId, ParticipantId
from tests.core.samples import CLAIM, JOB


def present(
    k: int,
    node: int,
    rank: int | None = None,
    form: Form = Form.PROCESS,
    nproc: int = 1,
    before: int | None = None,
) -> Present:
    entry = Entry(
        participant=ParticipantId(f"{k:032x}"),
        form=form,
        size_min=1,
        size_max=64,
        rank=rank,
        nproc=nproc,
        user="ann",
        pid=k + 1,
    )
    address = f"10.0.0.{node}"
    return Present(
        entry=entry,
        node=NodeId(f"{node:032x}"),
        host=f"gpu{node}",
        address=address,
        order=k,
        before=before,
    )


@st.composite
def gatherings(draw: st.DrawFn) -> tuple[list[Present], ParticipantId]:
    """Some participants on some nodes, some with a rank; the first that can is the leader."""
    count = draw(st.integers(1, 12))
    ranks: list[int | None] = [
        rank if draw(st.booleans()) else None for rank in draw(st.permutations(range(count)))
    ]
    people = [present(k, draw(st.integers(1, 4)), rank) for k, rank in enumerate(ranks)]
    able = [p for p in people if p.entry.rank in (None, 0)]
    if not able:
        people.append(present(count, 1))
        able = people[-1:]
    leader = min(able, key=lambda p: p.entry.rank is None)
    return people, leader.entry.participant


@given(gatherings())
def test_ranks_are_contiguous_and_explicit_ones_are_honoured(
    gathering: tuple[list[Present], ParticipantId],
) -> None:
    people, leader = gathering
    chosen = choose(people, leader, 1, len(people))
    assert chosen is not None
    members = members_of(chosen, leader)
    assert [m.rank for m in members] == list(range(len(members)))
    assert members[0].participant == leader
    assert len({m.participant for m in members}) == len(members)
    asked = {p.entry.participant: p.entry.rank for p in people}
    assert all(asked[ParticipantId(m.participant)] in (None, m.rank) for m in members)
    for node in {m.node for m in members}:
        local = [m.local_index for m in members if m.node == node]
        assert local == list(range(len(local)))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_automatic_ranks_are_contiguous_on_a_node(nodes: list[int]) -> None:
    people = [present(k, node) for k, node in enumerate(nodes)]
    members = members_of(people, people[0].entry.participant)
    runs = [node for node, _ in itertools.groupby(members, lambda m: m.node)]
    assert len(runs) == len(set(runs))
    assert [m.node_rank for m in members] == sorted(m.node_rank for m in members)


def config(member: Member, members: tuple[Member, ...], form: Form) -> Config:
    return config_of(
        member,
        members,
        job=JOB,
        form=form,
        round_=1,
        claim=CLAIM,
        master_addr="10.0.0.1",
        master_port=29500,
        local=None,
        leader_link=None,
    )


def test_four_processes_on_two_nodes() -> None:
    people = [present(0, 1), present(1, 2), present(2, 1), present(3, 2)]
    members = members_of(people, people[0].entry.participant)
    configs = [config(m, members, Form.PROCESS) for m in members]
    seen = [(c.rank, c.node_rank, c.local_rank, c.local_world_size) for c in configs]
    assert seen == [(0, 0, 0, 2), (1, 0, 1, 2), (2, 1, 0, 2), (3, 1, 1, 2)]
    assert {(c.nnodes, c.world_size) for c in configs} == {(2, 4)}


def test_launchers_with_unequal_nodes() -> None:
    people = [present(k, k + 1, None, Form.LAUNCHER, nproc) for k, nproc in enumerate((2, 8, 4))]
    members = members_of(people, people[0].entry.participant)
    configs = [config(m, members, Form.LAUNCHER) for m in members]
    assert [c.global_rank for c in configs] == [0, 2, 10]
    assert {(c.nnodes, c.world_size) for c in configs} == {(3, 14)}
    assert [(c.node_rank, c.nproc_per_node) for c in configs] == [(0, 2), (1, 8), (2, 4)]


def test_too_few_or_a_gap_is_no_round() -> None:
    people = [present(0, 1), present(1, 2, rank=3)]
    leader = people[0].entry.participant
    assert choose(people, leader, 3, 4) is None
    assert choose(people, leader, 2, 4) is None, "rank 3 of two leaves a gap"
    assert choose(people, leader, 1, 4) == (people[0],)


def test_explicit_ranks_come_before_automatic_ones_of_the_surplus() -> None:
    people = [present(0, 1), present(1, 2), present(2, 3, rank=1)]
    chosen = choose(people, people[0].entry.participant, 2, 2)
    assert chosen is not None
    assert [p.host for p in chosen] == ["gpu1", "gpu3"]


def test_missing_ranks_are_known_only_where_all_are_given() -> None:
    assert missing_ranks([present(0, 1, 0), present(1, 2, 2)], 4) == (1, 3)
    assert missing_ranks([present(0, 1, 0), present(1, 2)], 4) == ()


def test_ties_are_ordered_by_address_after_the_leader() -> None:
    people = [present(0, 30), present(1, 9), present(2, 100), present(3, 10)]
    members = members_of(people, people[0].entry.participant)
    assert [m.host for m in members] == ["gpu30", "gpu9", "gpu10", "gpu100"]


def test_addresses_sort_as_numbers_and_anything_else_last() -> None:
    some = ["gpu7", "fd00::1", "10.0.0.10", "fe80::1%eth0", "10.0.0.9"]
    assert sorted(some, key=address_order) == [
        "10.0.0.9",
        "10.0.0.10",
        "fd00::1",
        "fe80::1%eth0",
        "gpu7",
    ]


def test_whoever_comes_back_gets_its_old_rank_if_it_is_free() -> None:
    people = [
        present(0, 1, before=2),  # leads now
        present(1, 2, before=1),
        present(2, 3, before=1),  # two that say the same: the first by address
        present(3, 4, before=7),  # too high for a round of five
        present(4, 5, before=4),
    ]
    members = members_of(people, people[0].entry.participant)
    assert [m.host for m in members] == ["gpu1", "gpu2", "gpu3", "gpu4", "gpu5"]
    assert members[4].participant == people[4].entry.participant


def test_an_explicit_rank_goes_before_an_old_one() -> None:
    people = [present(0, 1), present(1, 2, before=1), present(2, 3, rank=1)]
    members = members_of(people, people[0].entry.participant)
    assert [m.host for m in members] == ["gpu1", "gpu3", "gpu2"]


@given(gatherings())
def test_the_ring_of_successors_reaches_every_node(
    gathering: tuple[list[Present], ParticipantId],
) -> None:
    people, leader = gathering
    chosen = choose(people, leader, 1, len(people))
    assert chosen is not None
    members = members_of(chosen, leader)
    nodes = {m.node for m in members}
    reached = {after.node for node in nodes for after in successors(members, node)}
    assert reached == (nodes if len(nodes) > 1 else set())
    assert all(after.node != node for node in nodes for after in successors(members, node))
