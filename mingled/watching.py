"""The news of a round while it runs, and a new daemon to bring it when the old one has ended.

Training does not need the daemon: its end stops nothing. But from then on nobody watches this
participant, and it hears nothing of the others, until a daemon here takes it back (`Reattach`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import msgspec

from mingled import client
from mingled.core import local
from mingled.core.codec import encode
from mingled.errors import DaemonError, MingleError

PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 5.0
"""Between tries to find a daemon: doubled from the first to the last."""

CONNECT_S = 0.2
"""For one try: meanwhile nobody forwards signals."""

News = local.Gone | local.Waiting


class Watch:
    """Of one lease. Never waits: `news` takes what is there, `due` says when to ask again at the
    latest (on the clock of `time.monotonic`)."""

    def __init__(
        self,
        lease: client.Lease,
        *,
        line: Callable[[str], None],
        told: client.Told,
        announce: Callable[[client.Connection], None] = lambda connection: None,
    ) -> None:
        """`line` takes what a person is to know of the daemon, without the job's name; `told` what
        the daemon itself says to people; `announce` each connection that news comes over."""
        self._lease = lease
        self._line = line
        self._told = told
        self._announce = announce
        self._connection: client.Connection | None = lease.connection
        self._asked = False  #: Reattach was sent and is not answered
        self._private_only = False
        self._pause_s = PAUSE_FIRST_S
        self.due: float | None = None  #: of the next try, or of the answer to the last
        self.attachments = 0  #: how often another daemon has taken the participant back
        self.gave_up = False  #: it is unwatched for good: `mingle leave`, or refused
        self.cancelled = ""  #: why what runs here is to end: `mingle cancel`
        announce(lease.connection)

    @property
    def source(self) -> client.Connection | None:
        """What becomes readable when there may be news; None while there is no daemon."""
        return self._connection

    def news(self) -> list[News]:
        """What has become of members, and how many wait, since the last call."""
        if self.due is not None and time.monotonic() >= self.due:
            self._drop()
            self._try()
        found: list[News] = []
        while self._connection is not None:
            try:
                message = self._connection.pending()
            except DaemonError:
                self._ended()
                break
            match message:
                case None:
                    break
                case local.Gone() | local.Waiting():
                    found.append(message)
                case local.Done() if self._asked:
                    self._reattached()
                case local.Failed():
                    self._failed(message)
                case _:
                    self._told(message)
        return found

    def send(self, message: local.Local) -> None:
        """Say something that is not answered, if a daemon listens; its end is noticed by `news`."""
        if self._connection is None or self._asked:
            return
        try:
            self._connection.send(message)
        except DaemonError:
            self._ended()

    def close(self) -> None:
        """No more news is wanted: what was begun with a new daemon is left. The lease keeps its
        own."""
        if self._asked:
            self._drop()

    def _ended(self) -> None:
        """The daemon has hung up."""
        if not self._asked:
            self._line("the daemon ended; training goes on unwatched until one is back")
        self._later()

    def _later(self) -> None:
        self._drop()
        self.due = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)

    def _drop(self) -> None:
        """Nobody to listen to and nobody to ask, for now."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._asked, self.due = None, False, None

    def _try(self) -> None:
        try:
            connection = client.find(
                self._lease.join.job, private_only=self._private_only, patience_s=CONNECT_S
            )
            self._connection, self._asked = connection, True
            self._announce(connection)
            connection.send(reattach(self._lease))
            self.due = time.monotonic() + client.REPLY_S
        except DaemonError:
            self._later()
        except MingleError as error:
            self._give_up(str(error))

    def _reattached(self) -> None:
        assert self._connection is not None
        self._lease.connection = self._connection
        self._asked, self.due, self._pause_s = False, None, PAUSE_FIRST_S
        self.attachments += 1
        self._line("a daemon is back: training is watched again")

    def _failed(self, message: local.Failed) -> None:
        """It does not take us back, or it has ended the lease: `mingle leave`, a newer join."""
        if message.stop:
            self._drop()
            self.gave_up, self.cancelled = True, message.sentence
            return
        private_is_next = not self._private_only and "MINGLE_SOCKET" not in os.environ
        if self._asked and message.code == DaemonError.code:
            self._later()
        elif self._asked and message.code == local.OTHER_NAMESPACE and private_is_next:
            self._drop()
            self._private_only = True
            self._try()
        else:
            self._give_up(message.sentence)

    def _give_up(self, sentence: str) -> None:
        self._drop()
        self.gave_up = True
        self._told(local.Notice(kind="warning", sentence=f"{sentence}; unwatched from now"))


def reattach(lease: client.Lease) -> local.Reattach:
    """The request of a released participant whose daemon is gone. Of a roster too long for a line
    only this participant and rank 0 remain."""
    config = lease.config
    join = msgspec.structs.replace(lease.join, lost="")  # that run's end is told already
    request = local.Reattach(join=join, participant=lease.participant, config=config)
    if len(encode(request)) <= local.LINE_SIZE_BYTES_MAX:
        return request
    needed = tuple(m for m in config.members if m.rank == 0 or m.participant == lease.participant)
    return msgspec.structs.replace(request, config=msgspec.structs.replace(config, members=needed))
