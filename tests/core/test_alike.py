"""Who may be in a round with whom, by what they run, and what they are told before it starts."""

from __future__ import annotations

from typing import Any

import pytest

from mingled.core.software import Software
from mingled.core.words import Form
from tests.core.stage import Stage, failed, noticed, ready
from tests.sim.clients import Client

OLD, NEW = Software(torch="2.11.0"), Software(torch="2.13.0")
UNKNOWN = Software(why=(("torch", "no torch is found for its Python"),))
TORCH = ("torch",)


def told(client: Client) -> list[str]:
    """What it was warned of before its release."""
    kinds = [type(m).__name__ for m in client.heard]
    assert "Notice" not in kinds[kinds.index("Ready") :], "too late"
    return noticed(client)


def test_a_difference_is_told_to_everybody_before_the_release() -> None:
    stage = Stage(3)
    some = [stage.join(n, size=3, software=s) for n, s in ((1, NEW), (2, NEW), (3, OLD))]
    stage.wait()
    for client in some:
        assert ready(client).world_size == 3
        assert told(client) == ["job bert: gpu3 runs torch 2.11.0, the others 2.13.0"]


def test_nothing_is_told_where_all_run_the_same() -> None:
    stage = Stage(2)
    some = [stage.join(n, software=NEW, require_same=TORCH) for n in (1, 2)]
    stage.wait()
    assert [(ready(c).world_size, told(c)) for c in some] == [(2, []), (2, [])]


def test_participants_of_one_node_are_compared_too() -> None:
    stage = Stage(1)
    some = [stage.join(1, software=Software(script=text)) for text in ("aa", "bb")]
    stage.wait()
    for client in some:
        assert told(client) == ["job bert: gpu1 (pid 1) runs script aa, gpu1 (pid 2) bb"]


def test_each_round_says_what_differs_in_it() -> None:
    stage = Stage(2)
    first = [stage.join(n, software=s) for n, s in ((1, NEW), (2, OLD))]
    stage.wait()
    again = [stage.join(n, software=NEW, like=c) for n, c in zip((1, 2), first, strict=True)]
    stage.wait(20.0)
    assert {(ready(c).round, len(told(c))) for c in first} == {(1, 1)}
    assert {ready(c).round for c in again} == {2}
    assert not any("torch" in sentence for c in again for sentence in noticed(c))


@pytest.mark.parametrize(
    ("asker", "late", "says"),
    [
        (1, OLD, "runs torch 2.11.0, gpu1 (10.0.0.1) 2.13.0"),
        (2, OLD, "runs torch 2.11.0, gpu1 (10.0.0.1) 2.13.0"),
        (1, UNKNOWN, "its torch is not known (no torch is found for its Python)"),
    ],
)
def test_the_later_comer_is_refused(asker: int, late: Software, says: str) -> None:
    """Whichever side asks."""
    stage = Stage(3)
    here = stage.join(1, rank=0, software=NEW, require_same=TORCH if asker == 1 else ())
    stage.wait()
    wrong = stage.join(2, software=late, require_same=TORCH if asker == 2 else ())
    stage.wait()
    sentence = failed(wrong, "refused")
    assert sentence.startswith("job bert: gpu2 (10.0.0.2)")
    assert says in sentence
    assert f"gpu{asker} (10.0.0.{asker}) asks for the same (--require-same torch)" in sentence
    assert here.waits
    right = stage.join(3, software=NEW)
    stage.wait()
    assert ready(here).members == ready(right).members


def test_a_follower_refuses_another_through_the_leader() -> None:
    """The leader itself asks for nothing, and knows nothing of itself."""
    stage = Stage(3)
    leader = stage.join(1, rank=0, size=3)
    stage.wait()
    second = stage.join(2, size=3, software=NEW)
    stage.wait()
    third = stage.join(3, size=3, software=NEW, require_same=TORCH)
    stage.wait()
    assert "gpu1 (10.0.0.1): its torch is not known" in failed(third, "refused")
    assert leader.waits
    assert second.waits


def test_whoever_cannot_say_its_own_is_refused_at_once() -> None:
    stage = Stage(1)
    alone = stage.join(1, size=1, software=UNKNOWN, require_same=TORCH)
    stage.wait(0.01)
    sentence = failed(alone, "refused")
    assert "its torch is not known (no torch is found for its Python)" in sentence
    assert "on gpu1" in sentence


def test_two_of_one_node_that_differ_meet_at_the_desk() -> None:
    """While both still search: no leader could have compared them."""
    stage = Stage(2)
    first = stage.join(1, rank=1, software=NEW, require_same=TORCH)
    second = stage.join(1, rank=0, software=OLD)
    stage.wait(0.01)
    assert "pid 2 of ann runs torch 2.11.0, pid 1 of ann 2.13.0" in failed(second, "refused")
    assert first.waits


def in_a_round(stage: Stage, script: str) -> list[Client]:
    """Two of three, at most, all of which require one script."""
    pair = [stage.join(n, **three(script)) for n in (1, 2)]
    stage.wait(6.0)
    assert {ready(c).round for c in pair} == {1}
    return pair


def three(script: str) -> dict[str, Any]:
    software = Software(script=script)
    return {"size": 2, "size_max": 3, "software": software, "require_same": ("script",)}


def test_a_newcomer_must_fit_the_round_that_runs() -> None:
    """Else it would wait for the next one, and keep out who comes back for that."""
    stage = Stage(3)
    pair = in_a_round(stage, "aa")
    late = stage.join(3, **three("bb"))
    stage.wait(1.0)
    assert "gpu3 (10.0.0.3) runs script bb, gpu" in failed(late, "refused")
    again = [stage.join(c.host + 1, like=c, lost="exit 1", **three("aa")) for c in pair]
    stage.wait(20.0)
    assert {ready(c).round for c in again} == {2}


def test_a_script_may_be_mended_between_two_rounds() -> None:
    stage = Stage(3)
    pair = in_a_round(stage, "aa")
    again = []
    for client in pair:
        again.append(stage.join(client.host + 1, like=client, lost="exit 1", **three("bb")))
        stage.wait(1.0)
    late = stage.join(3, **three("aa"))
    stage.wait(20.0)
    assert {ready(c).round for c in again} == {2}
    failed(late, "refused")


def test_leaders_that_meet_compare_their_followers() -> None:
    """Each half of the network has found its own; nobody of the two halves fits the other."""
    stage = Stage(4)
    stage.world.air.split({0, 1}, 4, [0])
    some = [
        stage.join(n, size=4, software=NEW if n < 3 else OLD, require_same=TORCH)
        for n in (1, 2, 3, 4)
    ]
    stage.wait(3.0)
    assert all(client.waits for client in some)
    stage.world.air.heal()
    stage.wait(20.0)
    refused = [client for client in some if client.failure is not None]
    assert len({client.join.software.torch for client in refused if client.join.software}) == 1
    assert len(refused) == 2
    assert all(
        "asks for the same" in failed(c, "refused") or "ask for" in failed(c, "refused")
        for c in refused
    )


def test_the_plain_form() -> None:
    stage = Stage(3)
    zero = stage.join(1, rank=0, form=Form.PLAIN, software=NEW)
    stage.wait()
    one = stage.join(2, rank=1, form=Form.PLAIN, software=OLD)
    stage.wait()
    sentence = "job bert: gpu1 runs torch 2.13.0, gpu2 2.11.0"
    assert told(one) == [sentence]
    assert noticed(zero) == [sentence], "it was released before"
    two = stage.join(3, rank=2, form=Form.PLAIN, software=NEW, require_same=TORCH)
    stage.wait()
    assert "gpu2 (10.0.0.2) 2.11.0" in failed(two, "refused")
    assert ready(zero).rank == 0


def test_a_newer_side_may_require_what_we_cannot_compare() -> None:
    stage = Stage(1)
    newer = stage.join(1, software=NEW, require_same=("weather",))
    stage.wait(0.01)
    assert "cannot compare weather: install the same mingled" in failed(newer, "refused")
