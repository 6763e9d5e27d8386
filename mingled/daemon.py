"""The daemon: one asyncio loop around the pure core. Event -> core -> perform -> arm the timer."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable

from mingled import __version__, metrics
from mingled.chronicle import Chronicle
from mingled.core import actions, events, local
from mingled.core.datagrams import Identity, printable_host
from mingled.core.rendezvous import Rendezvous
from mingled.core.secrets import key_id_of
from mingled.core.words import JobId, NodeId
from mingled.edges import control, peers
from mingled.edges.leases import Leases
from mingled.edges.proof import Proofs
from mingled.edges.systemd import Manager
from mingled.edges.visits import Visits
from mingled.errors import MingleError
from mingled.ladder import Ladder
from mingled.meters import Meters
from mingled.metrics_file import MetricsFile
from mingled.namespaces import network_namespace
from mingled.options import Options, keyring
from mingled.pulse import Pulse
from mingled.surroundings import Surroundings
from mingled.wakes import IDLE_EVERY_S, due_s

LINGER_S = 2.0
"""A private daemon outlives its last lease by this, for a job that is started anew at once."""

TURN_S = 0.01
"""The core is handed events for so long in one turn of the loop, however many have come."""

log = logging.getLogger("mingled")


def clock() -> float:
    """Seconds since boot, suspend included: a lease must not outlive a night with the lid shut."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Daemon:
    """Owns the edges, performs what the core says, and hands it what comes of it."""

    def __init__(
        self,
        options: Options,
        *,
        given: socket.socket | None = None,
        manager: Manager | None = None,
        reread: Callable[[], Options] | None = None,
    ) -> None:
        """`given`: a listening socket at `options.socket`, its maker's to remove. `manager`: who
        started us. `reread`: the options as they are now, for SIGHUP, which else does nothing; it
        raises `MingleError`."""
        self._options = options
        self._given = given
        self._manager = manager or Manager({})
        self._reread = reread
        self._node = NodeId(os.urandom(16).hex())
        self._host = printable_host(socket.gethostname())
        self._started_at = clock()
        self._queue: deque[events.Event] = deque()
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._metrics_file: MetricsFile | None = None
        self._meters = Meters()
        self._chronicle = Chronicle(written=_written)
        self._stop = asyncio.Event()
        self._stop_reason = "told to"

    # ------------------------------------------------------------ life

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until told to stop. `ready` is called once clients can connect. Raises
        `DaemonError` where the socket or the port cannot be had."""
        self._loop = asyncio.get_running_loop()
        options = self._options
        self._keyring = keyring(options)
        listener = control.Listener(options.socket, options.socket_mode, self._given)
        try:
            here = self._surroundings = Surroundings(
                options.interfaces, options.subnets, self._moved
            )
            here.check(self._host)
            link_sock = peers.bind(options.link_port)
            self._link_port = link_sock.getsockname()[1]
            if self._link_port != options.link_port:
                log.warning(
                    "peer link port %d is busy, using %d; a firewall opened for the former will "
                    "block this daemon",
                    options.link_port,
                    self._link_port,
                )
            self._proofs = Proofs(self.emit)
            ring_port = self._proofs.open_ring(self._node)
            self._core = Rendezvous(
                seed=os.urandom(32),
                node=self._node,
                host=self._host,
                link_port=self._link_port,
                ring_port=ring_port,
                addresses=here.addresses,
                own=here.own,
                restricted=here.restricted,
                settings=options.settings,
            )
            self._leases = Leases(self.emit)
            self._control = control.Control(self.emit, self._leases.watch, network_namespace())
            self._peers = peers.Peers(self.emit)
            self._ladder = Ladder(
                self.emit,
                self._identity(),
                rungs=options.rungs,
                peers=options.peers,
                port=options.broadcast_port,
            )
            self._visits = Visits(
                self.emit,
                self._peers.send,
                node=self._node,
                discovery=lambda: self._ladder.states,
                up_s=lambda: clock() - self._started_at,
            )
            self._take(events.KeysChanged(keys=self._keyring.keys))
            self._pulse = Pulse()
            self._pulse.start()
            await self._peers.start(link_sock)
            await self._ladder.start(here.addresses)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self._loop.add_signal_handler(number, self._signalled, number)
            await self._control.start(listener.sock)
            log.info("mingled %s on %s, link port %d", __version__, options.socket, self._link_port)
            # What is imported stays: each full collection would look through all of it, 50 ms long.
            gc.collect()
            gc.freeze()
            self._manager.ready()
            ready()
            self._manager.beat(self._loop)
            self._tell_status()
            if options.metrics_file is not None:
                self._metrics_file = MetricsFile(options.metrics_file, self._metrics)
                self._metrics_file.start()
            self._look_for_keys()
            self._arm_linger()
            await here.start()
            await self._stop.wait()
            await self._close()
            if options.private:  # it ended in peace: nobody will look for its log
                options.socket.with_suffix(".log").unlink(missing_ok=True)
        finally:
            listener.close()

    def _signalled(self, number: signal.Signals) -> None:
        if number is not signal.SIGHUP:  # a terminal that closes is no reason to end
            self._stop_reason = number.name
            self._stop.set()
        elif self._reread is not None:
            self._reload(self._reread)

    def _reload(self, reread: Callable[[], Options]) -> None:
        """The configuration as it is now; where it is wrong, the one before stays in force."""
        self._manager.reloading()
        try:
            found = reread()
            changes = self._options.changes(found)
            ring = keyring(found) if "key_file" in changes.applied else self._keyring
        except MingleError as error:
            log.error("%s; the configuration of before stays in force", error)
        except Exception:
            # Without its end the service manager would take us to be reloading for ever.
            log.exception("bug: the configuration was not read; that of before stays in force")
        else:
            # Of the rest the old values stand, so that the next reload says so again.
            self._options = self._options.with_changes(found)
            logging.getLogger().setLevel(found.log_level.upper())
            self._ladder.ask_peers(found.peers)
            if ring is not self._keyring:
                self._keyring = ring
                self._use_keys()
            log.info("configuration read again: %s", changes.sentence)
        self._manager.ready()

    def _tell_status(self) -> None:
        jobs = len(self._core.jobs)
        count = "no jobs" if not jobs else "1 job" if jobs == 1 else f"{jobs} jobs"
        self._manager.status(f"{count}; link port {self._link_port}")

    async def _moved(self) -> None:
        """The machine's addresses are others now, or its interfaces are."""
        here = self._surroundings
        await self._ladder.readdress(here.addresses)
        self.emit(events.AddressesChanged(addresses=here.addresses, own=here.own))

    def _arm_linger(self) -> None:
        """A private daemon ends a moment after its last lease."""
        if not self._core.idle and self._linger is not None:
            self._linger.cancel()
            self._linger = None
        elif self._core.idle and self._linger is None and self._options.private:
            self._linger = self._loop.call_later(LINGER_S, self._lingered)

    def _lingered(self) -> None:
        self._stop_reason = "its last lease ended"
        self._stop.set()

    async def _close(self) -> None:
        self._manager.stopping()
        log.info("stopping: %s", self._stop_reason)
        self.emit(events.Stopped(reason=self._stop_reason))
        while self._queue:
            self._take(self._queue.popleft())
        self._pulse.close()
        if self._metrics_file is not None:
            await self._metrics_file.stop()
        for handle in (self._timer, self._linger):
            if handle is not None:
                handle.cancel()
        self._queue.clear()
        self._draining = True  # what still comes in changes nothing any more
        await self._surroundings.close()
        await self._control.close()
        await self._visits.close()
        await self._peers.close()
        await self._proofs.close()
        await self._ladder.close()
        self._leases.close()

    # ------------------------------------------------------------ the loop

    def emit(self, event: events.Event) -> None:
        """Hand an event to the core, from the event loop's thread; handled in order, not nested."""
        self._queue.append(event)
        if not self._draining:
            self._draining = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        """As much as TURN_S allows; then whatever else has come has its turn."""
        until = self._loop.time() + TURN_S
        self._draining = True
        try:
            while self._queue and self._loop.time() < until:
                self._take(self._queue.popleft())
        finally:
            self._draining = bool(self._queue)
            if self._queue:
                self._loop.call_soon(self._drain)
            self._arm()
            self._tell_status()

    def _take(self, event: events.Event) -> None:
        if isinstance(event, events.JoinAsked | events.ReattachAsked):
            self._refresh_keys()
        try:
            self._meters.took(event)
            self._chronicle.took(event)
            done = self._core.handle(event, clock())
            self._chronicle.changed(self._core.story)
            for action in done:
                self._meters.did(action)
                self._chronicle.did(action)
                self._perform(action)
        except Exception:
            # A bug of ours in one job must not stop the others'.
            log.exception("bug: %s was not handled", type(event).__name__)

    def _look_for_keys(self) -> None:
        """At each join, and now and then: somebody who waits here may be looked for by others
        under a key that is new there."""
        if not self._stop.is_set():  # a reload may bring a file
            self._refresh_keys()
            self._loop.call_at(due_s(self._loop.time(), IDLE_EVERY_S), self._look_for_keys)

    def _refresh_keys(self) -> None:
        """`mingle key rotate` has changed the file: what joins from now on has the new keys."""
        try:
            changed = self._keyring.refresh()
        except MingleError as error:
            log.warning("%s; the keys of before stay in force", error)
            return
        if changed:
            self._use_keys()

    def _use_keys(self) -> None:
        log.info("cluster keys, the one to present first: %s", ", ".join(self._key_ids))
        self._take(events.KeysChanged(keys=self._keyring.keys))
        self._ladder.introduce_as(self._identity())

    def _identity(self) -> Identity:
        return Identity(
            node=self._node,
            host=socket.gethostname(),
            port=self._link_port,
            key_id=self._key_ids[0],
        )

    @property
    def _key_ids(self) -> tuple[str, ...]:
        return tuple(map(key_id_of, self._keyring.keys or (b"",)))

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._core.deadline()
        if deadline is not None:
            pause = max(0.0, deadline - clock())
            self._timer = self._loop.call_later(pause, self.emit, events.Ticked())
        self._arm_linger()

    def _perform(self, action: actions.Action) -> None:
        match action:
            case actions.Tell():
                self._control.tell(action.participant, action.message)
            case actions.Answer():
                self._control.answer(action.request, action.message)
            case actions.Describe():
                self._control.answer(action.request, self._report(action.jobs))
            case actions.Recount():
                lines = self._chronicle.lines(action.job, action.uid, action.after)
                story = local.Story(job=action.job, lines=lines)
                self._control.answer(action.request, story)
            case actions.Measure():
                self._control.answer(action.request, local.Measured(text=self._metrics()))
            case actions.Seated():
                self._control.seat(action.participant, action.request)
            case actions.Rehold():
                self._control.rehold(action.participant, action.request)
            case actions.Release():
                self._leases.forget(action.participant)
                self._control.release(action.participant)
            case actions.SendFrame():
                self._peers.send(action.link, action.message)
            case actions.OpenLink():
                self._peers.open_link(
                    action.link, action.label, action.addresses, action.port, action.sources
                )
            case actions.CloseLink():
                self._peers.close_link(action.link)
            case actions.Trust():
                self._peers.trust(action.realm, soon=action.soon)
            case actions.Distrust():
                self._peers.distrust(action.label)
            case _:
                self._perform_network(action)

    def _perform_network(self, action: actions.Action) -> None:
        match action:
            case actions.Advertise() | actions.Withdraw() | actions.Ask() | actions.Doubt():
                self._ladder.perform(action)
            case actions.PublishName() | actions.WithdrawName():
                self._ladder.name(action)
            case actions.OpenProof():
                self._proofs.open_proof(
                    action.job,
                    action.proof,
                    first=action.first,
                    base=action.base,
                    count=action.count,
                    avoid=action.avoid,
                )
            case actions.CloseProof():
                self._proofs.close_proof(action.proof, keep=action.keep)
            case actions.FreePort():
                self._proofs.free_port(action.proof)
            case actions.ProvePath():
                self._proofs.prove_path(
                    action.job,
                    action.proof,
                    action.address,
                    action.port,
                    action.word,
                    action.sources,
                )
            case actions.Introduce() | actions.TryPlaces() | actions.OpenTestPort():
                self._visits.perform(action)
            case _:
                raise TypeError(type(action).__name__)  # its fields may hold secrets

    def _metrics(self) -> str:
        seats = [s for job in self._core.jobs.values() for s in job.seats.values()]
        waiting = sum(seat.waiting for seat in seats)
        values = {
            **metrics.counted(self._meters),
            **metrics.process(),
            "mingled_up_seconds": clock() - self._started_at,
            "mingled_jobs": len(self._core.jobs),
            "mingled_participants": {"waiting": waiting, "released": len(seats) - waiting},
            "mingled_handshakes_refused": self._peers.refused,
            "mingled_datagrams": self._ladder.datagrams,
            "mingled_loop_lag_seconds": self._pulse.lag.minute_s,
        }
        return metrics.text(values, self._meters)

    def _report(self, jobs: tuple[local.Job, ...]) -> local.Report:
        return local.Report(
            release=__version__,
            host=self._host,
            node=self._node,
            pid=os.getpid(),
            socket=str(self._options.socket),
            private=self._options.private,
            link_port=self._link_port,
            addresses=tuple(f"{a.interface} {a.address}" for a in self._surroundings.addresses),
            discovery=self._ladder.states,
            key_ids=self._key_ids,
            up_s=clock() - self._started_at,
            jobs=jobs,
            lag=self._pulse.lag,
            counts=self._pulse.held(
                self._core, self._peers, self._control, self._leases, self._proofs, self._ladder
            ),
        )


def _written(job: JobId, level: int, text: str) -> None:
    """A job's story is in the log as well, with the job as a field where the log has fields."""
    log.log(level, "job %s: %s", job, text.removeprefix(f"job {job}: "), extra={"job": job})
