"""Who is let in: cluster keys, a job's own secret, and what a link may speak of."""

from __future__ import annotations

import msgspec
import pytest

from mingled.core import actions, events, messages
from mingled.core.events import Address
from mingled.core.messages import Advert
from mingled.core.secrets import key_id_of, label_of, node_realms_of, realm_of, secret_of
from mingled.core.words import JobId, Nonce, Standing
from mingled.errors import BadInput
from tests.core.samples import CARD, ENTRY
from tests.core.stage import JOB, Stage, failed, noticed, ready

OLD, NEW = b"o" * 32, b"n" * 32


def keyed(hosts: int, *keys: bytes) -> Stage:
    stage = Stage(hosts)
    for host in range(hosts):
        stage.world.rekey(host, keys)
    return stage


def test_the_same_key_meets() -> None:
    stage = keyed(2, OLD)
    one, two = stage.join(1), stage.join(2)
    stage.wait()
    assert ready(one).claim == ready(two).claim
    assert {a.key_id for a in stage.world.past_adverts} == {key_id_of(OLD)}


@pytest.mark.parametrize("others", [(NEW,), ()], ids=["another key", "no key"])
def test_fault_42_another_key_does_not_and_a_vain_wait_says_so(others: tuple[bytes, ...]) -> None:
    stage = keyed(2, OLD)
    stage.world.rekey(1, others)
    one = stage.join(1, rank=0, timeout_s=12.0)
    two = stage.join(2, rank=1, timeout_s=12.0)
    stage.wait(15.0)
    failed(one, "timeout")
    theirs = f"10.0.0.1 has key {key_id_of(OLD)}"
    assert f"Another cluster key is in use on this network, as adverts say: {theirs}" in failed(
        two, "timeout"
    )
    mine = f"gpu2 has key {key_id_of(NEW)}" if others else "gpu2 has no key"
    assert mine in failed(two, "timeout")
    assert any(theirs in sentence for sentence in noticed(two))


def test_keys_change_under_a_job_that_waits_and_one_that_runs() -> None:
    """Install, use, remove: on each machine in its own time."""
    stage = keyed(3, OLD)
    running = stage.join(1), stage.join(2)
    stage.wait()
    leader = stage.join(3, rank=0, job=JobId("later"))
    stage.wait()
    for keys in ((OLD, NEW), (NEW, OLD), (NEW,)):
        for host in range(3):
            stage.world.rekey(host, keys)
            stage.wait(1.0)
    late = stage.join(1, rank=1, job=JobId("later"))
    stage.wait()
    assert ready(leader).claim == ready(late).claim
    assert ready(running[0]).claim == ready(running[1]).claim
    assert stage.world.daemons[0].realms.keys() >= {label_of(JobId("later"), NEW)}
    for client in (*running, leader, late):
        stage.world.leave(client)
    stage.wait(60.0)
    assert set(stage.world.daemons[0].realms) == {node_realms_of([NEW])[0].label}
    assert not stage.world.daemons[2].adverts


def test_a_secret_of_the_job_itself() -> None:
    secret = secret_of(b"correct horse battery")
    stage = Stage(3)
    one, two = stage.join(1, secret=secret, timeout_s=5.0), stage.join(2, secret=secret)
    stranger = stage.join(3, rank=1, timeout_s=2.0)
    stage.wait(10.0)
    assert ready(one).claim == ready(two).claim
    failed(stranger, "timeout")
    beside = stage.join(1)
    stage.wait()
    assert "brings no secret, and the job here has one" in failed(beside, "refused")
    with pytest.raises(BadInput, match="64 hexadecimal digits"):
        stage.join(1, secret="guess").join.__post_init__()


def test_a_key_that_somebody_names_must_be_the_daemons() -> None:
    stage = keyed(1, OLD)
    wrong = stage.join(1, size=1, key_id=key_id_of(NEW))
    right = stage.join(1, size=1, key_id=key_id_of(OLD))
    stage.wait()
    said = failed(wrong, "refused")
    assert f"presents key {key_id_of(OLD)}, your key file has key {key_id_of(NEW)}" in said
    ready(right)


def test_a_link_speaks_of_the_job_that_it_has_shown_to_be_in() -> None:
    stage = Stage(1)
    stage.join(1, rank=0, size=2)
    stage.join(1, rank=0, size=2, job=JobId("other"))
    stage.wait(1.0)
    core, claim = stage.core(1), stage.core(1).jobs[JOB].claim
    assert claim is not None
    join = messages.Join(
        label=claim.job.label, claim=claim.nonce, job=JOB, node=CARD, entries=(ENTRY,)
    )
    here = Address(address="10.0.0.1", interface="eth0")
    (node,) = node_realms_of()
    now = stage.world.clock.now + stage.world.daemons[0].boot
    for link, label in ((1000, realm_of(JobId("other")).label), (1002, node.label)):
        accepted = events.LinkAccepted(
            link=link, local=here, remote_address="10.0.0.9", label=label
        )
        core.handle(accepted, now)
        done = core.handle(events.FrameReceived(link=link, message=join), now)
        assert done == [actions.CloseLink(link=link)]
    assert not claim.sessions
    # ... and nobody asks about the machine who is only in a job.
    label = claim.job.label
    core.handle(
        events.LinkAccepted(link=1004, local=here, remote_address="10.0.0.9", label=label), now
    )
    asked = core.handle(events.FrameReceived(link=1004, message=messages.Hail()), now)
    assert asked == [actions.CloseLink(link=1004)]


def test_fault_34_a_leader_is_looked_for_where_it_says_that_it_is() -> None:
    """Somebody passes on every byte of the link, at an address that an advert names."""
    stage = Stage(2)
    follower = stage.join(2, rank=1)
    stage.join(1, rank=0)
    stage.wait_for(2, stage.state(2).FOLLOWING)
    core, now = stage.core(2), stage.world.clock.now + stage.world.daemons[1].boot
    pursuit = core.jobs[JOB].pursuit
    assert pursuit is not None
    card = msgspec.structs.replace(CARD, addresses=("10.0.0.77",))
    welcome = messages.Welcome(
        claim=pursuit.claim,
        node=card,
        seen_address="10.0.0.2",
        met_address="10.0.0.77",
        standing=Standing.EXPLICIT,
    )
    done = core.handle(events.FrameReceived(link=pursuit.link, message=welcome), now)
    assert actions.CloseLink(link=pursuit.link) in done
    (opened,) = [a for a in done if isinstance(a, actions.OpenLink)]
    assert opened.addresses == ("10.0.0.77",)
    assert "10.0.0.1 led to gpu1, which was met at another one" in core.jobs[JOB].note_text
    assert follower.waits


def test_a_rival_of_another_job_is_none() -> None:
    """A daemon in two jobs; whoever knows one of them answers for the other."""
    stage = Stage(1)
    stage.join(1, rank=0)
    stage.join(1, rank=0, job=JobId("other"))
    stage.wait(1.0)
    core, claim = stage.core(1), stage.core(1).jobs[JOB].claim
    assert claim is not None
    now = stage.world.clock.now + stage.world.daemons[0].boot
    rival = Advert(
        version=1,
        key_id="none",
        label=claim.job.label,
        claim=Nonce("0" * 32),
        port=29_400,
        addresses=("10.0.0.9",),
    )
    done = core.handle(events.AdvertHeard(advert=rival, rung="mdns"), now)
    done += core.handle(events.Ticked(), now)
    (opened,) = [a for a in done if isinstance(a, actions.OpenLink)]
    here = Address(address="10.0.0.1", interface="eth0")
    core.handle(events.LinkOpened(link=opened.link, local=here, remote_address="10.0.0.9"), now)
    answer = messages.Contest(
        label=label_of(JobId("other")),
        claim=rival.claim,
        rival=claim.nonce,
        job=JobId("other"),
        node=CARD,
        user="ann",
        standing=Standing.EXPLICIT,
        sealed=True,
    )
    core.handle(events.FrameReceived(link=opened.link, message=answer), now)
    assert core.jobs[JOB].claim is claim
    core.handle(events.Ticked(), now + 30)
    assert core.jobs[JobId("other")].claim is not None
