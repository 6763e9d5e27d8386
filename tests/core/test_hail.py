"""What a daemon tells of itself, and what it tries for others: no more than they may know."""

from __future__ import annotations

from mingled.core import actions, events, messages
from mingled.core.actions import Action
from mingled.core.events import Address
from mingled.core.hail import NOT_ALLOWED
from mingled.core.messages import Message, Place, Tried
from mingled.core.secrets import label_of, node_realms_of
from mingled.core.words import JobId, Label
from tests.core.stage import JOB, Stage

ASKER = "10.0.0.200"
LINK = 1000


class Visitor:
    """Somebody who connects to gpu1 of a LAN with one waiting job of gpu1 and gpu2."""

    def __init__(self) -> None:
        self.stage = Stage(2)
        self.stage.join(1, rank=0, size=3)
        self.stage.join(2, rank=1, size=3)
        self.stage.wait(1.0)
        here = Address(address="10.0.0.1", interface="eth0")
        (realm,) = node_realms_of()
        accepted = events.LinkAccepted(
            link=LINK, local=here, remote_address=ASKER, label=realm.label
        )
        self.handle(accepted)

    def handle(self, event: events.Event, later_s: float = 0.0) -> list[Action]:
        world = self.stage.world
        now = world.clock.now + world.daemons[0].boot + later_s
        return self.stage.core(1).handle(event, now)

    def says(self, message: Message) -> list[Action]:
        return self.handle(events.FrameReceived(link=LINK, message=message))


def tries(done: list[Action]) -> tuple[Place, ...]:
    (action,) = done
    assert isinstance(action, actions.TryPlaces)
    return action.places


def test_whoever_knows_a_job_learns_that_it_is_here() -> None:
    visitor = Visitor()
    other = label_of(JobId("other"))
    (introduce,) = visitor.says(messages.Hail(labels=(other, label_of(JOB))))
    assert isinstance(introduce, actions.Introduce)
    assert (introduce.labels, introduce.jobs, introduce.remote) == ((label_of(JOB),), 1, ASKER)
    assert (introduce.card.host, introduce.card.addresses) == ("gpu1", ("10.0.0.1",))
    (introduce,) = visitor.says(messages.Hail())
    assert isinstance(introduce, actions.Introduce)
    assert introduce.labels == ()


def test_the_asker_itself_is_tried_on_any_port() -> None:
    places = (Place(address=ASKER, port=22), Place(address="10.0.0.2", port=29_400))
    visitor = Visitor()
    assert tries(visitor.says(messages.Test(label=None, places=places))) == places[:1]
    reached = Tried(address=ASKER, port=22, reason="", took_s=0.001)
    (sent,) = visitor.handle(events.PlacesTried(link=LINK, results=(reached,)))
    assert isinstance(sent, actions.SendFrame)
    assert isinstance(sent.message, messages.Tested)
    assert [t.reason for t in sent.message.results] == ["", NOT_ALLOWED]


def test_nodes_of_a_job_are_tried_at_daemons_ports_by_whoever_knows_it() -> None:
    link = Place(address="10.0.0.2", port=29_400)
    ring = Place(address="10.0.0.2", port=41_873, word="0" * 32)
    master = Place(address="10.0.0.2", port=29_512)
    ssh = Place(address="10.0.0.2", port=22)
    stranger = Place(address="10.0.0.3", port=29_400)
    places = (link, ring, master, ssh, stranger)

    def allowed(label: Label | None) -> tuple[Place, ...]:
        return tries(Visitor().says(messages.Test(label=label, places=places)))

    assert allowed(label_of(JOB)) == (link, ring, master)
    assert allowed(label_of(JobId("other"))) == ()
    assert allowed(None) == ()


def test_a_port_is_opened_in_rank_0s_range() -> None:
    (action,) = Visitor().says(messages.Listen())
    assert isinstance(action, actions.OpenTestPort)
    assert (action.base, action.count) == (29_500, 500)


def test_a_visitor_who_falls_silent_is_hung_up_on() -> None:
    visitor = Visitor()
    visitor.says(messages.Hail())
    assert actions.CloseLink(link=LINK) not in visitor.handle(events.Ticked(), 19.0)
    assert actions.CloseLink(link=LINK) in visitor.handle(events.Ticked(), 20.5)
