"""A member of a round of three whose daemon the test plays."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from mingled import client
from mingled.core import local
from mingled.core.words import Form, JobId
from mingled.frameworks.membership import Membership
from tests.cli.fake_daemon import JOB, FakeDaemon, Served, gone, ready
from tests.cli.running import PATIENCE_S

M = TypeVar("M", bound=local.Local)


class Round:
    """A context: the membership has been stopped after the block."""

    def __init__(
        self,
        daemon: FakeDaemon,
        *,
        rank: int = 1,
        size_max: int = 3,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.said: queue.Queue[str] = queue.Queue()
        self.told: queue.Queue[local.Local] = queue.Queue()
        connection = client.connect(daemon.path)
        self.served = daemon.accept()
        join = local.Join(job=JobId(JOB), form=Form.LAUNCHER, size_min=2, size_max=size_max)
        self.lease = client.Lease(connection, join, ready(rank=rank))
        self.membership = Membership(self.lease, say or self.said.put, self.told.put)

    def __enter__(self) -> Round:
        return self

    def __exit__(self, *_: object) -> None:
        self.membership.stop()
        self.lease.connection.close()

    def until(self, happened: Callable[[], bool]) -> None:
        """... or until the round is broken."""
        self.membership.until(happened, PATIENCE_S)
        assert happened()

    def until_said(self, words: str) -> str:
        """The next line for a person."""
        line = self.said.get(timeout=PATIENCE_S)
        assert words in line, line
        return line

    def hear(self, *news: local.Local) -> None:
        """All of it has been heard when this returns, and lines were said of it."""
        nobody = msgspec.structs.replace(gone("unwatched"), rank=9)
        back = msgspec.structs.replace(nobody, how="running")
        self.served.say(*news, nobody, back)
        while "node rank 9) is watched again" not in self.said.get(timeout=PATIENCE_S):
            pass

    def waits(self, count: int) -> local.Waiting:
        return local.Waiting(job=JOB, round=1, count=count)


def request(served: Served, kind: type[M]) -> M:
    """The next but signs of life."""
    while True:
        message: Any = served.request(local.Local)
        if isinstance(message, kind):
            return message
        assert isinstance(message, local.Alive), message


def once_finished(served: Served, *news: local.Local) -> threading.Thread:
    """Says this as soon as the client says that it has finished."""

    def play() -> None:
        request(served, local.Finished)
        served.say(*news)

    thread = threading.Thread(target=play)
    thread.start()
    return thread
