"""From the participants that are present to ranks, members and each one's config. Pure arithmetic.

Ranks: explicit ones are honoured, the leader's participant gets 0, whoever was in the job's last
round keeps its rank if that is free, and the rest are handed out in ascending order, node by node
in the order of their addresses: neighbours in the ring of ranks are neighbours on the network, and
the automatic ranks of one node are contiguous.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

import msgspec

from mingled.core.config import Config, Member
from mingled.core.events import Address
from mingled.core.messages import Entry
from mingled.core.words import Form, JobId, NodeId, Nonce, ParticipantId


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """One participant that waits, as the leader knows it."""

    entry: Entry
    node: NodeId
    host: str
    address: str
    order: int  #: of arrival at this claim
    before: int | None = None  #: its rank in the job's last round


def choose(
    present: Sequence[Present], leader: ParticipantId, size_min: int, size_max: int
) -> tuple[Present, ...] | None:
    """Who would be in a round sealed now, at most `size_max`: the leader's participant, explicit
    ranks, those that were in the last round, then first come. None if there are too few, or an
    explicit rank would leave a gap."""
    by_order = sorted(
        present,
        key=lambda p: (
            p.entry.participant != leader,
            p.entry.rank is None,
            p.before is None,
            p.order,
        ),
    )
    chosen = by_order[:size_max]
    while len(chosen) >= size_min:
        fits = [p for p in chosen if p.entry.rank is None or p.entry.rank < len(chosen)]
        if len(fits) == len(chosen):
            return tuple(chosen)
        chosen = fits
    return None


def missing_ranks(present: Iterable[Present], size: int) -> tuple[int, ...]:
    """The ranks that nobody has brought yet, where every participant names its own; else empty:
    with automatic ranks any newcomer will do."""
    ranks = [p.entry.rank for p in present]
    if any(rank is None for rank in ranks):
        return ()
    return tuple(sorted(set(range(size)).difference(r for r in ranks if r is not None)))


def members_of(chosen: Sequence[Present], leader: ParticipantId) -> tuple[Member, ...]:
    """The roster, by rank."""
    ranked = _ranked(chosen, leader)
    node_order = list(dict.fromkeys(p.node for p in ranked))
    members: list[Member] = []
    on_node: dict[NodeId, int] = {}
    global_rank = 0
    for rank, p in enumerate(ranked):
        local_index = on_node.get(p.node, 0)
        on_node[p.node] = local_index + 1
        launcher = p.entry.form is Form.LAUNCHER
        members.append(
            Member(
                rank=rank,
                node_rank=rank if launcher else node_order.index(p.node),
                local_index=local_index,
                nproc=p.entry.nproc,
                global_rank=global_rank,
                host=str(p.host),  # exact strings encode ten times as fast, once for each member
                address=p.address,
                user=str(p.entry.user),
                node=str(p.node),
                participant=str(p.entry.participant),
            )
        )
        global_rank += p.entry.nproc
    return tuple(members)


def _ranked(chosen: Sequence[Present], leader: ParticipantId) -> list[Present]:
    by_rank: dict[int, Present] = {}
    automatic: list[Present] = []
    for p in chosen:
        if p.entry.participant == leader:
            by_rank[0] = p
        elif p.entry.rank is not None:
            by_rank[p.entry.rank] = p
        else:
            automatic.append(p)
    leader_node = by_rank[0].node
    automatic.sort(key=lambda p: (p.node != leader_node, address_order(p.address), p.node, p.order))
    new: list[Present] = []
    for p in automatic:
        if p.before is not None and 0 <= p.before < len(chosen) and p.before not in by_rank:
            by_rank[p.before] = p
        else:
            new.append(p)
    free = (rank for rank in range(len(chosen)) if rank not in by_rank)
    by_rank.update(zip(free, new, strict=True))
    return [by_rank[rank] for rank in range(len(chosen))]


def address_order(address: str) -> tuple[int, int, str]:
    """Sorts addresses as numbers: 10.0.0.9 before 10.0.0.10; what is no address comes last."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return (9, 0, address)
    return (parsed.version, int(parsed), address)


def successors(members: Sequence[Member], node: str) -> list[Member]:
    """The other nodes that come next after this node's ranks in the ring, each once: collective
    libraries connect followers to each other, so reaching rank 0 alone is not enough."""
    found: dict[str, Member] = {}
    for member, after in zip(members, (*members[1:], *members[:1]), strict=True):
        if member.node == node != after.node:
            found.setdefault(after.node, after)
    return list(found.values())


def config_of(
    member: Member,
    members: Sequence[Member],
    *,
    job: JobId,
    form: Form,
    round_: int,
    claim: Nonce,
    master_addr: str,
    master_port: int,
    local: Address | None,
    leader_link: tuple[str, int] | None,
) -> Config:
    """What one member is told. `local`: its node's own address on the proven path. `leader_link`:
    where the leader's daemon listens for others."""
    launcher = form is Form.LAUNCHER
    on_node = [m for m in members if m.node == member.node]
    return Config(
        job=job,
        form=form,
        round=round_,
        claim=claim,
        rank=member.rank,
        master_addr=master_addr,
        master_port=master_port,
        interface=local.interface if local else None,
        address=local.address if local else None,
        nnodes=len(members) if launcher else len({m.node for m in members}),
        node_rank=member.node_rank,
        nproc_per_node=member.nproc,
        global_rank=member.global_rank,
        world_size=sum(m.nproc for m in members),
        local_rank=0 if launcher else member.local_index,
        local_world_size=member.nproc if launcher else len(on_node),
        members=tuple(members),
        leader_host=members[0].host,
        leader_link=leader_link,
    )


def plain_config(
    *,
    job: JobId,
    claim: Nonce,
    rank: int,
    master_addr: str,
    master_port: int,
    local: Address | None,
    leader_host: str,
) -> Config:
    """What a participant without a size is told: where rank 0 is, and nothing about the others."""
    return Config(
        job=job,
        form=Form.PLAIN,
        round=1,
        claim=claim,
        rank=rank,
        master_addr=master_addr,
        master_port=master_port,
        interface=local.interface if local else None,
        address=local.address if local else None,
        nnodes=0,
        node_rank=0,
        nproc_per_node=1,
        global_rank=rank,
        world_size=0,
        local_rank=0,
        local_world_size=0,
        members=(),
        leader_host=leader_host,
    )
