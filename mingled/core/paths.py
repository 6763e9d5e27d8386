"""The paths that one node must prove before it agrees to a round: to rank 0's port, and to its
successors in the ring of ranks."""

from __future__ import annotations

from collections.abc import Sequence

from mingled.core import actions
from mingled.core.config import Member
from mingled.core.context import Context
from mingled.core.events import Address
from mingled.core.messages import Prepare
from mingled.core.roster import successors
from mingled.core.words import JobId, Nonce

Place = tuple[str, int]
"""An address and a port."""


class Paths:
    """Of one attempt on one node. Each is asked for at once."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._open: dict[Place, str] = {}  #: what is not proven yet, and why it is asked for
        self._master: Place | None = None
        self.master: Address | None = None  #: our own address on the path to rank 0

    @classmethod
    def of_prepare(cls, ctx: Context, job: JobId, prepare: Prepare) -> Paths:
        """A follower's: rank 0's port as well."""
        paths = cls(ctx)
        paths._master = (prepare.master_addr, prepare.master_port)
        word = "" if prepare.store else prepare.proof
        host = prepare.members[0].host
        paths._ask(job, prepare.proof, paths._master, word, f"rank 0's port on {host}")
        paths.ring(job, prepare.proof, prepare.members, prepare.ring_ports)
        return paths

    def ring(
        self, job: JobId, proof: Nonce, members: Sequence[Member], ports: Sequence[int]
    ) -> None:
        for after in successors(members, self._ctx.node):
            self._ask(job, proof, (after.address, ports[after.rank]), after.node, after.host)

    def _ask(self, job: JobId, proof: Nonce, place: Place, word: str, what: str) -> None:
        self._open[place] = what
        address, port = place
        self._ctx.do(actions.ProvePath(job=job, proof=proof, address=address, port=port, word=word))

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
        start = f"{self._ctx.here()} cannot reach {what}, TCP {address} port {port}: {reason}"
        if place == self._master:
            return f"{start}; a firewall there?"
        return (
            f"{start}; a firewall on the ephemeral ports? Gloo and NCCL connect followers to each "
            "other there, so let the machines of a job reach each other"
        )
