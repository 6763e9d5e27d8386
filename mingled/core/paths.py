"""The paths that one node must prove before it agrees to a round: to rank 0's port, and to its
successors in the ring of ranks."""

from __future__ import annotations

from collections.abc import Sequence

from mingled.core.config import Member
from mingled.core.events import Address
from mingled.core.home import Home
from mingled.core.messages import Prepare
from mingled.core.reach import scoped
from mingled.core.roster import successors
from mingled.core.words import JobId, NodeId, Nonce

Place = tuple[str, int]
"""An address and a port."""


class Paths:
    """Of one attempt on one node. Each is asked for at once."""

    def __init__(self, job: JobId, home: Home, node: NodeId, interface: str) -> None:
        """`interface`: of ours, by which the others are reached."""
        self._job = job
        self._home = home
        self._node = node
        self._interface = interface
        self._open: dict[Place, str] = {}  #: what is not proven yet, and why it is asked for
        self._master: Place | None = None
        self.master: Address | None = None  #: our own address on the path to rank 0

    def prepare(self, prepare: Prepare) -> None:
        """A follower's: rank 0's port as well."""
        self._master = (scoped(prepare.master_addr, self._interface), prepare.master_port)
        word = "" if prepare.store else prepare.proof
        host = prepare.members[0].host
        self._ask(prepare.proof, self._master, word, f"rank 0's port on {host}")
        self.ring(prepare.proof, prepare.members, prepare.ring_ports, prepare.master_addr)

    def ring(
        self, proof: Nonce, members: Sequence[Member], ports: Sequence[int], master_addr: str
    ) -> None:
        """To the next nodes; rank 0's is reached by `master_addr`, which may be ours alone."""
        for after in successors(members, self._node):
            address = master_addr if after.node == members[0].node else after.address
            place = (scoped(address, self._interface), ports[after.rank])
            self._ask(proof, place, after.node, after.host)

    def _ask(self, proof: Nonce, place: Place, word: str, what: str) -> None:
        self._open[place] = what
        self._home.prove(self._job, proof, place, word)

    @property
    def all_proven(self) -> bool:
        return not self._open

    def proven(self, address: str, port: int, local: Address) -> bool:
        """One more; are all?"""
        self._open.pop((address, port), None)
        if (address, port) == self._master:
            self.master = local
        return self.all_proven

    def is_master(self, address: str, port: int) -> bool:
        return (address, port) == self._master

    def refuted(self, address: str, port: int, reason: str) -> str:
        """The sentence that names both ends and what to look at."""
        place = (address, port)
        what = self._open.get(place, "somebody")
        start = f"{self._home.here()} cannot reach {what}, TCP {address} port {port}: {reason}"
        if place == self._master:
            return f"{start}; a firewall there?"
        return (
            f"{start}; a firewall on the ephemeral ports? Gloo and NCCL connect followers to each "
            "other there, so let the machines of a job reach each other"
        )
