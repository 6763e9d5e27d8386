"""What must be open between the nodes, and why: one list for `mingle firewall` and for doctor."""

from __future__ import annotations

from typing import Literal

import msgspec

from mingled.core.datagrams import BROADCAST_PORT
from mingled.core.settings import Settings
from mingled.daemon import LINK_PORT
from mingled.doctor.gather_here import MDNS_PORT
from mingled.net.listening import ephemeral_ports

PRIVATE_PORTS = 8
"""Link ports of private daemons (one for each job of each user, where no system daemon runs): they
take the next free ones after LINK_PORT. More than this on one node is rare."""


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """A range of ports, its ends included."""

    protocol: Literal["tcp", "udp"]
    first: int
    last: int
    why: str

    @property
    def ports(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


def openings() -> tuple[Opening, ...]:
    settings = Settings()
    high = ephemeral_ports()

    def one(protocol: Literal["tcp", "udp"], first: int, last: int, why: str) -> Opening:
        return Opening(protocol=protocol, first=first, last=last, why=why)

    return (
        one("udp", MDNS_PORT, MDNS_PORT, "multicast DNS: rank 0 is found"),
        one("udp", BROADCAST_PORT, BROADCAST_PORT, "the same by broadcast, and by --peers"),
        one("tcp", LINK_PORT, LINK_PORT, "the daemons' link"),
        one(
            "tcp",
            LINK_PORT + 1,
            LINK_PORT + PRIVATE_PORTS,
            "links of private daemons, one for each job where no system daemon runs",
        ),
        one(
            "tcp",
            settings.port_first,
            settings.port_first + settings.port_count - 1,
            "MASTER_PORT, where rank 0's store listens",
        ),
        one(
            "tcp",
            high[0],
            high[-1],
            "Gloo and NCCL connect all nodes to each other on ports of the kernel's choice",
        ),
    )
