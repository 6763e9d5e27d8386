"""A census on loopback, of daemons that answer in different ways."""

from __future__ import annotations

import socket

import pytest

from mingled.core.datagrams import Identity
from mingled.core.words import NodeId
from mingled.edges.mdns import Mdns
from mingled.edges.presence import Found, find_nodes
from mingled.errors import BadInput
from mingled.net.datagrams import Datagrams
from tests.edges.test_broadcast import LO, free_port, new_node

WITHIN_S = 2.0


async def test_nodes_are_found_in_every_way() -> None:
    shared, far = free_port(), free_port()
    hosts = ("gpu1", "gpu2", "gpu3")
    who = {host: Identity(node=new_node(), host=host, port=29_490) for host in hosts}
    mdns = Mdns(lambda _: None, who["gpu1"].node, who["gpu1"])
    ports = [
        Datagrams(who["gpu1"], port=shared),
        Datagrams(who["gpu2"], port=shared),
        Datagrams(who["gpu3"], port=far),
    ]
    await mdns.start(LO)
    for datagrams in ports:
        await datagrams.start(LO)
    census = await find_nodes(
        WITHIN_S, [f"127.0.0.1:{far}", "nobody.invalid"], addresses=LO, port=shared
    )
    for datagrams in ports:
        await datagrams.close()
    await mdns.close()

    def found(host: str, *rungs: str) -> Found:
        return Found(
            node=who[host].node,
            host=host,
            addresses=("127.0.0.1",),
            port=29_490,
            rungs=rungs,  # type: ignore[arg-type]  # Literals
        )

    ours: set[NodeId] = {identity.node for identity in who.values()}
    assert [node for node in census.nodes if node.node in ours] == [
        found("gpu1", "broadcast", "mdns"),
        found("gpu2", "broadcast"),
        found("gpu3", "peers"),
    ]
    (trouble,) = census.troubles
    assert trouble.startswith("peer nobody.invalid ")


async def test_what_cannot_be_asked_is_said() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        port = int(taken.getsockname()[1])
        census = await find_nodes(0.2, addresses=LO, port=port)
    said = f"another program holds UDP port {port} for itself alone"
    assert any(said in trouble for trouble in census.troubles)


async def test_peers_that_cannot_be() -> None:
    with pytest.raises(BadInput, match="no:such:peer"):
        await find_nodes(60, ["no:such:peer"])
