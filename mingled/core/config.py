"""The result of a rendezvous: who is in a round, and what one participant gets to know."""

from __future__ import annotations

import msgspec

from mingled.core.heard import HexId, IpText, Name
from mingled.core.words import Form, Nonce


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One participant of a sealed round, as everybody sees it."""

    rank: int  #: its place among the participants, 0 to size-1 (a node rank in the launcher form)
    node_rank: int  #: its node's place among the nodes, 0 to nnodes-1
    local_index: int  #: its place among the participants of its node, from 0
    nproc: int  #: processes that it stands for: `nproc_per_node` of a launcher, else 1
    global_rank: int  #: global rank of its first process
    host: Name  #: its node's host name, for people
    address: IpText  #: the literal IP address at which its node was reached
    user: Name  #: the user who joined, by name
    node: HexId  #: node id
    participant: HexId  #: participant id


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one participant is told when it is released. Ranks count from 0.

    In the plain form there is no roster: `members` is empty, sizes are 0 and only the rank that
    was given, the master's address and port, and this node's own interface are known.
    """

    job: str
    form: Form
    round: int  #: 1 for the first round that this claim sealed
    claim: Nonce  #: the leader's claim nonce
    rank: int  #: this participant's place: node rank (launcher), rank (process), as given (plain)
    master_addr: IpText  #: literal IP of the node of rank 0, reached by this node
    master_port: int
    interface: Name | None  #: this node's interface on the proven path; None where it is not known
    address: IpText | None  #: this node's own address on that path
    nnodes: int  #: nodes in the round
    node_rank: int
    nproc_per_node: int  #: processes this participant stands for
    global_rank: int  #: global rank of this participant's first process
    world_size: int  #: processes in the round, all nodes together
    local_rank: int  #: process form: rank among this node's participants; else 0
    local_world_size: int  #: processes on this node
    members: tuple[Member, ...]  #: by rank
    leader_host: Name
    leader_link: tuple[IpText, int] | None = (
        None  #: address and port of rank 0's daemon, as reached
    )
