"""Ten stories of a rendezvous, one for each thing that a user may see happen.

python -m tests.scenarios.stories        writes their transcripts anew, beside this file
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mingled.core import local
from mingled.core.config import Config
from mingled.core.words import Form
from tests.core.stage import failed, noticed, ready
from tests.scenarios.play import Play
from tests.scenarios.transcript import render
from tests.sim.clients import Client

HERE = Path(__file__).parent

Story = Callable[[], Play]


def plain() -> Play:
    """The plain form, a rank and no size: rank 1 waits, rank 0 comes, and one after the other is
    released; nobody is told who else is there."""
    play = Play(2)
    one = play.join(2, rank=1, form=Form.PLAIN)
    play.wait(5.0)
    zero = play.join(1, rank=0, form=Form.PLAIN)
    play.wait(2.0)
    assert ranks(zero, one) == [0, 1]
    assert ready(zero).master_addr == ready(one).master_addr == "10.0.0.1"
    assert ready(zero).master_port == ready(one).master_port
    assert {ready(c).members for c in (zero, one)} == {()}
    assert released_first(play) is zero
    return play


def rank_0_last() -> Play:
    """Explicit ranks and a size: ranks 1 and 2 wait for rank 0, which comes 20 s later."""
    play = Play(3)
    others = [play.join(host, rank=host - 1, size=3) for host in (2, 3)]
    play.wait(20.0)
    assert all(c.waits for c in others)
    zero = play.join(1, rank=0, size=3)
    play.wait(2.0)
    assert ranks(zero, *others) == [0, 1, 2]
    assert one_round(zero, *others).master_addr == "10.0.0.1"
    assert released_first(play) is zero
    assert all("mingle doctor --job bert" in noticed(c)[0] for c in others), "the hint at 10 s"
    return play


def automatic() -> Play:
    """Four nodes start the same line at once and nobody names a rank: the first to have waited
    long enough leads, and ranks follow the addresses."""
    play = Play(4)
    everybody = [play.join(host, size=4) for host in (1, 2, 3, 4)]
    play.wait(2.0)
    assert sorted(ranks(*everybody)) == [0, 1, 2, 3]
    zero = released_first(play)
    assert ready(zero).rank == 0
    assert one_round(*everybody).master_addr == address(zero)
    others = [c for c in everybody if c is not zero]
    assert ranks(*others) == [1, 2, 3], "in the order of their addresses"
    return play


def two_leaders() -> Play:
    """A network is split and each half elects a leader; once it is whole again the two find each
    other, one yields, and its follower goes along."""
    play = Play(4)
    play.split(1, 2)
    everybody = [play.join(host, size=4) for host in (1, 2, 3, 4)]
    play.wait(2.0)
    leaders = [host for host in (1, 2, 3, 4) if play.leads(host)]
    assert len(leaders) == 2, "each half has its own"
    assert all(c.waits for c in everybody)
    play.heal()
    play.wait(8.0)
    assert sorted(ranks(*everybody)) == [0, 1, 2, 3]
    assert released_first(play).host + 1 in leaders
    one_round(*everybody)
    assert sum(play.leads(host) for host in (1, 2, 3, 4)) == 1
    return play


def clone() -> Play:
    """Two machines have the same host name, since their disks are copies, and the same script asks
    for rank 1 on both: they are told apart by their addresses."""
    play = Play(3)
    play.clone(3, of=2)
    zero = play.join(1, rank=0, size=3)
    one = play.join(2, rank=1, size=3)
    play.wait(2.0)
    twice = play.join(3, rank=1, size=3)
    play.wait(2.0)
    sentence = failed(twice, "refused")
    assert "job bert: rank 1 is asked for twice" in sentence
    assert "by gpu2 (10.0.0.2) and by gpu2 (10.0.0.3)" in sentence
    assert one.waits
    two = play.join(3, rank=2, size=3)
    play.wait(2.0)
    assert ranks(zero, one, two) == [0, 1, 2]
    members = one_round(zero, one, two).members
    assert [(m.host, m.address) for m in members[1:]] == [
        ("gpu2", "10.0.0.2"),
        ("gpu2", "10.0.0.3"),
    ]
    assert {ready(c).nnodes for c in (zero, one, two)} == {3}
    assert {ready(c).local_rank for c in (one, two)} == {0}
    return play


def nack_by_firewall() -> Play:
    """First a firewall drops rank 0's port, then another one the ephemeral ports between two
    followers: each time the proof names both ends, nobody starts, and all goes on once it is
    open."""
    play = Play(3)
    play.say("a firewall on gpu1 drops what gpu3 sends to rank 0's port")
    play.firewall(3, 1, ring=False)
    clients = [play.join(host, rank=host - 1, size=3) for host in (1, 2, 3)]
    play.wait(5.4)
    assert all(c.waits for c in clients)
    assert_noted(
        clients, "gpu3 (10.0.0.3) cannot reach rank 0's port on gpu1, TCP 10.0.0.1 port 29"
    )
    play.no_firewall()
    play.say("a firewall on gpu3 drops what gpu2 sends to the ephemeral ports")
    play.firewall(2, 3, ring=True)
    play.wait(5.6)
    assert all(c.waits for c in clients)
    assert_noted(clients, "gpu2 (10.0.0.2) cannot reach gpu3, TCP 10.0.0.3 port 4")
    assert_noted(clients, "a firewall on the ephemeral ports?")
    play.no_firewall()
    play.wait(2.0)
    assert ranks(*clients) == [0, 1, 2]
    assert one_round(*clients).round == 1, "what was aborted is no round"
    return play


def leader_dies_before_the_seal() -> Play:
    """The leader's daemon is killed while it still gathers: its followers lose nothing, one of them
    leads, and the round is sealed when the third has come."""
    play = Play(4)
    first = play.join(1, size=3)
    play.wait(0.5)
    second = play.join(2, size=3)
    play.wait(1.0)
    assert play.leads(1)
    play.kill_daemon(1)
    play.wait(1.0)
    assert first.failure is not None
    assert second.waits
    assert play.leads(2)
    others = [play.join(host, size=3) for host in (3, 4)]
    play.wait(1.0)
    assert ranks(second, *others) == [0, 1, 2]
    assert one_round(second, *others).master_addr == "10.0.0.2"
    return play


def leader_dies_after_the_seal() -> Play:
    """Rank 0's machine loses power in the middle of a round: after 15 s of silence it is lost, the
    survivors join again, elect a leader that was there, keep their ranks where those are free, and
    a spare takes the place that is left."""
    play = Play(4)
    first = [play.join(1, size=3)]
    play.wait(0.5)
    first += [play.join(host, size=3) for host in (2, 3)]
    play.wait(0.5)
    assert ranks(*first) == [0, 1, 2]
    play.power_off(1)
    play.until(lambda: all(told_gone(c) for c in first[1:]))
    assert [told_gone(c) for c in first[1:]] == [[(0, "lost")]] * 2
    survivors = []
    for client in first[1:]:
        survivors.append(play.again(client))
        play.wait(0.5)
    assert all(c.waits for c in survivors), "the size is three"
    spare = play.join(4, size=3)
    play.until(lambda: not spare.waits)
    assert sorted(ranks(*survivors, spare)) == [0, 1, 2]
    leader = next(c for c in survivors if ready(c).rank == 0)
    other = next(c for c in survivors if c is not leader)
    assert ready(other).rank == other.host, "it has kept its own"
    second = one_round(*survivors, spare)
    assert second.master_addr == address(leader)
    return play


def elastic_grow() -> Play:
    """--nnodes 2:3, and two are there: when nobody else has come for 3 s they start; a third comes
    late, is told who runs, and is in the next round."""
    play = Play(3)
    first = [play.elastic(host, 2, 3) for host in (1, 2)]
    play.wait(5.0)
    assert sorted(ranks(*first)) == [0, 1]
    assert ready(first[0]).nnodes == 2
    play.wait(5.0)
    late = play.elastic(3, 2, 3)
    play.wait(10.0)
    assert late.waits
    running = [m.running for m in late.heard if isinstance(m, local.Progress)][-1]
    assert running is not None
    assert (running.round, set(running.hosts)) == (1, {"gpu1", "gpu2"})
    again = []
    for client in first:
        again.append(play.again(client))
        play.wait(1.0)
    assert sorted(ranks(*again, late)) == [0, 1, 2]
    assert ranks(*again) == ranks(*first), "both have kept their own"
    assert one_round(*again, late).round == 2
    return play


def elastic_shrink(last_back: int = 2) -> Play:
    """--nnodes 2:4, and one of four is lost: the survivors join again, two of them wait for the
    third, although two would be enough, and once it is back nobody else is waited for."""
    play = Play(4)
    first = [play.elastic(host, 2, 4) for host in (1, 2, 3, 4)]
    play.wait(10.0)
    *survivors, lost = sorted(first, key=lambda c: ready(c).rank)
    assert ranks(*survivors, lost) == [0, 1, 2, 3]
    play.kill(lost)
    play.wait(0.5)
    assert [told_gone(c) for c in survivors] == [[(3, "lost")]] * 3
    last = survivors.pop(last_back)
    again = [play.again(c) for c in survivors]
    play.wait(4.5)
    assert all(c.waits for c in again), "enough, but the third may still come"
    if last_back:  # else nobody leads for now who could say it
        where = f"gpu{last.host + 1} ({address(last)})"
        assert_noted(again, f"a member was lost; {where} may still join again, for 39 s at most")
    again.append(play.again(last))
    play.wait(0.5)
    assert ranks(*again) == ranks(*survivors, last), "all have kept their own"
    assert one_round(*again).round == 2
    assert (ready(last).nnodes, ready(again[0]).nnodes) == (4, 3)
    return play


STORIES: dict[str, Story] = {
    story.__name__.replace("_", "-"): story
    for story in (
        plain,
        rank_0_last,
        automatic,
        two_leaders,
        clone,
        nack_by_firewall,
        leader_dies_before_the_seal,
        leader_dies_after_the_seal,
        elastic_grow,
        elastic_shrink,
    )
}
"""By the names of their files."""


# ---------------------------------------------------------------- what stories say of themselves


def ranks(*clients: Client) -> list[int]:
    return [ready(c).rank for c in clients]


def address(client: Client) -> str:
    return f"10.0.0.{client.host + 1}"


def one_round(*clients: Client) -> Config:
    """All have the same roster, master and round; as one of them was told."""
    configs = [ready(c) for c in clients]
    told = {(c.claim, c.round, c.master_addr, c.master_port, c.members) for c in configs}
    assert len(told) == 1, told
    assert {m.participant for m in configs[0].members} == {c.participant for c in clients}
    return configs[0]


def released_first(play: Play) -> Client:
    """Of all who ever were."""
    return play.released[0]


def assert_noted(clients: Sequence[Client], text: str) -> None:
    """Every one of them was shown it while it waited."""
    for client in clients:
        notes = [m.note for m in client.heard if isinstance(m, local.Progress)]
        assert any(text in note for note in notes), f"{client} was shown {notes}"


def told_gone(client: Client) -> list[tuple[int, str]]:
    return [(m.rank, m.how) for m in client.heard if isinstance(m, local.Gone)]


# ---------------------------------------------------------------- the files


def path_of(name: str) -> Path:
    return HERE / f"{name}.txt"


def text_of(name: str) -> str:
    """The story, played now."""
    story = STORIES[name]
    title = " ".join((story.__doc__ or "").split())
    return render(title, story())


def main() -> int:
    texts = {name: text_of(name) for name in STORIES}  # all of them, or none is written
    for name, text in texts.items():
        path_of(name).write_text(text, encoding="utf-8")
    sys.stdout.write(f"{len(STORIES)} stories written to {HERE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
