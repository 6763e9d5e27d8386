"""One kind of fault at a time, over many seeds: the invariants hold, and who waits hears why."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from mingled.core import events, local
from mingled.core.events import Event
from mingled.core.table import State
from tests.core.stage import Stage, failed, fates, ready
from tests.sim.clients import Client
from tests.sim.network import Air
from tests.sim.run import Sweep, sweep
from tests.sim.scenario import FAULTS_END_S, Scenario
from tests.sim.world import Daemon, World

YEAR_S = 365.25 * 86_400

Plan = Callable[[Scenario], None]


class Plague:
    """The one fault of a sweep, and how often it came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.came = 0

    def sweep(self, fault: Plan, seeds: int, times: int = 4) -> Sweep:
        """Every seed has it so many times, at random moments, and no other fault that is planned;
        who joins, and how long packets take, comes from the seed."""

        def plan(scenario: Scenario) -> None:
            def happen() -> None:
                self.came += 1
                fault(scenario)

            for _ in range(times):
                scenario.world.clock.at(scenario.rng.uniform(0.0, FAULTS_END_S), happen)

        self._monkeypatch.setattr(Scenario, "plan_faults", plan)
        return self.go(seeds)

    def go(self, seeds: int) -> Sweep:
        result = sweep(range(seeds))
        played = result.failed
        story = () if played is None else (*played.transcript[-60:], f"seed {played.seed}")
        assert played is None, "\n".join((*story, str(played.error)))
        assert result.released > seeds, "the simulation must get somewhere, too"
        return result


@pytest.fixture
def plague(monkeypatch: pytest.MonkeyPatch) -> Plague:
    return Plague(monkeypatch)


def networks(count: int, hosts: int) -> Iterator[Stage]:
    """LANs that delay and lose packets, each in its own way, and on which nothing else goes
    wrong."""
    for seed in range(count):
        rng = random.Random(seed)
        loss, delay_s = rng.choice((0.0, 0.1, 0.3)), rng.choice((0.001, 0.05, 0.3))
        yield Stage(hosts, World(rng, hosts, Air(rng, networks=1, loss=loss, delay_s=delay_s)))


def kill(world: World, client: Client) -> None:
    client.gone = True
    ended = events.HolderEnded(participant=client.participant, status=9)
    world.deliver(world.daemons[client.host], ended)


# ---------------------------------------------------------------- rank 0


def test_fault_02_rank_0_is_killed_before_the_seal(plague: Plague) -> None:
    killed = 0

    def kill_a_leader(scenario: Scenario) -> None:
        nonlocal killed
        world = scenario.world
        leads = [
            client
            for client in world.clients.values()
            if client.waits
            and (job := world.daemons[client.host].core.jobs.get(client.join.job))
            and job.state in (State.LEADING, State.PREPARING)
        ]
        if leads:
            killed += 1
            kill(world, scenario.rng.choice(leads))

    plague.sweep(kill_a_leader, 60, times=8)
    assert killed > 60


@pytest.mark.parametrize("explicit", [True, False])
def test_fault_02_the_others_are_told_and_gather_again(explicit: bool) -> None:
    stage = Stage(4)
    rank = 0 if explicit else None
    zero = stage.join(1, rank=rank, size=4)
    stage.wait(1.0)
    others = [stage.join(host, size=4) for host in (2, 3)]
    stage.wait(1.0)
    kill(stage.world, zero)
    stage.wait(5.0)
    told = [[m for m in c.heard if isinstance(m, local.Progress)][-1] for c in others]
    assert all(c.waits for c in others)
    assert {m.leader for m in told} <= {"gpu2", "gpu3"}
    assert [m.here for m in told] == [2, 2]
    newer = [stage.join(1, rank=rank, size=4), stage.join(4, size=4)]
    stage.wait(5.0)
    assert sorted(ready(c).rank for c in (*others, *newer)) == [0, 1, 2, 3]
    assert len({ready(c).claim for c in (*others, *newer)}) == 1


def test_fault_03_everybody_learns_who_died_in_which_round() -> None:
    for stage in networks(30, hosts=4):
        members = [stage.join(host, rank=host - 1, size=4) for host in (1, 2, 3, 4)]
        stage.wait(60.0)
        for client in members:
            ready(client)
        kill(stage.world, members[0])
        stage.wait(20.0)
        for client in members[1:]:
            (news,) = [m for m in client.heard if isinstance(m, local.Gone) and m.how == "lost"]
            assert (news.rank, news.host, news.address) == (0, "gpu1", "10.0.0.1")
            assert (news.round, news.reason) == (1, "killed by signal 9")


def test_fault_05_one_of_two_claimants_of_rank_0_succeeds() -> None:
    for stage in networks(60, hosts=3):
        rng, pair = stage.world.rng, []
        for host in (1, 2):
            pair.append(stage.join(host, rank=0))
            stage.wait(rng.choice((0.0, 0.01, 0.5)))
        stage.wait(60.0)
        (winner,) = [c for c in pair if c.waits]
        (loser,) = [c for c in pair if c is not winner]
        where = f"rank 0 is gpu{winner.host + 1} (10.0.0.{winner.host + 1})"
        assert where in failed(loser, "conflict")
        other = stage.join(3, rank=1)
        stage.wait(60.0)
        assert (ready(winner).rank, ready(other).rank) == (0, 1)


def test_fault_06_one_of_two_who_ask_for_a_rank_gets_it() -> None:
    for stage in networks(60, hosts=4):
        rng = stage.world.rng
        zero = stage.join(1, rank=0, size=3)
        pair = []
        for host in (2, 3):
            stage.wait(rng.choice((0.0, 0.01, 0.5, 10.0)))
            pair.append(stage.join(host, rank=1, size=3))
        stage.wait(60.0)
        (first,) = [c for c in pair if c.waits]
        (second,) = [c for c in pair if c is not first]
        sentence = failed(second, "refused")
        for word in ("job bert: rank 1 is asked for twice", "gpu2 (10.0.0.2)", "gpu3 (10.0.0.3)"):
            assert word in sentence
        last = stage.join(4, rank=2, size=3)
        stage.wait(60.0)
        assert [ready(c).rank for c in (zero, first, last)] == [0, 1, 2]


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("percent", [10, 30, 50])
def test_fault_09_packets_are_lost(monkeypatch: pytest.MonkeyPatch, percent: int) -> None:
    """Each join ends in a round, or with an error at its deadline: `Checks` looks at that."""

    def plan(scenario: Scenario) -> None:
        scenario.air.loss = percent / 100

    monkeypatch.setattr(Scenario, "plan_faults", plan)
    Plague(monkeypatch).go(40)


def test_fault_10_adverts_come_twice_late_and_in_any_order(
    plague: Plague, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so do goodbyes, after the advert that they take back, or before it."""
    right = World.soon
    again = 0

    def soon(self: World, daemon: Daemon, event: Event, delay_s: float | None = None) -> None:
        nonlocal again
        right(self, daemon, event, delay_s)
        if isinstance(event, events.AdvertHeard | events.AdvertGone):
            for _ in range(2):
                again += 1
                right(self, daemon, event, self.rng.expovariate(0.5))

    monkeypatch.setattr(World, "soon", soon)
    plague.sweep(lambda scenario: None, 40)
    assert again > 500


def test_fault_11_networks_are_split_and_heal(plague: Plague) -> None:
    plague.sweep(lambda scenario: scenario._partition(), 60)
    assert plague.came == 240


# ---------------------------------------------------------------- clocks


def test_fault_20_clocks_are_years_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core knows one clock, its daemon's, and tells nobody what it says."""
    right = Daemon.__init__

    def aged(self: Daemon, world: World, host: int, keys: tuple[bytes, ...] = ()) -> None:
        right(self, world, host, keys)
        self.boot = (0.0, 10 * YEAR_S)[world.rng.random() < 0.5] + world.rng.uniform(0.0, 1e4)

    monkeypatch.setattr(Daemon, "__init__", aged)
    Plague(monkeypatch).go(40)


def test_fault_21_machines_are_suspended_and_resume(plague: Plague) -> None:
    plague.sweep(lambda scenario: scenario._suspend(), 60)


def test_fault_21_a_lease_ends_by_the_time_since_boot() -> None:
    """Kept for ten seconds until a shell takes it over; the lid is shut after five."""
    stage = Stage(2)
    stage.world.adopts = False
    mate = stage.join(1, rank=0)
    leased = stage.join(2, rank=1, adopt=True)
    stage.wait(5.0)
    ready(mate), ready(leased)
    stage.world.freeze(stage.world.daemons[1], 8.0)
    stage.wait(8.5)
    assert fates(mate) == [(1, "lost")]


def test_fault_21_a_short_sleep_loses_nobody_and_a_long_one_is_told() -> None:
    for asleep_s, heard in ((10.0, []), (1800.0, [(1, "lost")])):
        stage = Stage(3)
        members = [stage.join(host, rank=host - 1, size=3) for host in (1, 2, 3)]
        stage.wait(1.0)
        world = stage.world
        world.harmed = True
        world.air.down.add(1)
        world.freeze(world.daemons[1], asleep_s)
        stage.wait(asleep_s)
        world.air.down.clear()
        stage.wait(60.0)
        assert [f for f in fates(members[0]) if f[1] == "lost"] == heard
        assert [f for f in fates(members[2]) if f[1] == "lost"] == heard
        # Whoever slept verifies the others again, and calls nobody lost who is there.
        assert not [f for f in fates(members[1]) if f[0] != 1 and f[1] == "lost"]


# ---------------------------------------------------------------- the past


def test_fault_41_old_adverts_come_again(plague: Plague) -> None:
    plague.sweep(lambda scenario: scenario._stale_advert(), 40, times=30)


def test_fault_41_an_old_claim_is_discarded_in_the_session() -> None:
    """The host of the old advert leads the same job again, on the same port: whoever connects there
    asks for the claim that it was told of, and is refused."""
    stage = Stage(3)
    first = [stage.join(1, rank=0), stage.join(2, rank=1)]
    stage.wait(1.0)
    old = stage.world.past_adverts[0]
    assert ready(first[1]).claim == old.claim
    for client in first:
        stage.world.leave(client)
    stage.wait(1.0)
    newer = stage.join(1, rank=0)
    stage.wait(1.0)
    stage.world.log.clear()
    stage.world.air.split({2}, 3, [0])  # gpu3 hears the old one alone
    late = stage.join(3, rank=1)
    stage.world.deliver(stage.world.daemons[2], events.AdvertHeard(advert=old, rung="mdns"))
    stage.world.air.heal()
    stage.wait(30.0)
    claim = ready(newer).claim
    assert claim == ready(late).claim != old.claim
    refused = [
        event.message
        for _, host, way, event in stage.world.log
        if host == 2 and way == "<-" and isinstance(event, events.FrameReceived)
    ]
    assert "stale" in [getattr(message, "code", "") for message in refused]


def test_fault_43_both_versions_are_named() -> None:
    stage = Stage(2)
    stage.world.daemons[1].version = (9, 0)
    stage.join(1, rank=0)
    stage.wait(1.0)
    newer = stage.join(2, rank=1)
    stage.wait(5.0)
    sentence = failed(newer, "version")
    for word in ("job bert", "gpu2 (10.0.0.2)", "version 9.0", "1.0"):
        assert word in sentence
