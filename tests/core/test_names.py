"""A participant that asks for a name has one for as long as it holds its rank."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mingled.core import actions, events
from mingled.core.local import Join
from mingled.core.words import Form, JobId
from mingled.errors import BadInput
from tests.sim.network import Air
from tests.sim.world import Daemon, World

from .stage import Stage, noticed, ready

Name = actions.PublishName | actions.WithdrawName


class Named(World):
    """Writes down what is to be said of names, by host."""

    def __init__(self) -> None:
        rng = random.Random(1)
        super().__init__(rng, 2, Air(rng, networks=1, loss=0.0, delay_s=0.001))
        self.names: list[tuple[int, Name]] = []

    def _perform(self, daemon: Daemon, action: actions.Action) -> None:
        if isinstance(action, Name):
            self.names.append((daemon.host + 1, action))
        super()._perform(daemon, action)


def said(world: Named) -> dict[int, list[str]]:
    """By host, in order: names published, `-` for one withdrawn."""
    found: dict[int, list[str]] = {}
    for host, action in world.names:
        word = action.name if isinstance(action, actions.PublishName) else "-"
        found.setdefault(host, []).append(word)
    return found


def test_from_the_release_to_the_end() -> None:
    world = Named()
    stage = Stage(world=world)
    first = stage.join(1, rank=0, named=True)
    second = stage.join(2, rank=1, named=True)
    assert world.names == []
    stage.wait()
    assert said(world) == {1: ["bert-0"], 2: ["bert-1"]}
    addresses = {h: a.address for h, a in world.names if isinstance(a, actions.PublishName)}
    assert addresses == {1: ready(first).address, 2: ready(second).address}
    world.leave(second)
    stage.wait()
    assert said(world) == {1: ["bert-0"], 2: ["bert-1", "-"]}


def test_nobody_who_did_not_ask_has_one() -> None:
    world = Named()
    stage = Stage(world=world)
    stage.join(1, rank=0)
    stage.join(2, rank=1, named=True)
    stage.wait()
    assert said(world) == {2: ["bert-1"]}


def test_a_next_round_names_anew() -> None:
    world = Named()
    stage = Stage(world=world)
    first = stage.join(1, rank=0, named=True)
    second = stage.join(2, rank=1, named=True)
    stage.wait()
    stage.join(1, rank=0, named=True, like=first)
    stage.join(2, rank=1, named=True, like=second)
    stage.wait()
    assert said(world) == {1: ["bert-0", "-", "bert-0"], 2: ["bert-1", "-", "bert-1"]}


def test_the_plain_form() -> None:
    world = Named()
    stage = Stage(world=world)
    stage.join(1, rank=0, form=Form.PLAIN, named=True)
    stage.join(2, rank=3, form=Form.PLAIN, named=True)
    stage.wait(10)
    assert said(world) == {1: ["bert-0"], 2: ["bert-3"]}


def test_a_daemon_that_comes_back_names_again() -> None:
    world = Named()
    stage = Stage(world=world)
    stage.join(1, rank=0, named=True)
    stage.join(2, rank=1, named=True)
    stage.wait()
    world.crash(1)
    world.restart(1)
    stage.wait(60)
    assert said(world)[2] == ["bert-1", "bert-1"]


def test_a_refusal_is_told_to_whom_it_concerns() -> None:
    stage = Stage(world=Named())
    first, second = stage.join(1, rank=0, named=True), stage.join(2, rank=1, named=True)
    stage.wait()
    refused = events.NameRefused(
        participant=second.participant, name="bert-1.local", reason="it is taken"
    )
    stage.world.deliver(stage.world.daemons[1], refused)
    assert noticed(second)[-1] == "job bert: bert-1.local is not answered: it is taken"
    assert not any("bert-1.local" in sentence for sentence in noticed(first))


@pytest.mark.parametrize("job", ["it's", "a.b", "-bert", "b" * 62])
def test_fault_39_a_job_that_makes_no_host_name_is_refused(job: str) -> None:
    shape: dict[str, Any] = {"form": Form.PROCESS, "size_min": 4, "size_max": 4}
    Join(job=JobId(job), **shape)
    with pytest.raises(BadInput, match="is no host name"):
        Join(job=JobId(job), named=True, **shape)
