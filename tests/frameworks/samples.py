"""Configs of sealed rounds, as one of their participants gets them."""

from __future__ import annotations

from collections.abc import Sequence

from mingled.core.config import Config, Member
from mingled.core.events import Address
from mingled.core.roster import config_of, plain_config
from mingled.core.words import Form, JobId, Nonce

CLAIM = Nonce("c" * 32)


def members(nodes: Sequence[int], *, nproc: Sequence[int] = (), six: bool = False) -> list[Member]:
    """By rank; `nodes`: the node rank of each, `nproc`: its processes, else 1."""
    found: list[Member] = []
    for rank, node in enumerate(nodes):
        found.append(
            Member(
                rank=rank,
                node_rank=node,
                local_index=list(nodes[:rank]).count(node),
                nproc=nproc[rank] if nproc else 1,
                global_rank=sum(m.nproc for m in found),
                host=f"gpu{node}",
                address=f"fd00::{node + 1}" if six else f"10.0.0.{node + 1}",
                user="ann",
                node=f"{node:032x}",
                participant=f"{rank:032x}",
            )
        )
    return found


def sealed(
    nodes: Sequence[int] = (0, 0, 1, 1),
    *,
    rank: int = 1,
    form: Form = Form.PROCESS,
    nproc: Sequence[int] = (),
    job: str = "bert",
    six: bool = False,
) -> Config:
    """Of a round with this roster, to the participant of this rank."""
    roster = members(nodes, nproc=nproc, six=six)
    return config_of(
        roster[rank],
        roster,
        job=JobId(job),
        form=form,
        round_=1,
        claim=CLAIM,
        master_addr=roster[0].address,
        master_port=29512,
        local=Address(interface="eth0", address=roster[rank].address),
        leader_link=None,
    )


def launched(*nproc: int, rank: int = 1) -> Config:
    """Of launchers, one on each node, with so many processes each."""
    return sealed(range(len(nproc)), nproc=nproc, rank=rank, form=Form.LAUNCHER)


def plain(rank: int = 1) -> Config:
    """A rank and no size."""
    return plain_config(
        job=JobId("bert"),
        claim=CLAIM,
        rank=rank,
        master_addr="10.0.0.1",
        master_port=29512,
        local=Address(interface="eth0", address="10.0.0.2"),
        leader_host="gpu0",
    )
