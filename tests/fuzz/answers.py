"""What a well-behaved peer or shell would say next. Without it nothing thrown at the core would
ever get past its first question."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from mingled.core import actions, events, local, messages
from mingled.core.config import Member
from mingled.core.words import Form, NodeId, ParticipantId, Standing
from tests.fuzz.values import ADDRESSES, NODES, OWN_NODE

PEER = messages.NodeCard(
    node=NODES[1], host="gpu2", port=29_490, ring_port=41_873, addresses=("10.0.0.2",)
)
LEADER = ParticipantId("d" * 32)


def to_action(action: actions.Action) -> Iterator[events.Event]:
    """What the shell reports of an action that went well."""
    match action:
        case actions.OpenProof():
            yield events.ProofOpened(job=action.job, proof=action.proof, port=action.first)
        case actions.ProvePath():
            here = events.Address(address="10.0.0.1", interface="eth0", prefix=24)
            yield events.PathProven(
                job=action.job,
                proof=action.proof,
                address=action.address,
                port=action.port,
                local=here,
            )
        case actions.TryPlaces():
            yield events.PlacesTried(link=action.link, results=())
        case actions.Tell(message=local.OpenStore(proof=proof)):
            yield events.StoreOpened(participant=action.participant, proof=proof, port=40_001)
        case actions.SendFrame():
            for message in to_frame(action.message):
                yield events.FrameReceived(link=action.link, message=message)


def to_frame(said: messages.Message) -> Iterator[messages.Message]:
    """What a peer answers to a frame of the core's."""
    match said:
        case messages.Join():
            yield messages.Welcome(
                claim=said.claim,
                node=PEER,
                seen_address="10.0.0.1",
                met_address=PEER.addresses[0],
                standing=Standing.EXPLICIT,
            )
            yield _prepare(said)
        case messages.Reach():
            where = said.addresses[:1]
            yield messages.Reached(
                claim=said.claim, addresses=where, sources=ADDRESSES[: len(where)], done=True
            )
        case messages.Prepare():
            yield messages.Ack(claim=said.claim, round=said.round, proof=said.proof)
        case messages.Ack():
            yield messages.Commit(claim=said.claim, round=said.round, proof=said.proof)
            yield messages.Waiting(claim=said.claim, round=said.round, count=1)
        case messages.Commit():
            yield messages.Ping(claim=said.claim)
        case messages.Contest():
            card = msgspec.structs.replace(PEER, node=NodeId("b" * 32))
            yield msgspec.structs.replace(
                said, claim=said.rival, rival=said.claim, node=card, user="bob"
            )
        case messages.Ping():
            yield messages.Pong(claim=said.claim, node=PEER.node)
        case messages.Attach():
            fates: tuple[messages.Fate, ...] = tuple("running" for _ in said.members)
            yield messages.Attached(
                claim=said.claim,
                round=said.round,
                node=PEER.node,
                members=said.members,
                fates=fates,
            )


def _prepare(join: messages.Join) -> messages.Prepare:
    """A roster of the peer as rank 0 and whoever has just joined."""
    ids = [(LEADER, PEER.node, "gpu2", "10.0.0.2", 1)]
    ids += [(e.participant, OWN_NODE, join.node.host, "10.0.0.1", e.nproc) for e in join.entries]
    members, first = [], 0
    for rank, (participant, node, host, address, nproc) in enumerate(ids):
        launcher = bool(join.entries) and join.entries[0].form is Form.LAUNCHER
        members.append(
            Member(
                rank=rank,
                node_rank=rank if launcher else min(rank, 1),
                local_index=0 if launcher else max(0, rank - 1),
                nproc=nproc,
                global_rank=first,
                host=host,
                address=address,
                user="ann",
                node=node,
                participant=participant,
            )
        )
        first += nproc
    return messages.Prepare(
        claim=join.claim,
        round=1,
        proof=join.claim,
        master_addr="10.0.0.2",
        master_port=29_500,
        members=tuple(members),
        ring_ports=(41_873,) * len(members),
    )
