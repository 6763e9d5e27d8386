"""One user's share of a daemon that serves all of them."""

from __future__ import annotations

import msgspec
import pytest

from mingled.core import actions, events, local
from mingled.core.rendezvous import Rendezvous
from mingled.core.settings import Settings
from mingled.core.words import Form, JobId, NodeId, ParticipantId
from tests.core.samples import CONFIG

SETTINGS = Settings(jobs_max=6, jobs_per_user_max=2, seats_per_user_max=3)


class Node:
    """A core, and users whose processes join on it."""

    def __init__(self) -> None:
        self.core = Rendezvous(
            seed=b"0" * 32,
            node=NodeId("1" * 32),
            host="gpu1",
            link_port=1,
            ring_port=2,
            addresses=(),
            settings=SETTINGS,
        )
        self._pids = 0

    def join(self, job: str, uid: int, pid: int | None = None) -> str | None:
        """Why it was refused."""
        event = events.JoinAsked(
            participant=self._participant(), join=_join(job), holder=self._holder(uid, pid)
        )
        done = self.core.handle(event, 0.0)
        for action in done:
            if not isinstance(action, actions.Tell) or action.participant != event.participant:
                continue  # whom it replaced is told, too
            if isinstance(action.message, local.Failed):
                assert action.message.code == "refused"
                assert actions.Release(participant=event.participant) in done
                return action.message.sentence
        return None

    def reattach(self, job: str, uid: int) -> str | None:
        config = msgspec.structs.replace(CONFIG, job=job, form=Form.PROCESS)
        event = events.ReattachAsked(
            request=1,
            participant=self._participant(),
            join=_join(job),
            config=config,
            holder=self._holder(uid, None),
        )
        for action in self.core.handle(event, 0.0):
            if isinstance(action, actions.Answer) and isinstance(action.message, local.Failed):
                return action.message.sentence
        return None

    def _participant(self) -> ParticipantId:
        self._pids += 1
        return ParticipantId(f"{self._pids:032x}")

    def _holder(self, uid: int, pid: int | None) -> events.Holder:
        pid = pid or 100 + self._pids
        return events.Holder(pid=pid, identity=str(pid), uid=uid, user=f"user{uid}", watched=True)


def _join(job: str) -> local.Join:
    return local.Join(job=JobId(job), form=Form.PROCESS, size_min=9, size_max=9)


@pytest.fixture
def node() -> Node:
    return Node()


def test_one_users_jobs(node: Node) -> None:
    assert [node.join(job, uid=1) for job in ("a", "b")] == [None, None]
    sentence = (
        "job c: user1 has 2 jobs on gpu1 already, as many as one user may have; leave some first "
        "(mingle status, mingle leave JOB)"
    )
    assert node.join("c", uid=1) == sentence
    assert node.reattach("c", uid=1) == sentence
    assert set(node.core.jobs) == {"a", "b"}
    assert node.join("a", uid=1) is None
    assert node.join("c", uid=2) is None


def test_one_users_participants(node: Node) -> None:
    assert [node.join("a", uid=1, pid=pid) for pid in (1, 2)] == [None, None]
    assert node.join("b", uid=1, pid=3) is None
    sentence = (
        "job a: user1 has 3 participants on gpu1 already, as many as one user may have; leave some "
        "first (mingle status, mingle leave JOB)"
    )
    assert node.join("a", uid=1, pid=4) == sentence
    assert node.reattach("a", uid=1) == sentence
    assert node.join("a", uid=1, pid=2) is None, "it takes its own place"
    assert node.join("c", uid=2) is None


def test_root_has_what_there_is(node: Node) -> None:
    assert [node.join(f"job{n}", uid=0) for n in range(6)] == [None] * 6
    assert node.join("more", uid=0) == "job more: 6 jobs on gpu1 already; leave some first"
    assert node.reattach("more", uid=0) == "job more: 6 jobs on gpu1 already; leave some first"
    assert node.join("job1", uid=0) is None


def test_the_last_place_is_no_ones_share(node: Node) -> None:
    """With these settings two users leave room for a third."""
    for uid in (1, 2):
        assert [node.join(f"{uid}{n}", uid=uid) for n in (1, 2)] == [None, None]
        assert node.join(f"{uid}3", uid=uid) is not None
    assert node.join("mine", uid=3) is None
