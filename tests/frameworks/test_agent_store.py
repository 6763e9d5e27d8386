"""The store that torch's agent sees, on a real TCPStore, in torch's own functions."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from mingled.core import local
from mingled.errors import Lost
from mingled.frameworks import agent_store
from mingled.frameworks.agent_store import TERMINAL, AgentStore
from mingled.frameworks.store import connect_store, open_store
from tests.cli.fake_daemon import JOB, FakeDaemon, gone

from .rounds import Round, once_finished, request

pytestmark = pytest.mark.torch

HOME = "127.0.0.1"


@pytest.fixture
def server() -> Any:
    pytest.importorskip("torch")
    return open_store(HOME)


def assigned(store: AgentStore, rank: int, nproc: int) -> list[tuple[int, int]]:
    """Rank and world size of this node's workers, by torch's own exchange."""
    from torch.distributed.elastic.agent.server.api import SimpleElasticAgent

    spec = SimpleNamespace(role="default", local_world_size=nproc)
    workers = SimpleElasticAgent._assign_worker_ranks(None, store, rank, 3, spec)
    return [(w.global_rank, w.world_size) for w in workers]


def barrier(store: AgentStore) -> None:
    """torch's exit barrier."""
    from torch.distributed.elastic.utils import store as store_util

    store_util.barrier(store=store, world_size=3, key_prefix=TERMINAL, barrier_timeout=300)


def client_of(server: Any) -> Callable[[], Any]:
    return lambda: connect_store(HOME, server.port, 60)


# ---------------------------------------------------------------- the exchange of ranks


def test_ranks_with_uneven_processes(daemon: FakeDaemon, server: Any) -> None:
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        rounds = [stack.enter_context(Round(daemon, rank=n)) for n in range(3)]
        ways = [lambda: server, client_of(server), client_of(server)]
        stores = [AgentStore(r.membership, w) for r, w in zip(rounds, ways, strict=True)]
        found = [*threads.map(assigned, stores, range(3), (2, 1, 3))]
    assert found == [[(0, 6), (1, 6)], [(2, 6)], [(3, 6), (4, 6), (5, 6)]]


@pytest.mark.parametrize(("rank", "of"), [(1, 0), (0, 2)])
def test_somebody_is_lost_meanwhile(daemon: FakeDaemon, server: Any, rank: int, of: int) -> None:
    """The agent gets ranks that last until it asks who waits."""
    with Round(daemon, rank=rank) as round_:
        round_.served.say(gone(rank=of))
        way = client_of(server) if rank else lambda: server
        found = assigned(AgentStore(round_.membership, way), rank, 2)
        assert found == [(2 * rank, 6), (2 * rank + 1, 6)]
        assert round_.membership.waiting() == 1


def test_a_store_that_cannot_be_reached_waits_for_the_news(daemon: FakeDaemon) -> None:
    with Round(daemon) as round_:

        def connect() -> Any:
            round_.served.say(gone(rank=0))
            raise ConnectionError("rank 0's store is gone")

        assert assigned(AgentStore(round_.membership, connect), 1, 1) == [(1, 3)]


def test_an_error_without_a_loss_is_torchs_own(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_store, "TOLD_S", 0.1)

    def connect() -> Any:
        raise ConnectionError("rank 0's store is gone")

    with Round(daemon) as round_, pytest.raises(ConnectionError, match="rank 0's store is gone"):
        assigned(AgentStore(round_.membership, connect), 1, 1)


def test_an_answer_that_never_comes(daemon: FakeDaemon, server: Any) -> None:
    from datetime import timedelta

    with Round(daemon) as round_:
        store = AgentStore(round_.membership, client_of(server))
        store.set("here", "")
        store.set_timeout(timedelta(seconds=0.1))
        with pytest.raises(TimeoutError, match=rf"job {JOB}: rank 0's store gave no answer in 0.1"):
            store.get("never")
        server.set("never", "now")  # so that the call's thread ends


# ---------------------------------------------------------------- the exit barrier


def test_the_exit_barrier_waits_for_the_others_and_needs_no_store(daemon: FakeDaemon) -> None:
    def connect() -> Any:
        raise AssertionError("the barrier went to the store")

    with Round(daemon) as round_:
        playing = once_finished(round_.served, gone("finished", rank=0), gone("finished"))
        barrier(AgentStore(round_.membership, connect))
        playing.join()


def test_the_exit_barrier_of_the_last_ends_at_once(daemon: FakeDaemon, server: Any) -> None:
    with Round(daemon, rank=0) as round_:
        round_.hear(gone("finished", rank=1), gone("finished"))
        barrier(AgentStore(round_.membership, lambda: server))
        request(round_.served, local.Finished)


def test_the_exit_barrier_says_who_never_finished(daemon: FakeDaemon, server: Any) -> None:
    with Round(daemon) as round_:
        playing = once_finished(round_.served, gone("finished"), gone(rank=0))
        with pytest.raises(Lost, match=r"but gpu1 \(10.0.0.1, node rank 0\) lost 4 s ago"):
            barrier(AgentStore(round_.membership, lambda: server))
        playing.join()
