"""One run, or a sweep over many seeds."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable

import msgspec

from mingled.core import messages, words
from tests.sim.checks import CANCEL_S, GRACE_S, ensure
from tests.sim.scenario import EMPTY_S, FAULTS_END_S, LEASES_END_S, LIVENESS_S, Scenario


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one seed. `error` is None if every invariant held."""

    seed: int
    error: str | None
    released: int
    crashed: int  #: how often a daemon did at the given transition
    transcript: tuple[str, ...]


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    released: int
    seeds_per_minute: float
    failed: Run | None  #: the first seed that failed; the sweep stops there


def run(
    seed: int, hosts: int | None = None, *, transcript: bool = False, mine: str | None = None
) -> Run:
    """Play one seed to its end. The transcript is written only if asked for, or on a failure.
    `mine`: a transition at which daemons crash, on a network that comes to all of them."""
    scenario = Scenario(seed, hosts)
    if mine is not None:
        scenario.world.mine, scenario.world.brittle = mine, 0.2
    error = None
    try:
        _play(scenario)
    except Exception as failure:  # whatever a core raises is what the simulator looks for
        error = f"{type(failure).__name__}: {failure}\n{_where(failure)}"
    lines = tuple(_lines(scenario)) if transcript or error else ()
    released = scenario.world.checks.released
    crashed = 3 - scenario.world.mines_left
    return Run(seed=seed, error=error, released=released, crashed=crashed, transcript=lines)


def sweep(seeds: Iterable[int], hosts: int | None = None) -> Sweep:
    """Play seeds until one fails."""
    start = time.perf_counter()
    count = released = 0
    failed = None
    for seed in seeds:
        played = run(seed, hosts)
        count += 1
        released += played.released
        if played.error is not None:
            failed = played
            break
    minutes = (time.perf_counter() - start) / 60
    return Sweep(count=count, released=released, seeds_per_minute=count / minutes, failed=failed)


def _play(scenario: Scenario) -> None:
    world = scenario.world
    scenario.plan_clients()
    scenario.plan_faults()
    world.clock.run_until(FAULTS_END_S)
    scenario.heal()
    # Restarts and heals that were planned earlier still come; they do no harm.
    world.clock.run_until(FAULTS_END_S + 1.0)
    kept = scenario.clear_away()
    world.clock.run_until(FAULTS_END_S + 1.0 + LEASES_END_S)
    expected = scenario.last_wave(kept)
    begun = world.clock.now
    world.clock.run_until(begun + LIVENESS_S - 1.0)  # later, whoever waits has given up
    uninformed = scenario.told_of_waiters()
    ensure(not uninformed, f"not told that somebody waits: {[str(c) for c in uninformed]}")
    world.clock.run_until(begun + LIVENESS_S + GRACE_S + 5.0)
    for client in expected:
        ensure(client.config is not None, f"once all is well, {client}: never released")
    if scenario.cancels:
        scenario.everybody_is_cancelled()
        world.clock.run_until(world.clock.now + CANCEL_S)
        for job, request in scenario.asked:
            world.checks.confirmed(job, request)
    scenario.everybody_leaves()
    world.clock.run_until(world.clock.now + EMPTY_S)
    world.checks.empty()


def _where(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__)[-3:])


def _lines(scenario: Scenario) -> Iterable[str]:
    world = scenario.world
    yield (
        f"{scenario.hosts} hosts on {world.air.networks} networks, delay {world.air.delay_s:g} s, "
        + ", ".join(f"{j}: {scenario.shape[j]} of {scenario.size[j]}" for j in scenario.jobs)
    )
    for now, host, direction, what in world.log:
        where = f"gpu{host + 1}" if host >= 0 else "all"
        yield f"{now:10.4f} {where:>5} {direction} {_short(what)}"
    for client in world.clients.values():
        yield f"  {client}"


def _short(what: object) -> str:
    """One line; long identifiers are cut, members are only counted."""
    if isinstance(what, msgspec.Struct):
        fields = ((f, getattr(what, f)) for f in what.__struct_fields__)
        inner = ", ".join(f"{f}={_short(v)}" for f, v in fields if v not in (None, "", ()))
        return f"{type(what).__name__}({inner})"
    if isinstance(what, messages.Message | list):
        return repr(what)
    if isinstance(what, tuple):
        return "[" + ", ".join(map(_short, what)) + "]"
    if isinstance(what, words.Nonce | words.NodeId | words.ParticipantId | words.Label):
        return what[:6]
    return str(what)
