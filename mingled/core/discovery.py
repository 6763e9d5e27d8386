"""What every rung of discovery can do. They differ in how adverts travel, and in nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mingled.core.events import Address
from mingled.core.messages import Advert
from mingled.core.words import Label, Nonce


class Discovery(Protocol):
    """One rung of the ladder: mDNS, broadcast, or peers that somebody named.

    It emits `AdvertHeard`, `AdvertGone` and `DiscoveryNoted`, and raises nothing: what does not
    work is said by `state`. The actions may be called before `start` and after `close`.
    """

    @property
    def state(self) -> str:
        """One line for status, beginning with the rung's name."""

    async def start(self, addresses: Sequence[Address]) -> None:
        """Listen from now on; `addresses`: the candidates, best first."""

    async def close(self) -> None:
        """Say goodbye for what is advertised."""

    def advertise(self, advert: Advert, peers: Sequence[str]) -> None:
        """Publish, or publish anew what has changed, until it is withdrawn."""

    def withdraw(self, label: Label, claim: Nonce) -> None: ...

    def ask(self, label: Label, *, unicast: bool, peers: Sequence[str]) -> None:
        """Ask who leads the job. `unicast`: an answer to us alone, where a rung has that."""

    def doubt(self, label: Label, claim: Nonce) -> None:
        """Ask for an advert again. One that was heard here and that nobody confirms is gone."""

    async def readdress(self, addresses: Sequence[Address]) -> None:
        """The machine's addresses or interfaces may have changed. Cheap where they have not."""
