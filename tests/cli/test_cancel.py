"""`mingle cancel`: jobs of this very process, and daemons made up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import mingled
from mingled.core import local
from mingled.core.codec import Decoder
from mingled.core.messages import NodeCancelled

from .fake_daemon import FakeDaemon
from .running import JOB as ID
from .saying import Say

ENDED = NodeCancelled(host="gpu1", address="10.0.0.1", ended=2)
DEAF = NodeCancelled(host="gpu2", address="10.0.0.2", ended=1, unheard=(4711,))
KEPT = NodeCancelled(host="gpu3", address="10.0.0.3", kept=1)
UNSURE = NodeCancelled(host="gpu4", address="10.0.0.4", flaw="no answer within 6 s")


@pytest.fixture
def answer(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[local.Local]]:
    """What the one daemon answers: set its only item. It holds the request afterwards."""
    monkeypatch.setenv("MINGLE_SOCKET", str(daemon.path))
    said: list[local.Local] = []

    def serve() -> None:
        with daemon.accept() as served:
            reply = said.pop()
            said.append(served.request(local.Cancel))
            served.say(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    yield said
    thread.join()


def test_a_job_of_ours(runtime: Path, say: Say) -> None:
    """A script that joined by itself is not told: it is named."""
    with mingled.join(ID, world_size=1):
        said = say(f"cancel {ID} --json")
        decoder: Decoder[list[NodeCancelled]] = Decoder(list[NodeCancelled], "cancel")
        (node,) = decoder.decode(said.out.encode())
        assert (said.code, node.ended, len(node.unheard)) == (0, 1, 1)
        again = say(f"cancel {ID}")
        assert again.code == 1
        assert f"job {ID}: nobody takes part in it here; see `mingle status`" in again.err


def test_no_daemon(runtime: Path, say: Say) -> None:
    assert say("cancel bert").code == 1


def test_everybody_has_confirmed(answer: list[local.Local], say: Say) -> None:
    answer.append(local.Cancelled(job="bert", nodes=(ENDED, DEAF)))
    said = say("cancel bert --reason NaN")
    assert answer == [local.Cancel(job="bert", reason="NaN")]  # type: ignore[arg-type]
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "gpu1 (10.0.0.1): 2 ended",
        "gpu2 (10.0.0.2): 1 ended; of these, end yourself what runs in pid 4711: it hears nothing "
        "of this",
    ]


@pytest.mark.parametrize(
    ("nodes", "code", "out", "err"),
    [
        (
            (ENDED, UNSURE),
            86,
            "gpu4 (10.0.0.4): not confirmed: no answer",
            "on gpu4 (10.0.0.4); run",
        ),
        ((ENDED, KEPT), 85, "gpu3 (10.0.0.3): 0 ended; 1 of another user go on", "go on, on gpu3;"),
        ((KEPT, UNSURE), 86, "not confirmed", "not known to have ended"),
    ],
)
def test_not_everything_has_ended(
    answer: list[local.Local],
    say: Say,
    nodes: tuple[NodeCancelled, ...],
    code: int,
    out: str,
    err: str,
) -> None:
    answer.append(local.Cancelled(job="bert", nodes=nodes))
    said = say("cancel bert")
    assert said.code == code
    assert out in said.out
    assert err in said.err


def test_it_is_elsewhere(answer: list[local.Local], say: Say) -> None:
    answer.append(local.Cancelled(job="bert", nodes=(), elsewhere=("10.0.0.3",)))
    said = say("cancel bert")
    assert (said.code, said.out) == (1, "")
    assert "it is led at 10.0.0.3: run mingle cancel there" in said.err


def test_it_is_somebody_elses(answer: list[local.Local], say: Say) -> None:
    sentence = "job bert on gpu1 belongs to ann, you are bob"
    answer.append(local.Failed(code="not-permitted", sentence=sentence))
    said = say("cancel bert")
    assert (said.code, sentence in said.err) == (85, True)


def test_a_daemon_that_ends_instead_of_answering(
    daemon: FakeDaemon, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINGLE_SOCKET", str(daemon.path))

    def serve() -> None:
        with daemon.accept() as served:
            served.request(local.Cancel)

    thread = threading.Thread(target=serve)
    thread.start()
    said = say("cancel bert")
    thread.join()
    assert (said.code, said.out) == (86, "")
    assert "job bert: not known to have ended: the daemon at" in said.err
