"""What all jobs of one daemon share inside the core: its settings, its identity, its outbox."""

from __future__ import annotations

from mingled.core import actions
from mingled.core.actions import StoryKind
from mingled.core.adverts import AdvertBook
from mingled.core.events import Address
from mingled.core.former import Former
from mingled.core.messages import Message
from mingled.core.secrets import Realm, key_id_of
from mingled.core.settings import Settings
from mingled.core.stream import Stream
from mingled.core.words import JobId, Label, NodeId


class Context:
    """Mutable, owned by one `Rendezvous`. `out` collects the actions of the event at hand."""

    def __init__(
        self,
        *,
        settings: Settings,
        stream: Stream,
        node: NodeId,
        host: str,
        link_port: int,
        ring_port: int,
        addresses: tuple[Address, ...],
        own: frozenset[str] = frozenset(),
        restricted: bool = False,
        keys: tuple[bytes, ...] = (),
    ) -> None:
        self.settings = settings
        self.stream = stream
        self.node = node
        self.host = host
        self.link_port = link_port
        self.ring_port = ring_port
        self.addresses = addresses
        self.own = own | {a.address for a in addresses}
        self.restricted = restricted
        self.keys = keys  #: the one to present first
        self.nodes: dict[Label, Realm] = {}  #: of the daemons themselves, under each key
        self.book = AdvertBook(settings, stream.salt("adverts"))
        self.former = Former(settings.former_max)
        self.out: list[actions.Action] = []
        #: what the event at hand has changed, for `mingle logs`: job, kind and text
        self.story: list[tuple[JobId, StoryKind, str]] = []
        self.ports: dict[int, JobId] = {}  #: master ports in use by jobs led here
        self._links = -1

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Of the keys that are accepted, the one that is presented first."""
        return tuple(map(key_id_of, self.keys or (b"",)))

    def next_link(self) -> int:
        """Links that the core opens are odd; those the shell accepts are even."""
        self._links += 2
        return self._links

    def own_end(self, local: Address) -> Address:
        """Our end of a connection, with what is known of it."""
        # A link-local address may be on several interfaces: VLANs share their card's.
        return next(
            (
                a
                for a in self.addresses
                if a.address == local.address and local.interface in ("", a.interface)
            ),
            local,
        )

    def do(self, action: actions.Action) -> None:
        self.out.append(action)

    def send(self, link: int, message: Message) -> None:
        self.out.append(actions.SendFrame(link=link, message=message))
