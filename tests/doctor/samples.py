"""Two machines as doctor would have gathered them, in health: tests change one thing each."""

from __future__ import annotations

from typing import Any

import msgspec

from mingled import __version__
from mingled.core.datagrams import Means
from mingled.core.events import Address
from mingled.core.messages import Nic, NodeCard, Presence
from mingled.core.words import NodeId
from mingled.doctor.gather_dns import Dns, Server
from mingled.doctor.gather_firewall import Ruleset
from mingled.doctor.gather_here import Here
from mingled.doctor.gather_tcp import Attempt, Examined, Port
from mingled.doctor.gather_udp import Echoes, Udp
from mingled.doctor.gathered import Gathered
from mingled.doctor.here import Daemons
from mingled.doctor.nodes import Seen
from mingled.net.facts import Facts, Link, LinkAddress

ALL: frozenset[Means] = frozenset({"multicast", "broadcast", "unicast"})

ETH0 = Link(
    name="eth0",
    kind="ethernet",
    up=True,
    carrier=True,
    speed_mbits=10_000,
    mtu_bytes=1_500,
    addresses=(LinkAddress(address="10.0.0.1", prefix=24, reach="private"),),
)

NIC = Nic(name="eth0", kind="ethernet", speed_mbps=10_000, mtu=1_500, addresses=("10.0.0.2/24",))

OURS = Address(address="10.0.0.1", interface="eth0", prefix=24)

HERE = Here(
    host="gpu1",
    daemons=Daemons(),
    facts=Facts(links=(ETH0,), exact=True),
    candidates=(OURS,),
    machine="1" * 16,
    environment={},
    hosts_file="127.0.0.1 localhost\n",
    containers=(),
    mdns_owners=(),
    mdns_held=False,
    bridges=(),
    name_servers=("10.0.0.53",),
)

PRESENCE = Presence(
    node=NodeCard(
        node=NodeId("2" * 32), host="gpu2", port=29_490, ring_port=40_000, addresses=("10.0.0.2",)
    ),
    release=__version__,
    seen_address="10.0.0.1",
    clock_s=1e9,
    machine="2" * 16,
    nics=(NIC,),
    gpus=("NVIDIA H200",) * 8,
    labels=(),
    jobs=0,
    discovery=("mdns: browsing _mingle._tcp.local. on eth0 10.0.0.2",),
    up_s=60.0,
)

SEEN = Seen(
    node=PRESENCE.node.node,
    host="gpu2",
    addresses=("10.0.0.2",),
    port=29_490,
    rungs=("broadcast", "mdns"),
    own=False,
    presence=PRESENCE,
    answered_s=0.01,
    here=OURS,
)

_PORTS: tuple[tuple[Port, int], ...] = (("link", 29_490), ("master", 29_500), ("ephemeral", 40_000))

OTHER = Examined(
    seen=SEEN,
    attempts=tuple(
        Attempt(port=port, back=back, number=number, reason="")
        for port, number in _PORTS
        for back in (False, True)
    ),
    large_there="",
    large_back="",
)

UDP = Udp(
    echoes=(Echoes(interface="eth0", address="10.0.0.2", there=ALL, back=ALL),),
    interfaces=("eth0",),
    mdns_self=frozenset({"eth0"}),
    mdns_answered=frozenset({"10.0.0.2"}),
)

HEALTHY = Gathered(
    here=HERE,
    others=(OTHER,),
    udp=UDP,
    dns=Dns(servers=(Server(address="10.0.0.53"),), own=("10.0.0.1",)),
    rulesets=(Ruleset(tool="nft"),),
)


def here(**changes: Any) -> Gathered:
    """With this machine changed."""
    return msgspec.structs.replace(HEALTHY, here=msgspec.structs.replace(HERE, **changes))


def udp(**changes: Any) -> Gathered:
    return msgspec.structs.replace(HEALTHY, udp=msgspec.structs.replace(UDP, **changes))


def echoes(there: set[Means], back: set[Means], **changes: Any) -> Gathered:
    """With these means alone that echoes travel by."""
    one = Echoes(interface="eth0", address="10.0.0.2", there=frozenset(there), back=frozenset(back))
    return udp(echoes=(one,), **changes)


def other(**changes: Any) -> Gathered:
    return msgspec.structs.replace(HEALTHY, others=(msgspec.structs.replace(OTHER, **changes),))


def seen(**changes: Any) -> Gathered:
    return other(seen=msgspec.structs.replace(SEEN, **changes))


def presence(**changes: Any) -> Gathered:
    return seen(presence=msgspec.structs.replace(PRESENCE, **changes))
