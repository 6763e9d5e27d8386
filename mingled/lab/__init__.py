"""Real LANs of many nodes on one Linux machine: `with Lan(nodes=3) as lan: lan.node(2).run(...)`.

Each node is a set of namespaces with its own network card, host name, processes, /tmp, /run and
/dev/shm; disk and $HOME are this machine's. Works as root, and rootless through user namespaces.
"""

from mingled.lab.capture import Capture, Packet
from mingled.lab.lan import Lan
from mingled.lab.namespaces import Availability, available
from mingled.lab.node import Node
from mingled.lab.process import Process
from mingled.lab.tools import missing

__all__ = [
    "Availability",
    "Capture",
    "Lan",
    "Node",
    "Packet",
    "Process",
    "available",
    "missing",
]
