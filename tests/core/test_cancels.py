"""`mingle cancel` as the core does it: who is told, who may, and what is answered."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mingled.core import actions, local
from mingled.core.messages import NodeCancelled
from mingled.core.table import State
from mingled.core.words import Form
from mingled.errors import Cancelled
from tests.core.stage import JOB, Stage, failed, fates, ready
from tests.sim.clients import Client

OWNER = (1000, "ann")
SETTLED_S = 12.0
"""Longer than a cancel may take."""


def trio(stage: Stage, **changes: Any) -> list[Client]:
    """One on each of three hosts, released."""
    clients = [stage.join(host, size=3, **changes) for host in (1, 2, 3)]
    stage.wait()
    for client in clients:
        ready(client)
    return clients


def cancel(
    stage: Stage, host: int, asker: tuple[int, str] = OWNER, *, wait_s: float = SETTLED_S
) -> local.Local | None:
    """What the daemon of gpu`host` answers; None: nothing yet."""
    request = stage.world.cancel(host - 1, JOB, *asker)
    stage.wait(wait_s)
    for action in stage.world.answers:
        if isinstance(action, actions.Answer) and action.request == request:
            return action.message
    return None


def nodes(answer: local.Local | None) -> dict[str, NodeCancelled]:
    assert isinstance(answer, local.Cancelled), answer
    assert len({n.host for n in answer.nodes}) == len(answer.nodes)
    return {node.host: node for node in answer.nodes}


def counts(answer: local.Local | None) -> dict[str, int]:
    found = nodes(answer)
    assert not [n for n in found.values() if n.flaw or n.kept]
    return {host: node.ended for host, node in found.items()}


def leader(stage: Stage) -> int:
    return next(h for h in (1, 2, 3) if stage.state(h) is State.LEADING)


def follower(stage: Stage) -> int:
    return next(h for h in (1, 2, 3) if h != leader(stage))


def nothing_left(stage: Stage) -> None:
    assert not [d.core.jobs for d in stage.world.daemons if d.core.jobs]
    stage.world.checks.empty()


# ---------------------------------------------------------------- whom it reaches


@pytest.mark.parametrize("from_leader", [True, False])
def test_a_running_job_ends_everywhere(from_leader: bool) -> None:
    stage = Stage(3)
    clients = trio(stage)
    asked = leader(stage) if from_leader else follower(stage)
    answer = cancel(stage, asked, wait_s=1.0)
    assert counts(answer) == {"gpu1": 1, "gpu2": 1, "gpu3": 1}
    for client in clients:
        sentence = failed(client, Cancelled.code)
        assert client.failure is not None
        assert client.failure.stop
        assert sentence == (
            f"job bert: cancelled on gpu{client.host + 1} while it ran by ann on gpu{asked}"
        )
        assert {how for _, how in fates(client)} <= {"left"}  # a cancel is nobody's loss
    stage.wait(60.0)
    nothing_left(stage)


@pytest.mark.parametrize("asked", [1, 2])
def test_a_waiting_job_ends_everywhere(asked: int) -> None:
    stage = Stage(3)
    clients = [stage.join(1, rank=0, size=4), *(stage.join(host, size=4) for host in (2, 3))]
    stage.wait()
    assert counts(cancel(stage, asked)) == {"gpu1": 1, "gpu2": 1, "gpu3": 1}
    for client in clients:
        assert "before it started" in failed(client, Cancelled.code)
    nothing_left(stage)


def test_those_who_wait_for_the_next_round_are_reached_too() -> None:
    stage = Stage(3)
    pair = [stage.join(host, size=2) for host in (1, 2)]
    stage.wait()
    late = stage.join(3, size=2)
    stage.wait()
    assert counts(cancel(stage, 3)) == {"gpu1": 1, "gpu2": 1, "gpu3": 1}
    for client in (*pair, late):
        failed(client, Cancelled.code)
    nothing_left(stage)


def test_the_plain_form() -> None:
    stage = Stage(3)
    clients = [stage.join(host, rank=host - 1, form=Form.PLAIN) for host in (1, 2, 3)]
    stage.wait()
    assert counts(cancel(stage, 3)) == {"gpu1": 1, "gpu2": 1, "gpu3": 1}
    assert all(c.failure is not None and c.failure.stop for c in clients)
    nothing_left(stage)


def test_a_plain_job_without_rank_0_cannot_be_ended_for_certain() -> None:
    stage = Stage(3)
    clients = [stage.join(host, rank=host - 1, form=Form.PLAIN) for host in (1, 2, 3)]
    stage.wait()
    stage.world.leave(clients[0])
    stage.wait()
    found = nodes(cancel(stage, 3))
    assert found["gpu3"].ended == 1
    assert "rank 0 alone knows the others" in found["elsewhere"].flaw
    assert clients[1].failure is None


def test_a_new_run_of_the_same_name_is_not_touched() -> None:
    stage = Stage(3)
    trio(stage)
    cancel(stage, 2)
    assert all(ready(c).round == 1 for c in trio(stage))


def test_a_job_that_is_between_prepare_and_its_outcome() -> None:
    stage = Stage(2)
    one, two = stage.join(1, rank=0), stage.join(2)
    stage.wait_for(2, State.PREPARED)
    answer = cancel(stage, 2)
    assert counts(answer)["gpu2"] == 1
    assert all(c.failure is not None for c in (one, two))
    nothing_left(stage)


# ---------------------------------------------------------------- who cannot be told


def test_a_node_without_its_daemon_is_named() -> None:
    stage = Stage(3)
    trio(stage)
    dead = next(h for h in (1, 2, 3) if h != leader(stage))
    asked = next(h for h in (1, 2, 3) if h not in (dead, leader(stage)))
    stage.world.reattaches = 0.0
    stage.world.crash(dead - 1)
    stage.wait(5.0)
    found = nodes(cancel(stage, asked))
    assert {h for h, n in found.items() if n.flaw} == {f"gpu{dead}"}
    assert "its participants may go on" in found[f"gpu{dead}"].flaw


def test_a_daemon_that_comes_back_is_told_then() -> None:
    stage = Stage(3)
    clients = trio(stage)
    lead = leader(stage)
    away = follower(stage) - 1
    asked = next(h for h in (1, 2, 3) if h - 1 != away and h != lead)
    stage.world.air.split({away}, 3, [0])
    found = nodes(cancel(stage, asked))
    assert "no answer within" in found[f"gpu{away + 1}"].flaw
    assert clients[away].failure is None
    assert not stage.core(lead).idle, "it is still to tell that one"
    stage.world.air.heal()
    stage.wait(15.0)
    failed(clients[away], Cancelled.code)
    stage.wait(90.0)
    nothing_left(stage)
    assert all(stage.core(host).idle for host in (1, 2, 3))


def test_without_the_leader_nobody_is_confirmed() -> None:
    stage = Stage(3)
    trio(stage)
    lead = leader(stage)
    asked = follower(stage)
    stage.world.air.split({lead - 1}, 3, [0])
    found = nodes(cancel(stage, asked))
    assert {h for h, n in found.items() if not n.flaw} == {f"gpu{asked}"}
    assert len(found) == 3
    assert any("which would have told it" in n.flaw for n in found.values())


# ---------------------------------------------------------------- who may


def test_another_user_is_refused() -> None:
    stage = Stage(3)
    clients = trio(stage)
    answer = cancel(stage, 2, (1001, "bob"))
    assert isinstance(answer, local.Failed)
    assert answer.code == "not-permitted"
    assert "belongs to ann, you are bob" in answer.sentence
    assert not [c for c in clients if c.failure]


def test_root_may_end_anybodys() -> None:
    stage = Stage(3)
    clients = trio(stage)
    assert counts(cancel(stage, 2, (0, "root"))) == {"gpu1": 1, "gpu2": 1, "gpu3": 1}
    assert all("by root on gpu2" in failed(c, Cancelled.code) for c in clients)


def mixed(stage: Stage) -> list[Client]:
    """Rank 0 is ann's, on gpu1; gpu2 has bob's."""
    users = ((1, "ann", 0), (2, "bob", None), (3, "ann", None))
    clients = [
        stage.join(host, size=3, rank=rank, user=user, any_user=True) for host, user, rank in users
    ]
    stage.wait()
    return clients


def test_rank_0s_owner_ends_the_whole_job() -> None:
    stage = Stage(3)
    clients = mixed(stage)
    assert counts(cancel(stage, 3)) == {"gpu1": 1, "gpu2": 1, "gpu3": 1}
    assert all(c.failure is not None and c.failure.stop for c in clients)


def test_others_end_their_own_part() -> None:
    stage = Stage(3)
    ann, bob, other = mixed(stage)
    found = nodes(cancel(stage, 2, (1001, "bob")))
    assert (found["gpu2"].ended, found["gpu1"].kept, found["gpu3"].kept) == (1, 1, 1)
    failed(bob, Cancelled.code)
    assert ann.failure is None
    assert other.failure is None


def test_a_follower_cannot_speak_for_everyone() -> None:
    """Its daemon says so all the same."""
    stage = Stage(3)
    ann, bob, other = mixed(stage)
    original = stage.core(2).jobs[JOB].cancels
    send = original._ctx.send

    def forged(link: int, message: Any) -> None:
        everyone = hasattr(message, "everyone")
        send(link, msgspec.structs.replace(message, everyone=True) if everyone else message)

    original._ctx.send = forged  # type: ignore[method-assign]  # a daemon that lies
    found = nodes(cancel(stage, 2, (1001, "bob")))
    assert (found["gpu1"].kept, found["gpu3"].kept) == (1, 1)
    assert ann.failure is None
    assert other.failure is None
    failed(bob, Cancelled.code)


# ---------------------------------------------------------------- what is said


def test_processes_that_do_not_listen_are_named() -> None:
    stage = Stage(2)
    one, two = stage.join(1, rank=0, listens=True), stage.join(2, rank=1)
    stage.wait()
    found = nodes(cancel(stage, 1))
    assert found["gpu1"].unheard == ()
    assert found["gpu2"].unheard == (two.holder.pid,)
    failed(one, Cancelled.code)


def test_nobody_here_but_elsewhere() -> None:
    stage = Stage(2)
    stage.join(1, rank=0)
    stage.wait()
    answer = cancel(stage, 2)
    assert answer == local.Cancelled(job=JOB, nodes=(), elsewhere=("10.0.0.1",))


def test_nobody_anywhere() -> None:
    assert cancel(Stage(1), 1) == local.Cancelled(job=JOB, nodes=())
