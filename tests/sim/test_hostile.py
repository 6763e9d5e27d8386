"""A peer that has the secret and says anything at any time: no core raises, none spins."""

from __future__ import annotations

import random
from typing import Any, get_args

import msgspec
import pytest

from mingled.core import events, messages
from mingled.core.config import Member
from mingled.core.messages import Fate, Message
from mingled.core.pursuit import Pursuit
from mingled.core.words import Form, NodeId, Nonce, ParticipantId, Standing
from tests.core.samples import ENTRY, MEMBER, PEER, PROOF
from tests.sim.checks import Checks
from tests.sim.network import address_of, addresses_of
from tests.sim.scenario import FAULTS_END_S, Scenario
from tests.sim.world import Daemon, World

WORDS_PER_RUN = 600

TEMPLATES = PEER + 6 * tuple(m for m in PEER if isinstance(m, messages.Prepare))
"""A false roster is the worst that a peer can say, so it is said more often."""


class NoChecks(Checks):
    """With a liar among the peers only the core's own soundness is at stake."""

    def told(self, *_: object) -> None: ...
    def claimed(self, *_: object) -> None: ...
    def proven(self, *_: object) -> None: ...
    def frame_sent(self, *_: object) -> None: ...
    def frame_arrived(self, *_: object) -> None: ...
    def overdue(self, *_: object) -> None: ...
    def stopped(self, *_: object) -> None: ...


class Liar:
    """Makes messages from what is true in this world, put together at random."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = random.Random(world.rng.random())

    def speak(self) -> None:
        daemon = self.rng.choice(self.world.daemons)
        if daemon.ends and daemon.alive:
            link = self.rng.choice(list(daemon.ends))
            message = self._message(daemon)
            self.world.deliver(daemon, events.FrameReceived(link=link, message=message))
            if isinstance(message, messages.Prepare) and self.rng.random() < 0.8:
                self._follow_up(daemon, link, message)

    def _follow_up(self, daemon: Daemon, link: int, prepare: messages.Prepare) -> None:
        """The liar's own listener says the nonce, and then it commits to its roster."""
        mine = addresses_of(daemon.host, 1)[0]
        places = [(prepare.master_addr, prepare.master_port)]
        ring = zip(prepare.members, prepare.ring_ports, strict=False)
        places += [(member.address, port) for member, port in ring]
        for job in list(daemon.core.jobs):
            for address, port in places:
                proven = events.PathProven(
                    job=job, proof=prepare.proof, address=address, port=port, local=mine
                )
                self.world.deliver(daemon, proven)
        claim, round_ = prepare.claim, prepare.round
        commit = messages.Commit(claim=claim, round=round_, proof=prepare.proof)
        gone = messages.Gone(
            claim=claim, round=round_, rank=self.rng.randint(-1, 4), how="left", reason=""
        )
        for message in (commit, gone):
            self.world.deliver(daemon, events.FrameReceived(link=link, message=message))

    def _message(self, daemon: Daemon) -> Message:
        rng, template = self.rng, self.rng.choice(TEMPLATES)
        adverts = self.world.past_adverts
        true: dict[str, Any] = {}
        if adverts:
            advert = rng.choice(adverts)
            true = {"claim": advert.claim, "rival": advert.claim, "advert": advert}
            true["label"] = advert.label
        current = [j.pursuit.claim for j in daemon.core.jobs.values() if j.pursuit is not None]
        current += [j.claim.nonce for j in daemon.core.jobs.values() if j.claim is not None]
        if current and rng.random() < 0.8:
            true["claim"] = rng.choice(current)
        node = rng.choice([d.node for d in self.world.daemons] + [NodeId("f" * 32)])
        true["node"] = messages.NodeCard(
            node=node, host="liar", port=29400, ring_port=29401, addresses=("10.0.0.1",)
        )
        proof = self._proof(daemon)
        true |= {"proof": proof, "prepared": rng.choice((None, proof))}
        true |= {"round": rng.randint(0, 3), "rank": rng.randint(-1, 4)}
        true |= {"participant": self._participant(), "participants": (self._participant(),)}
        true |= {"code": rng.choice(("stale", "refused", "nonsense"))}
        true |= {"entries": tuple(self._entry() for _ in range(rng.randint(0, 3)))}
        members = tuple(self._member() for _ in range(rng.randint(0, 4)))
        true |= {"members": members, "ring_ports": (29401,) * len(members)}
        true |= {"fates": tuple(rng.choice(get_args(Fate)) for _ in members)}
        true |= {"how": rng.choice(get_args(Fate)), "standing": rng.choice(list(Standing))}
        true |= {"version": rng.choice(((1, 0), (1, 0), (9, 9)))}
        true |= {"sealed": rng.random() < 0.5, "busy": rng.random() < 0.5}
        known = {k: v for k, v in true.items() if k in template.__struct_fields__}
        return msgspec.structs.replace(template, **known)

    def _proof(self, daemon: Daemon) -> Nonce:
        pursuits = [j.pursuit for j in daemon.core.jobs.values() if j.pursuit is not None]
        open_ = [p.prepare.proof for p in pursuits if p.prepare is not None]
        attempts = [j.claim.seal.attempt for j in daemon.core.jobs.values() if j.claim is not None]
        open_ += [a.proof for a in attempts if a is not None]
        return self.rng.choice(open_ or [PROOF])

    def _participant(self) -> ParticipantId:
        return self.rng.choice([*self.world.clients, ENTRY.participant])

    def _entry(self) -> messages.Entry:
        form = self.rng.choice((Form.LAUNCHER, Form.PROCESS))
        size = self.rng.randint(1, 4)
        return msgspec.structs.replace(
            ENTRY,
            participant=self._participant(),
            form=form,
            size_min=size,
            size_max=size,
            rank=self.rng.choice((None, *range(size))),
            before=self.rng.choice((None, *range(2 * size))),
            user=self.rng.choice(("ann", "ann", "bob")),
        )

    def _member(self) -> Member:
        daemon = self.rng.choice(self.world.daemons)
        return msgspec.structs.replace(
            MEMBER,
            rank=self.rng.randint(-1, 3),
            node=daemon.node,
            participant=self._participant(),
            address=address_of(daemon.host, 0),
        )


def lie_to(seeds: int) -> None:
    for seed in range(seeds):
        _lie_to_one(seed)


def _lie_to_one(seed: int) -> None:
    scenario = Scenario(seed, 3)
    world = scenario.world
    world.checks = NoChecks(world)
    liar = Liar(world)
    scenario.plan_clients()
    for k in range(WORDS_PER_RUN):
        world.clock.at(FAULTS_END_S * k / WORDS_PER_RUN, liar.speak)
    world.clock.run_until(FAULTS_END_S)


def test_nothing_that_a_peer_says_raises() -> None:
    lie_to(60)


def test_the_liar_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pursuit, "_flaw", lambda self, message: None)
    with pytest.raises(LookupError):
        lie_to(150)
