"""CMD through the rounds of a job: run, told of losses, stopped for them, started again.

One loop per round sleeps in `Child.wait` and is woken by CMD's end, by signals and by news.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence

from mingled import client
from mingled.cli import child, launchers
from mingled.cli.display import Display
from mingled.cli.forms import Reaction, Wish
from mingled.core import local
from mingled.core.messages import Fate
from mingled.errors import Cancelled, Lost, MingleError
from mingled.frameworks.dialects import hostfiles
from mingled.watching import Watch
from mingled.wording import gone_line, member

NEWS_S = 0.5
"""After CMD's own failure, for the others' ends to be heard of: one that was first to finish closes
its connections before its daemon tells of it."""

Joined = Callable[[str], client.Lease]
"""Waits for the next round as for the first, and says how the last run failed, if it did. A signal
ends it by an exception."""


def prepared(
    lease: client.Lease, wanted: Wish, cmd: Sequence[str], display: Display
) -> tuple[list[str], dict[str, str]]:
    """The words and the environment of CMD in this round; says what the round is."""
    changes = wanted.chosen.environment(lease.config, present=os.environ, owner=os.getpid())
    display.released(lease.config, lease.found_s, lease.waited_s)
    for name, old, new in changes.replaced:
        display.line(f"{name}={old} in the environment is replaced by {new}")
    for line in wanted.chosen.notes(lease.config):
        display.line(line)
    argv = list(cmd)
    if wanted.line is not None and wanted.line.direct:
        argv = launchers.rewrite(wanted.line, lease.config)
        display.line("runs " + " ".join(argv))
    return argv, changes.merged(os.environ)


class _Round:
    """What has happened in one run of CMD."""

    def __init__(self) -> None:
        self.fates: dict[int, Fate] = {}  #: of the members that are not simply running, by rank
        self.stopped_for: local.Gone | None = None  #: the loss for which CMD was told to end
        self.restarts = False  #: ... in order to start again
        self.cancelled = ""  #: ... or since the job was cancelled: the sentence
        self.kill_at: float | None = None  #: on the clock of `time.monotonic`


class Supervisor:
    """Of one CMD, from its first round to the end."""

    def __init__(
        self,
        wanted: Wish,
        path: str,
        cmd: Sequence[str],
        *,
        reaction: Reaction,
        display: Display,
        joined: Joined,
    ) -> None:
        self._wanted = wanted
        self._path = path
        self._cmd = cmd
        self._reaction = reaction
        self._display = display
        self._joined = joined
        self._restarts = 0

    def run(self, lease: client.Lease) -> int:
        """CMD's exit code, of its last run. Raises `Lost` where it was stopped for a loss,
        `Cancelled` where the job was, what joining again raises, and `BadInput` where CMD cannot be
        run."""
        while True:
            try:
                argv, env = prepared(lease, self._wanted, self._cmd, self._display)
                command = child.Child(self._path, argv, env, lease.config.job)
            except MingleError:
                lease.leave(lost=True, reason="CMD could not be run")
                raise
            try:
                ended, status = self._watch(lease, command)
            finally:
                hostfiles.remove(env)
            if not self._decide(lease, ended, status, command.interrupted):
                return child.exit_code(status)
            failed = "" if ended.stopped_for else child.describe(status)
            lease = self._join_again(lease, command, failed)

    def _watch(self, lease: client.Lease, command: child.Child) -> tuple[_Round, int]:
        """To CMD's end: its wait status."""
        display, round_ = self._display, _Round()
        watch = Watch(lease, line=display.line, told=display.told, announce=child.announce)
        try:
            while True:
                for news in watch.news():
                    if isinstance(news, local.Gone):
                        self._hear(lease, news, round_, command)
                if watch.cancelled and not round_.cancelled:
                    round_.cancelled = watch.cancelled
                    self._display.line("cancelled; stops CMD")
                    self._end(command, round_)
                due = [at for at in (watch.due, round_.kill_at) if at is not None]
                sleep_s = max(0.0, min(due) - time.monotonic()) if due else None
                status = command.wait(sleep_s)
                if status is not None:
                    if status and self._may_restart():
                        self._hear_out(watch, round_)
                    return round_, status
                if round_.kill_at is not None and time.monotonic() >= round_.kill_at:
                    round_.kill_at = None
                    command.send(signal.SIGKILL)
        finally:
            watch.close()

    def _hear_out(self, watch: Watch, round_: _Round) -> None:
        """CMD has failed: what else has happened?"""
        until = time.monotonic() + NEWS_S
        while (left_s := until - time.monotonic()) > 0 and not round_.fates:
            for news in watch.news():
                if isinstance(news, local.Gone):
                    round_.fates[news.rank] = news.how
            round_.cancelled = watch.cancelled
            if round_.cancelled:
                return
            time.sleep(min(left_s, NEWS_S / 10))

    def _hear(
        self, lease: client.Lease, gone: local.Gone, round_: _Round, command: child.Child
    ) -> None:
        """Tell it, once, and act on a loss. A new daemon tells again what the old one told."""
        if round_.fates.get(gone.rank, "running") == gone.how:
            return
        round_.fates[gone.rank] = gone.how
        line = gone_line(gone, self._wanted.join.form)
        if self._reaction.on_lost == "ignore" or not line:
            return
        if gone.how != "lost" or command.interrupted or round_.stopped_for is not None:
            self._display.line(line)
        elif self._reaction.on_lost == "warn":
            self._display.line(f"{line}; training will hang: Ctrl-C, or --on-lost stop")
        else:
            finishing = self._finishing(lease, round_)
            round_.stopped_for, round_.restarts = gone, self._may_restart() and not finishing
            next_ = "stops CMD: others have finished" if finishing else self._what_next()
            self._display.line(f"{line}; {next_}")
            self._end(command, round_)

    def _end(self, command: child.Child, round_: _Round) -> None:
        """SIGTERM now, SIGKILL once its grace is over."""
        round_.kill_at = time.monotonic() + self._wanted.join.stop_grace_s
        if not command.send(signal.SIGTERM):
            self._display.line("CMD runs as another user: it cannot be ended from here")

    def _decide(self, lease: client.Lease, ended: _Round, status: int, interrupted: bool) -> bool:
        """CMD has ended: is there another round? Raises `Lost` and `Cancelled`."""
        code, how, gone = child.exit_code(status), child.describe(status), ended.stopped_for
        if ended.cancelled and not interrupted:  # its lease has ended
            lease.connection.close()
            raise Cancelled(f"{ended.cancelled} ({how})")
        # Exit 0 after our SIGTERM is a checkpoint kept, not the end of the training.
        if interrupted or (code == 0 and gone is None):
            lease.leave(lost=code != 0, reason=how)
            return False
        if gone is None:
            if self._may_restart() and not self._finishing(lease, ended):
                # Mostly the broken connection of a peer that died, before the daemon tells of it.
                self._display.line(f"{how}; {self._what_next()}")
                return True
            lease.leave(lost=True, reason=how)
            return False
        if ended.restarts:
            return True
        lease.leave(reason=f"stopped: {gone.host} was lost")  # a loss must not become a cascade
        raise Lost(self._lost_sentence(gone, how))

    def _join_again(self, lease: client.Lease, ended: child.Child, failed: str) -> client.Lease:
        """The new join replaces the old lease, and tells the others of a failure."""
        self._restarts += 1
        try:
            ended.close()  # a signal that came since CMD's end ends us here
            newer = self._joined(failed)
        except BaseException:
            lease.leave(lost=bool(failed), reason=failed or "ended before it had joined again")
            raise
        lease.connection.close()
        return newer

    def _finishing(self, lease: client.Lease, round_: _Round) -> bool:
        """So many have ended well that a new round would wait for them in vain."""
        left = sum(fate in ("left", "finished") for fate in round_.fates.values())
        return left > 0 and len(lease.config.members) - left < self._wanted.join.size_min

    def _may_restart(self) -> bool:
        most = self._reaction.restarts_max
        return self._reaction.on_lost == "restart" and self._restarts < most

    def _what_next(self) -> str:
        most = self._reaction.restarts_max
        if self._may_restart():
            return f"joins again: restart {self._restarts + 1} of {most}"
        if self._reaction.on_lost == "restart":
            return f"stops CMD: the {most} restarts of --max-restarts are used up"
        return "stops CMD"

    def _lost_sentence(self, gone: local.Gone, how: str) -> str:
        join = self._wanted.join
        hint = "" if self._reaction.on_lost == "restart" else ", or use --on-lost restart"
        return (
            f"job {join.job}: {member(gone, join.form)} was lost in round {gone.round}, so CMD "
            f"was stopped on {socket.gethostname()} ({how}); see what happened on {gone.host}, "
            f"then run the same line on every machine again{hint}"
        )
