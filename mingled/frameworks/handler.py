"""torch's `RendezvousHandler` on mingled's rounds: no endpoint, no rank, no rendezvous inside.

Each round has a new TCPStore on rank 0, which is open before the round is sealed: its real port is
in the roster, so that there is no race for a port and nobody knocks too early. The store of the
round before lives until everybody has joined again, hence until all its workers are stopped: a
second round on an old store hangs (torch 2.13).
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import msgspec
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from mingled import client
from mingled.core import local
from mingled.core.config import Config
from mingled.core.words import Form
from mingled.errors import (
    Cancelled,
    Closed,
    DaemonError,
    Indeterminate,
    JoinTimeout,
    Lost,
    MingleError,
)
from mingled.frameworks.agent_store import AgentStore
from mingled.frameworks.environment import agent_environment
from mingled.frameworks.membership import Membership
from mingled.frameworks.parameters import BACKEND, join_of, remarks
from mingled.frameworks.software import software
from mingled.frameworks.store import OPERATION_S, Opening, connect_store
from mingled.wording import clean, released_lines, waiting_line

PAUSE_S = 1.0
"""Before another try where the daemon has died or an outcome could not be known."""

_SECONDS = re.compile(r"for \d+ s")
"""That time goes on is no news."""

_TORCH_ERRORS: tuple[tuple[type[MingleError], type[RendezvousError]], ...] = (
    (JoinTimeout, RendezvousTimeoutError),
    (Closed, RendezvousClosedError),
    (Cancelled, RendezvousClosedError),
    (DaemonError, RendezvousConnectionError),
    (MingleError, RendezvousStateError),
)
"""What each error of ours is to torch; the first that fits. Never GracefulExit, on which torch's
launcher fails (`launch_agent` uses a result that is None)."""


def torch_error(error: MingleError) -> RendezvousError:
    """The same sentence in torch's own type."""
    kind = next(theirs for ours, theirs in _TORCH_ERRORS if isinstance(error, ours))
    return kind(str(error))


class _Signalled(BaseException):
    """SIGTERM while the store is opened: to the client, torch's `SignalException` is an `Exception`
    like those of a store that cannot be opened, which it tells the daemon and goes on."""

    def __init__(self, signal: SignalException) -> None:
        super().__init__(str(signal))
        self.signal = signal


class MingleRendezvousHandler(RendezvousHandler):  # type: ignore[misc]  # torch is not checked
    """Of one agent, for all its rounds."""

    @classmethod
    def of(cls, parameters: RendezvousParameters) -> MingleRendezvousHandler:
        """Raises `ValueError` for parameters that cannot work, as torch does."""
        try:
            join = join_of(parameters)
        except MingleError as error:
            raise ValueError(str(error)) from None
        handler = cls(join)
        for remark in remarks(join, sys.argv, os.environ):
            handler.say(remark)
        return handler

    def __init__(self, join: local.Join) -> None:
        self._join = join
        self._membership: Membership | None = None
        self._opened: Opening | None = None  #: of the attempt under way, should this be rank 0
        self._store: Opening | None = None  #: rank 0's, of the round that runs
        self._closed = False
        self._said = ""

    # ------------------------------------------------------------ what torch asks for

    def get_backend(self) -> str:
        return BACKEND

    def get_run_id(self) -> str:
        return str(self._join.job)

    @property
    def use_agent_store(self) -> bool:
        """Workers are clients of the store that rank 0's agent keeps."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for the next round and take part in it. torch's own error types: Timeout, Closed
        (the run has ended, `mingle leave` or `mingle cancel`), Connection (no daemon can be had),
        State (refused, and why)."""
        if self._closed:
            raise RendezvousClosedError(f"job {self._join.job}: this run was closed here")
        if self._membership is not None:
            self._membership.stop()
            if self._membership.cancelled:  # the workers are stopped by now
                self._closed = True
                raise RendezvousClosedError(self._membership.cancelled)
        before = self._membership
        try:
            lease = self._joined()
        except MingleError as error:
            raise torch_error(error) from None
        except _Signalled as signalled:
            raise signalled.signal from None
        if before is not None:  # not earlier: where a daemon cannot watch us, it would be a loss
            before.lease.connection.close()
        config = lease.config
        for line in released_lines(config, lease.found_s, lease.waited_s):
            self.say(line)
        # The workers of the round before have ended everywhere: their store may go.
        old, self._store = self._store, self._opened if config.rank == 0 else None
        self._opened = None
        if self._store is not None:
            self._store.keep(old)
        del old
        os.environ.update(agent_environment(config, present=os.environ))
        self._membership = Membership(lease, self.say, self._told)
        return RendezvousInfo(
            self._agent_store(config),
            config.rank,
            config.nnodes,
            RendezvousStoreInfo(config.master_addr, config.master_port),
        )

    def num_nodes_waiting(self) -> int:
        """From memory: never blocks, never raises (the agent calls it with no guard)."""
        return 0 if self._membership is None else self._membership.waiting()

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        """End the run for whoever waits for its next round."""
        self._closed = True
        self._leave(reason="closed", closes=True)

    def shutdown(self) -> bool:
        """The agent is done. After success the run is closed, unless somebody never finished: then
        success cannot be said, and this raises `RendezvousStateError`. torch calls it after its
        exit barrier, also on failure, and not when a signal ended it."""
        failure = sys.exc_info()[0]
        if self._membership is None or self._closed:
            return True
        if failure is not None:
            own = failure.__name__ == "ChildFailedError"
            reason = "its workers failed; see its own log" if own else failure.__name__
            self._leave(lost=True, reason=reason)
            return True
        try:
            self._membership.finish()
        except Lost as error:
            self._leave(reason="finished, others not")
            raise RendezvousStateError(str(error)) from None
        self._leave(reason="finished", closes=True)
        self._closed = True
        return True

    # ------------------------------------------------------------ joining

    def _joined(self) -> client.Lease:
        """Until the time is over: what may come right by itself is tried again. An outcome that
        cannot be known is: should that round have been sealed, a new join ends our part in it, and
        the others join again, too."""
        start = time.monotonic()
        while True:
            join, timeout_s = self._join, self._join.timeout_s
            if join.compares:  # anew each time: a script may have been mended between two rounds
                join = msgspec.structs.replace(join, software=software(None, Path()))
            if timeout_s is not None:
                left_s = max(PAUSE_S, timeout_s - (time.monotonic() - start))
                join = msgspec.structs.replace(join, timeout_s=left_s)
            try:
                return client.join(join, self._told, self._open)
            except (DaemonError, Indeterminate) as error:
                if timeout_s is not None and time.monotonic() + PAUSE_S >= start + timeout_s:
                    raise
                self.say(f"{error}; it joins again")
                time.sleep(PAUSE_S)

    def _open(self, address: str) -> int:
        self._opened = None  # of an attempt that is over
        try:
            self._opened = Opening(address, interface_only=self._join.store_interface_only)
            return self._opened.port
        except SignalException as signal:
            raise _Signalled(signal) from None

    def _agent_store(self, config: Config) -> AgentStore:
        assert self._membership is not None
        if self._store is not None:
            return AgentStore(self._membership, self._store.store)
        return AgentStore(
            self._membership,
            lambda: connect_store(config.master_addr, config.master_port, OPERATION_S),
        )

    def _leave(self, *, lost: bool = False, reason: str = "", closes: bool = False) -> None:
        membership = self._membership
        if membership is not None:
            membership.stop()
            membership.lease.leave(lost=lost, reason=reason, closes=closes)

    # ------------------------------------------------------------ what people read

    def say(self, text: str) -> None:
        """A line on stderr. torchrun's own log shows no more than warnings, and who is missing is
        what one wants to see."""
        self._write(f"mingle: job {clean(self._join.job)}: {clean(text)}")

    def _told(self, message: local.Local) -> None:
        match message:
            case local.Progress():
                line = waiting_line(message, Form.LAUNCHER)
                news = _SECONDS.sub("", line)
                if news != self._said:
                    self._said = news
                    self.say(line)
            case local.Notice():
                self._write(f"mingle: {message.kind}: {clean(message.sentence)}")
            case _:
                pass

    @staticmethod
    def _write(line: str) -> None:
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            pass  # a closed stderr (None, where it was closed at the start) is no reason to end
