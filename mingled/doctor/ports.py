"""What must be open between the nodes, and why: one list for `mingle firewall` and for doctor."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from mingled.core import local
from mingled.core.datagrams import BROADCAST_PORT
from mingled.core.settings import Settings
from mingled.doctor.gather_here import MDNS_PORT
from mingled.net.listening import ephemeral_ports
from mingled.options import LINK_PORT

PRIVATE_PORTS = 8
"""Link ports of private daemons (one for each job of each user, where no system daemon runs): they
take the next free ones after LINK_PORT. More than this on one node is rare."""


_UDP = re.compile(r"broadcast: .*?UDP (\d{1,5})\b")
"""In a report's lines on discovery."""


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """As the daemons here are configured, and so, mostly, all others."""

    link: int = LINK_PORT
    broadcast: int = BROADCAST_PORT


def real(ports: Ports, reports: Sequence[local.Report]) -> Ports:
    """What the daemon of this machine says of its own port of the broadcast beats its file, and the
    environment beats both."""
    if os.environ.get("MINGLE_BROADCAST_PORT"):
        return ports
    for report in sorted(reports, key=lambda r: r.private):
        for line in report.discovery:
            said = _UDP.match(line)
            if said and 0 < int(said[1]) < 65_536:
                return Ports(link=ports.link, broadcast=int(said[1]))
    return ports


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """A range of ports, its ends included."""

    protocol: Literal["tcp", "udp"]
    first: int
    last: int
    why: str

    @property
    def ports(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


def openings(ports: Ports | None = None) -> tuple[Opening, ...]:
    ports = ports or Ports()
    settings = Settings()
    high = ephemeral_ports()

    def one(protocol: Literal["tcp", "udp"], first: int, last: int, why: str) -> Opening:
        return Opening(protocol=protocol, first=first, last=last, why=why)

    return (
        one("udp", MDNS_PORT, MDNS_PORT, "multicast DNS: rank 0 is found"),
        one("udp", ports.broadcast, ports.broadcast, "the same by broadcast, and by --peers"),
        one("tcp", ports.link, ports.link, "the daemons' link"),
        one(
            "tcp",
            min(ports.link + 1, 65_535),
            min(ports.link + PRIVATE_PORTS, 65_535),
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
