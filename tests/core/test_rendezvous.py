"""Short stories of whole rendezvous: events in, actions out, no network."""

from __future__ import annotations

import msgspec

from mingled.core import actions, events, local, messages
from mingled.core.table import State
from mingled.core.words import Form
from tests.core.samples import CARD
from tests.core.stage import JOB, Stage, failed, noticed, ready


def test_rank_0_comes_last() -> None:
    stage = Stage(3)
    others = [stage.join(host, rank=host - 1, size=3) for host in (2, 3)]
    stage.wait(20.0)
    assert all(client.waits for client in others)
    leader = stage.join(1, rank=0, size=3)
    stage.wait(1.0)
    assert [ready(c).rank for c in (leader, *others)] == [0, 1, 2]
    assert {ready(c).master_addr for c in (leader, *others)} == {"10.0.0.1"}
    assert {(ready(c).world_size, ready(c).nnodes) for c in others} == {(3, 3)}
    assert ready(others[0]).interface == "eth0"
    assert ready(others[0]).address == "10.0.0.2"


def test_fault_11_automatic_ranks_that_all_lead_settle_on_one() -> None:
    stage = Stage(4)
    stage.world.air.split({0, 1}, 4, [0])
    everybody = [stage.join(host, size=4) for host in (1, 2, 3, 4)]
    stage.wait(3.0)
    leaders = [host for host in (1, 2, 3, 4) if stage.state(host) is State.LEADING]
    assert len(leaders) == 2, "each half of the network has its own"
    stage.world.air.heal()
    stage.wait(10.0)
    assert sorted(ready(c).rank for c in everybody) == [0, 1, 2, 3]
    assert len({ready(c).claim for c in everybody}) == 1


def test_fault_05_two_explicit_rank_0() -> None:
    stage = Stage(2)
    pair = [stage.join(host, rank=0) for host in (1, 2)]
    stage.wait(2.0)
    loser, winner = sorted(pair, key=lambda c: c.waits)
    sentence = failed(loser, "conflict")
    assert f"rank 0 is gpu{winner.host + 1} (10.0.0.{winner.host + 1})" in sentence
    assert "ann" in sentence
    other = stage.join(loser.host + 1, rank=1)
    stage.wait(5.0)
    assert (ready(winner).rank, ready(other).rank) == (0, 1)


def test_explicit_rank_0_takes_over_from_an_elected_leader() -> None:
    stage = Stage(2)
    elected = stage.join(1)
    stage.wait(1.0)
    assert stage.state(1) is State.LEADING
    explicit = stage.join(2, rank=0)
    stage.wait(2.0)
    assert (ready(explicit).rank, ready(elected).rank) == (0, 1)


def test_fault_05_explicit_rank_0_finds_a_running_round() -> None:
    stage = Stage(3)
    first = [stage.join(1), stage.join(2)]
    stage.wait(2.0)
    leader = next(c for c in first if ready(c).rank == 0)
    late = stage.join(3, rank=0)
    stage.wait(2.0)
    where = f"gpu{leader.host + 1} (10.0.0.{leader.host + 1})"
    assert f"rank 0 is {where}, claimed there by ann" in failed(late, "conflict")
    assert not any(isinstance(m, local.Gone) for c in first for m in c.heard)


def test_fault_43_another_version_is_refused_with_a_sentence() -> None:
    stage = Stage(2)
    leader = stage.join(1, rank=0)
    stage.wait(0.5)
    claim = stage.core(1).jobs[JOB].claim
    assert claim is not None
    card = msgspec.structs.replace(CARD, host="gpu9")
    join = messages.Join(
        version=(9, 0), label=claim.job.label, claim=claim.nonce, job=JOB, node=card, entries=()
    )
    link = 1000
    here = events.Address(address="10.0.0.1", interface="eth0")
    core = stage.core(1)
    accepted = events.LinkAccepted(
        link=link, local=here, remote_address="10.0.0.9", label=claim.job.label
    )
    core.handle(accepted, 0.5)
    told = core.handle(events.FrameReceived(link=link, message=join), 0.5)
    refused = [a.message for a in told if isinstance(a, actions.SendFrame)]
    assert [type(m) for m in refused] == [messages.Refuse]
    assert isinstance(refused[0], messages.Refuse)
    assert "job bert: gpu9 (10.0.0.9) speaks version 9.0" in refused[0].sentence
    assert actions.CloseLink(link=link) in told
    assert leader.waits


def test_a_daemon_back_over_a_new_link_leaves_no_trace_of_the_old_one() -> None:
    stage = Stage(2)
    zero, one = stage.join(1, rank=0), stage.join(2, rank=1)
    stage.wait(1.0)
    ready(zero), ready(one)
    two = stage.world.daemons[1]
    for link, side in list(two.ends.values()):  # only gpu2 notices
        link.broken, side.open = True, False
        two.ends.clear()
        stage.world.deliver(two, events.LinkClosed(link=side.number, reason="reset", answered=True))
    again = stage.join(2, rank=1)
    stage.wait(1.0)
    assert again.waits
    gone = [m for m in zero.heard if isinstance(m, local.Gone)]
    assert [(g.rank, g.how) for g in gone] == [(1, "unwatched"), (1, "running")]
    for client in (again, one, zero):
        stage.world.leave(client)
    stage.wait(1.0)
    assert not stage.core(1).jobs


def test_a_host_that_goes_dark_after_rank_0_left_is_not_waited_for() -> None:
    stage = Stage(2)
    zero, one = stage.join(1, rank=0), stage.join(2, rank=1)
    stage.wait(1.0)
    ready(zero), ready(one)
    stage.world.leave(zero)
    stage.wait(5.0)
    assert stage.core(1).jobs, "gpu1 is still the hub of a round that runs on gpu2"
    stage.world.crash(1, power=True)
    stage.wait(20.0)
    assert not stage.core(1).jobs
    stage.wait(11.0)  # its realm is let in for a while longer
    assert stage.core(1).deadline() is None


def test_an_end_after_stop_is_nothing() -> None:
    stage = Stage(1)
    client = stage.join(1, rank=0, size=1)
    stage.wait(1.0)
    ready(client)
    for event in (
        events.Stopped(reason="SIGTERM"),
        events.HolderEnded(participant=client.participant, status=0),
    ):
        stage.world.deliver(stage.world.daemons[0], event)
    assert not stage.core(1).jobs


def test_fault_08_sizes_that_differ_are_refused_naming_both() -> None:
    stage = Stage(2)
    stage.join(1, rank=0, size=2)
    wrong = stage.join(2, rank=1, size=3)
    stage.wait(1.0)
    sentence = failed(wrong, "refused")
    for part in ("job bert", "gpu2 (10.0.0.2)", "gpu1 (10.0.0.1)", "size 2", "size 3"):
        assert part in sentence


def test_forms_that_differ_are_refused() -> None:
    stage = Stage(2)
    stage.join(1, rank=0)
    wrong = stage.join(2, rank=1, form=Form.LAUNCHER)
    stage.wait(1.0)
    assert "one form on every machine" in failed(wrong, "refused")


def test_fault_06_a_rank_asked_for_twice_is_refused_naming_both() -> None:
    stage = Stage(3)
    stage.join(1, rank=0, size=3)
    first = stage.join(2, rank=1, size=3)
    stage.wait(1.0)
    second = stage.join(3, rank=1, size=3)
    here = stage.join(1, rank=1, size=3)
    stage.wait(1.0)
    for client in (second, here):
        sentence = failed(client, "refused")
        assert "rank 1 is asked for twice: by gpu2 (10.0.0.2)" in sentence
    assert "by gpu3 (10.0.0.3)" in failed(second, "refused")
    assert first.waits


def test_fault_14_the_timeout_lists_the_ranks_that_never_came() -> None:
    stage = Stage(2)
    waiting = [stage.join(1, rank=0, size=4, timeout_s=10), stage.join(2, rank=2, size=4)]
    stage.wait(11.0)
    sentence = failed(waiting[0], "timeout")
    assert "job bert" in sentence
    assert "2 of 4 were here (gpu1, gpu2); ranks 1, 3 never came" in sentence
    assert waiting[1].waits, "its own join has no timeout"


def test_the_timeout_says_that_nobody_was_heard() -> None:
    stage = Stage(1)
    alone = stage.join(1, rank=1, timeout_s=11)
    stage.wait(12.0)
    assert "no rank 0 was heard on eth0 10.0.0.1" in failed(alone, "timeout")
    assert any("mingle doctor --job bert" in sentence for sentence in noticed(alone)), (
        "the hint at 10 s"
    )


def test_plain_form() -> None:
    stage = Stage(3)
    early = stage.join(2, rank=1, form=Form.PLAIN)
    stage.wait(5.0)
    zero = stage.join(1, rank=0, form=Form.PLAIN)
    stage.wait(0.2)
    assert zero.waits, "one search window without a rival"
    stage.wait(0.3)
    late = stage.join(3, rank=7, form=Form.PLAIN)
    stage.wait(1.0)
    assert [ready(c).rank for c in (zero, early, late)] == [0, 1, 7]
    assert {ready(c).master_addr for c in (zero, early, late)} == {"10.0.0.1"}
    assert {(ready(c).world_size, ready(c).members) for c in (early, late)} == {(0, ())}


def test_a_plain_rank_belongs_to_one() -> None:
    stage = Stage(3)
    zero = stage.join(1, rank=0, form=Form.PLAIN)
    first = stage.join(2, rank=1, form=Form.PLAIN)
    stage.wait(1.0)
    assert (ready(zero).rank, ready(first).rank) == (0, 1)
    second = stage.join(3, rank=1, form=Form.PLAIN)
    stage.wait(1.0)
    assert "rank 1 is asked for twice" in failed(second, "refused")
    stage.world.leave(first)
    stage.wait(1.0)
    third = stage.join(3, rank=1, form=Form.PLAIN)
    stage.wait(1.0)
    assert ready(third).rank == 1, "the rank is free again"


def test_a_second_join_of_a_process_replaces_its_first() -> None:
    stage = Stage(2)
    first = stage.join(1, rank=0)
    second = stage.join(1, rank=0, like=first)
    assert "newer join of the same process" in failed(first, "cancelled")
    third = stage.join(2, rank=1)
    stage.wait(1.0)
    ready(second), ready(third)
    again = [stage.join(1, rank=0, like=second), stage.join(2, rank=1, like=third)]
    assert any("replaces the earlier join" in sentence for sentence in noticed(again[0]))
    stage.wait(1.0)
    assert ready(again[0]).master_port != 0
    assert ready(again[0]).members == ready(again[1]).members
    third = stage.join(1, rank=0, like=again[0], lost="CMD failed with exit 1")
    stage.wait(1.0)
    assert not any("replaces" in s for s in noticed(third)), "it has said so itself"


def test_leave_tells_the_others() -> None:
    stage = Stage(2)
    zero, one = stage.join(1, rank=0), stage.join(2, rank=1)
    stage.wait(1.0)
    stage.world.leave(one)
    stage.wait(1.0)
    gone = [m for m in zero.heard if isinstance(m, local.Gone)]
    assert [(g.rank, g.host, g.how) for g in gone] == [(1, "gpu2", "left")]
    assert stage.world.answers[-1] == actions.Answer(request=1, message=local.Done(count=1))
    stage.world.leave(zero)
    stage.wait(1.0)
    assert stage.core(1).idle
    assert not stage.core(1).jobs
    assert not stage.core(2).jobs


def test_leave_while_waiting() -> None:
    stage = Stage(1)
    client = stage.join(1, rank=0)
    stage.world.leave(client)
    assert "left on gpu1" in failed(client, "cancelled")
    assert not stage.core(1).jobs
    stage.wait(11.0)  # its realm is let in for a while longer
    assert stage.core(1).deadline() is None


def adopt(stage: Stage, token: str, uid: int) -> local.Local:
    holder = events.Holder(pid=77, identity="77", uid=uid, user="ann", watched=True)
    asked = events.AdoptAsked(request=9, token=token, uid=uid, holder=holder, pid=77)
    stage.world.deliver(stage.world.daemons[0], asked)
    answer = stage.world.answers[-1]
    assert isinstance(answer, actions.Answer)
    return answer.message


def token_of(stage: Stage) -> str:
    seat = next(iter(stage.core(1).jobs[JOB].seats.values()))
    assert seat.token is not None
    return seat.token


def test_adopt() -> None:
    stage = Stage(1)
    stage.world.adopts = False
    client = stage.join(1, rank=0, size=1, adopt=True)
    stage.wait(1.0)
    token = token_of(stage)
    vanished = events.ClientVanished(participant=client.participant)
    stage.world.deliver(stage.world.daemons[0], vanished)
    stranger = adopt(stage, token, uid=1001)
    assert isinstance(stranger, local.Failed)
    assert stranger.code == "not-permitted"
    assert adopt(stage, token, uid=1000) == local.Done(count=1)
    assert isinstance(adopt(stage, token, uid=1000), local.Failed), "a token works once"
    stage.wait(60.0)
    assert not stage.core(1).idle


def test_a_lease_that_no_shell_takes_over_ends() -> None:
    stage = Stage(1)
    stage.world.adopts = False
    stage.join(1, rank=0, size=1, adopt=True)
    stage.wait(1.0)
    assert not stage.core(1).idle
    stage.wait(10.0)
    assert stage.core(1).idle


def test_a_nack_names_the_culprit_and_gathering_goes_on() -> None:
    stage = Stage(3)
    stage.world.air.firewalled.add(0)
    clients = [stage.join(host, rank=host - 1, size=3) for host in (1, 2, 3)]
    stage.wait(4.0)
    assert all(client.waits for client in clients)
    notes = [m.note for m in clients[0].heard if isinstance(m, local.Progress)]
    assert any("gpu2 (10.0.0.2) cannot" in n or "gpu3 (10.0.0.3) cannot" in n for n in notes), notes
    assert any("gpu1" in n and "TCP 10.0.0.1 port" in n for n in notes), notes
    stage.world.air.heal()
    stage.wait(10.0)
    assert [ready(c).rank for c in clients] == [0, 1, 2]


def test_fault_01_the_leader_dies_after_our_ack() -> None:
    stage = Stage(2)
    stage.join(1, rank=0)
    follower = stage.join(2, rank=1)
    stage.wait_for(2, State.PREPARED)
    stage.world.crash(0)
    stage.wait(10.0)
    sentence = failed(follower, "indeterminate")
    assert "job bert, round 1" in sentence
    assert "gpu1 (10.0.0.1)" in sentence
    assert not stage.core(2).jobs


def test_a_link_that_breaks_after_our_ack_does_not_hide_the_outcome() -> None:
    stage = Stage(2)
    leader, follower = stage.join(1, rank=0), stage.join(2, rank=1)
    stage.wait_for(2, State.PREPARED)
    for link, _ in list(stage.world.daemons[1].ends.values()):
        link.cut()
    stage.wait(10.0)
    assert ready(leader).members == ready(follower).members


def test_fault_01_a_commit_that_was_lost_is_asked_for() -> None:
    stage = Stage(2)
    leader, follower = stage.join(1, rank=0), stage.join(2, rank=1)
    while leader.waits:
        stage.wait(0.0001)
    assert stage.state(2) is State.PREPARED
    for link, _ in list(stage.world.daemons[0].ends.values()):
        link.cut()
    stage.wait_for(2, State.UNSURE)
    stage.wait(5.0)
    assert ready(leader).members == ready(follower).members
    stage.world.leave(follower)
    stage.wait(1.0)
    gone = [m for m in leader.heard if isinstance(m, local.Gone)]
    assert gone[-1].how == "left"


def test_a_seat_that_joins_while_a_round_is_proven_waits_for_the_next() -> None:
    stage = Stage(2)
    first = [stage.join(1, rank=0), stage.join(2, rank=1)]
    stage.wait_for(2, State.PROVING)
    late = stage.join(2)
    stage.wait(1.0)
    assert [ready(c).rank for c in first] == [0, 1]
    running = [m.running for m in late.heard if isinstance(m, local.Progress)][-1]
    assert running is not None
    assert running.hosts == ("gpu1", "gpu2")
    for client in first:
        stage.world.leave(client)
    new = stage.join(1)
    stage.wait(2.0)
    assert {ready(late).rank, ready(new).rank} == {0, 1}


def test_stop_answers_everybody_who_waits() -> None:
    stage = Stage(2)
    waiting = [stage.join(1, rank=0, size=4), stage.join(1, rank=1, size=4)]
    elsewhere = stage.join(2, rank=2, size=4)
    stage.wait(1.0)
    stage.world.deliver(stage.world.daemons[0], events.Stopped(reason="SIGTERM"))
    stage.wait(1.0)
    for client in waiting:
        assert "mingled on gpu1 stops: SIGTERM" in failed(client, "daemon")
    assert elsewhere.waits
    assert stage.state(2) is State.SEARCHING


def test_status_shows_only_the_asker_s_jobs() -> None:
    stage = Stage(1)
    stage.join(1, rank=0)
    stage.wait(1.0)
    for uid, jobs in ((1000, ["bert"]), (0, ["bert"]), (1001, [])):
        asked = events.StatusAsked(request=uid, uid=uid)
        stage.world.deliver(stage.world.daemons[0], asked)
        answer = stage.world.answers[-1]
        assert isinstance(answer, actions.Describe)
        assert [job.job for job in answer.jobs] == jobs
