"""torch's handler, round after round. The test plays the daemon; torch is real."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest

from mingled.core import local
from mingled.core.words import Nonce
from tests.cli.fake_daemon import JOB, FakeDaemon, Served, gone, ready
from tests.cli.running import PATIENCE_S

pytestmark = pytest.mark.torch

PROOF = Nonce("d" * 32)
HOME = "127.0.0.1"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """A round changes the environment of this very process."""
    pytest.importorskip("torch")
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def play() -> Iterator[Callable[..., Future[Any]]]:
    """Runs the daemon's part beside the handler's."""
    with ThreadPoolExecutor() as threads:
        yield threads.submit


@pytest.fixture
def handler(daemon: FakeDaemon) -> Iterator[Any]:
    made = handler_of()
    yield made
    if made._membership is not None:
        made._membership.stop()
        made._membership.lease.connection.close()


def handler_of(**conf: str) -> Any:
    from torch.distributed.elastic.rendezvous.api import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    return get_rendezvous_handler(RendezvousParameters("mingle", "", JOB, 3, 3, **conf))


def error(name: str) -> type[Exception]:
    from torch.distributed.elastic.rendezvous import api

    kind: type[Exception] = getattr(api, f"Rendezvous{name}Error")
    return kind


def lead(daemon: FakeDaemon, round_: int = 1) -> tuple[Served, int]:
    """The next client is rank 0, and opens the store; its port."""
    served = daemon.accept()
    served.request(local.Join)
    served.say(local.OpenStore(proof=PROOF, address=HOME))
    opened = served.request(local.StoreOpened)
    served.say(ready(round_, rank=0, master_addr=HOME, master_port=opened.port))
    return served, opened.port


def until_waiting(handler: Any) -> None:
    handler._membership.until(lambda: handler.num_nodes_waiting() > 0, PATIENCE_S)
    assert handler.num_nodes_waiting() == 1


# ---------------------------------------------------------------- rounds


def test_a_follower(daemon: FakeDaemon, play: Any, handler: Any) -> None:
    playing = play(daemon.join, ready())
    info = handler.next_rendezvous()
    _, join = playing.result()
    assert (join.job, join.size_min, join.size_max, join.store) == (JOB, 3, 3, True)
    assert (info.rank, info.world_size) == (1, 3)
    place = info.bootstrap_store_info
    assert (place.master_addr, place.master_port) == ("10.0.0.1", 29501)
    assert handler.use_agent_store
    assert (os.environ["MINGLE_ROUND"], os.environ["MINGLE_ADDRESS"]) == ("1", "10.0.0.2")
    assert "PET_NNODES" not in os.environ


def test_every_round_has_a_new_store(daemon: FakeDaemon, play: Any, handler: Any) -> None:
    from mingled.frameworks.store import connect_store

    ports = []
    for round_ in (1, 2, 3):
        playing = play(lead, daemon, round_)
        info = handler.next_rendezvous()
        served, port = playing.result()
        assert (info.rank, info.bootstrap_store_info.master_port) == (0, port)
        info.store.set("round", str(round_))
        assert connect_store(HOME, port, 60).get("round") == str(round_).encode()
        served.say(gone())
        until_waiting(handler)
        ports.append(port)
    assert len(set(ports)) == 3


def test_the_store_may_listen_on_one_address_alone(daemon: FakeDaemon, play: Any) -> None:
    handler = handler_of(store_interface_only="true")
    playing = play(lead, daemon)
    info = handler.next_rendezvous()
    served, port = playing.result()
    info.store.set("key", "value")
    socket.create_connection((HOME, port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))
    handler._membership.stop()
    served.close()
    handler._membership.lease.connection.close()


def test_twenty_rounds_leave_nothing(daemon: FakeDaemon, play: Any, handler: Any) -> None:
    def once(round_: int) -> tuple[int, int]:
        playing = play(lead, daemon, round_)
        info = handler.next_rendezvous()
        served, _ = playing.result()
        info.store.set("round", str(round_))
        del info
        kept.append(served)
        for older in kept[:-1]:
            older.close()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    kept: list[Served] = []
    once(1)
    settled = once(2)
    found = [once(n) for n in range(3, 21)]
    # The round before keeps its store until the next is there: no more than that adds up.
    assert found[-1][0] <= settled[0] + 2, found
    assert found[-1][1] <= settled[1] + 1, found


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("timeout", "Timeout"),
        ("closed", "Closed"),
        ("cancelled", "Closed"),
        ("refused", "State"),
        ("conflict", "State"),
        ("version", "State"),
        ("not-permitted", "State"),
        ("of-a-newer-version", "State"),
    ],
)
def test_errors_are_torchs_own_with_our_sentence(
    daemon: FakeDaemon, play: Any, handler: Any, code: str, kind: str
) -> None:
    playing = play(daemon.join, local.Failed(code=code, sentence=f"job {JOB}: because"))
    with pytest.raises(error(kind), match=f"job {JOB}: because") as raised:
        handler.next_rendezvous()
    playing.result()
    assert type(raised.value) is error(kind)
    assert handler.num_nodes_waiting() == 0


def test_no_daemon_at_all(daemon: FakeDaemon) -> None:
    daemon.end()
    with pytest.raises(error("Connection"), match="there is no such socket"):
        handler_of(join_timeout="0").next_rendezvous()


def test_an_outcome_that_cannot_be_known_is_tried_again(
    daemon: FakeDaemon, play: Any, handler: Any
) -> None:
    def twice() -> None:
        daemon.join(local.Failed(code="indeterminate", sentence=f"job {JOB}: nobody knows"))
        daemon.join(ready())

    playing = play(twice)
    assert handler.next_rendezvous().rank == 1
    playing.result()


def test_a_signal_while_the_store_is_opened_is_not_lost(
    daemon: FakeDaemon, play: Any, handler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's SIGTERM is an `Exception`, and so is what keeps a store from being opened."""
    import signal

    from torch.distributed.elastic.multiprocessing.api import SignalException

    from mingled.frameworks import handler as module

    def interrupted(address: str, **_: bool) -> Any:
        raise SignalException("Process 7 got signal: 15", sigval=signal.SIGTERM)

    def ask() -> None:
        served = daemon.accept()
        served.request(local.Join)
        served.say(local.OpenStore(proof=PROOF, address=HOME))
        served.until_closed()

    monkeypatch.setattr(module, "Opening", interrupted)
    playing = play(ask)
    with pytest.raises(SignalException) as raised:
        handler.next_rendezvous()
    playing.result()
    assert raised.value.sigval == signal.SIGTERM


def test_without_stderr_it_works(
    daemon: FakeDaemon, play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as Python has it where descriptor 2 is closed
    made = handler_of()
    playing = play(daemon.join, ready())
    made.next_rendezvous()
    served, _ = playing.result()
    served.say(gone())
    until_waiting(made)
    playing = play(daemon.leave)
    made.set_closed()
    playing.result()


# ---------------------------------------------------------------- the end


def joined(daemon: FakeDaemon, play: Any, handler: Any) -> Served:
    playing = play(daemon.join, ready())
    handler.next_rendezvous()
    served, _ = playing.result()
    assert isinstance(served, Served)
    return served


def fail(handler: Any) -> None:
    """Shuts it down as the launcher does while an exception goes through."""
    try:
        raise ArithmeticError
    except ArithmeticError:
        assert handler.shutdown()


def test_success_closes_the_run(daemon: FakeDaemon, play: Any, handler: Any) -> None:
    served = joined(daemon, play, handler)
    served.say(gone("finished", rank=0), gone("left"))
    playing = play(daemon.leave)
    assert handler.shutdown()
    leave = playing.result()
    assert (leave.lost, leave.closes, leave.reason) == (False, True, "finished")
    assert handler.is_closed()
    assert handler.shutdown(), "a second time nothing is done"
    with pytest.raises(error("Closed"), match=f"job {JOB}: this run was closed here"):
        handler.next_rendezvous()


def test_a_cancelled_job_has_no_next_round(daemon: FakeDaemon, play: Any, handler: Any) -> None:
    served = joined(daemon, play, handler)
    sentence = f"job {JOB}: cancelled on gpu2 while it ran by ann on gpu1"
    served.say(local.Failed(code="cancelled", sentence=sentence, stop=True))
    while not handler.num_nodes_waiting():  # as the agent looks, before it stops its workers
        pass
    with pytest.raises(error("Closed"), match=sentence):
        handler.next_rendezvous()
    assert handler.shutdown(), "nothing is left to be told"


def test_a_failure_is_a_loss_to_the_others(daemon: FakeDaemon, play: Any, handler: Any) -> None:
    joined(daemon, play, handler)
    playing = play(daemon.leave)
    fail(handler)
    leave = playing.result()
    assert (leave.lost, leave.closes, leave.reason) == (True, False, "ArithmeticError")


def test_what_was_never_finished_is_no_success(daemon: FakeDaemon, play: Any, handler: Any) -> None:
    served = joined(daemon, play, handler)
    served.say(gone("finished"), gone(rank=0))
    playing = play(daemon.leave)
    with pytest.raises(error("State"), match=r"gpu1 \(10.0.0.1, node rank 0\) lost .* run the job"):
        handler.shutdown()
    leave = playing.result()
    assert (leave.lost, leave.closes) == (False, False)


def test_a_failed_rendezvous_after_a_round_leaves_other_descriptors_alone(
    daemon: FakeDaemon, play: Any, handler: Any
) -> None:
    joined(daemon, play, handler)
    playing = play(daemon.join, local.Failed(code="timeout", sentence=f"job {JOB}: too late"))
    with pytest.raises(error("Timeout")):
        handler.next_rendezvous()
    playing.result()
    others = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(8)]  # one has an old number
    playing = play(daemon.leave)
    fail(handler)
    playing.result()
    for other in others:
        with pytest.raises(BlockingIOError):
            os.eventfd_read(other)
        os.close(other)


def test_closed_by_hand(daemon: FakeDaemon, play: Any, handler: Any) -> None:
    joined(daemon, play, handler)
    playing = play(daemon.leave)
    handler.set_closed()
    assert playing.result().closes
    assert handler.is_closed()


def test_before_its_first_round_there_is_nothing_to_end(handler: Any) -> None:
    assert handler.shutdown()
    handler.set_closed()
    assert handler.is_closed()
