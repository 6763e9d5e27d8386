"""What a launcher knows of its round. The test plays the daemon."""

from __future__ import annotations

import os
import threading

import pytest

from mingled.core import local
from mingled.errors import Lost
from tests.cli.fake_daemon import JOB, FakeDaemon, gone, who
from tests.cli.running import PATIENCE_S

from .rounds import Round, once_finished, request


def test_signs_of_life_are_given(daemon: FakeDaemon) -> None:
    with Round(daemon) as round_:
        round_.served.request(local.Alive)
        round_.served.request(local.Alive)
        assert (round_.membership.waiting(), round_.membership.broken) == (0, "")
        assert (round_.membership.name, round_.membership.nnodes) == (f"job {JOB}", 3)


# ---------------------------------------------------------------- what breaks a round


def test_a_member_is_lost(daemon: FakeDaemon) -> None:
    with Round(daemon) as round_:
        round_.served.say(gone())
        lost = round_.until_said(
            "gpu3 (10.0.0.3, node rank 2) lost 4 s ago in round 1: no sign of life"
        )
        assert (round_.membership.waiting(), round_.membership.broken) == (1, lost)
        round_.served.say(gone("lost", rank=0))
        round_.until_said("gpu1 (10.0.0.1, node rank 0) lost")
        assert round_.membership.broken.startswith("gpu")
        assert "; gpu" in round_.membership.broken


def test_a_member_joins_anew(daemon: FakeDaemon) -> None:
    with Round(daemon) as round_:
        round_.served.say(gone("left", again=True), round_.waits(1))
        round_.until_said("gpu3 (10.0.0.3, node rank 2) begins anew")
        assert round_.membership.waiting() == 1
        assert "begins anew" in round_.membership.broken


def test_a_cancel(daemon: FakeDaemon) -> None:
    with Round(daemon) as round_:
        sentence = f"job {JOB}: cancelled on gpu2 while it ran by ann on gpu1"
        round_.served.say(local.Failed(code="cancelled", sentence=sentence, stop=True))
        round_.until_said("the job was cancelled; its workers are stopped")
        assert (round_.membership.waiting(), round_.membership.cancelled) == (1, sentence)
        with pytest.raises(Lost, match="the job was cancelled"):
            round_.membership.finish()


@pytest.mark.parametrize("how", ["left", "finished", "unwatched"])
def test_what_breaks_nothing(daemon: FakeDaemon, how: str) -> None:
    with Round(daemon) as round_:
        round_.hear(gone(how, rank=0))
        assert (round_.membership.waiting(), round_.membership.broken) == (0, "")


def test_the_others_have_gone_on(daemon: FakeDaemon) -> None:
    with Round(daemon) as round_:
        round_.served.say(gone("lost", rank=1, reason="round 2 was sealed without it"))
        round_.until_said(
            "the others go on without this node: round 2 was sealed without it; it joins again"
        )
        assert round_.membership.waiting() == 1
        assert "round 2 was sealed without it" in round_.membership.broken


# ---------------------------------------------------------------- newcomers


@pytest.mark.parametrize(
    ("size_max", "waiting", "counted"), [(4, 1, 1), (4, 3, 1), (6, 2, 2), (3, 1, 0)]
)
def test_newcomers_count_as_far_as_there_is_room(
    daemon: FakeDaemon, size_max: int, waiting: int, counted: int
) -> None:
    with Round(daemon, size_max=size_max) as round_:
        round_.hear(round_.waits(waiting))
        assert (round_.membership.waiting(), round_.membership.broken) == (counted, "")
        round_.hear(round_.waits(0))
        assert round_.membership.waiting() == 0


def test_nobody_is_let_in_at_the_end(daemon: FakeDaemon) -> None:
    with Round(daemon, size_max=4) as round_:
        round_.hear(round_.waits(1), gone("finished", rank=0))
        assert round_.membership.waiting() == 0
        round_.served.say(gone())  # but a loss is one
        round_.until(lambda: round_.membership.waiting() == 1)


# ---------------------------------------------------------------- the end of the work


def test_all_others_have_finished(daemon: FakeDaemon) -> None:
    with Round(daemon) as round_:
        round_.hear(gone("finished", rank=0), gone("finished", rank=2), gone("left", rank=0))
        round_.membership.finish()
        request(round_.served, local.Finished)
        assert round_.said.empty()


def test_the_others_are_waited_for(daemon: FakeDaemon) -> None:
    with Round(daemon) as round_:
        playing = once_finished(
            round_.served, gone("finished", rank=0), gone("unwatched"), gone("left")
        )
        round_.membership.finish()
        playing.join()
        round_.until_said("has finished, and waits for gpu1 (10.0.0.1), gpu3 (10.0.0.3)")
        round_.membership.finish()  # the barrier's, and shutdown's


@pytest.mark.parametrize(
    ("how", "again", "said"),
    [("lost", False, "gpu3 .* lost 4 s ago"), ("left", True, "gpu3 .* begins anew")],
)
def test_somebody_will_never_finish(daemon: FakeDaemon, how: str, again: bool, said: str) -> None:
    with Round(daemon) as round_:
        playing = once_finished(round_.served, gone("finished", rank=0), gone(how, again=again))
        with pytest.raises(Lost, match=rf"job {JOB}: this node has finished its work, but {said}"):
            round_.membership.finish()
        playing.join()


def test_a_loss_after_everybody_has_finished_is_none(daemon: FakeDaemon) -> None:
    with Round(daemon) as round_:
        round_.hear(gone("finished", rank=0), gone("finished"), gone("left", rank=0), gone("left"))
        round_.served.say(gone("lost", rank=1, reason="stopped"))
        round_.until(lambda: bool(round_.membership.broken))
        round_.membership.finish()


def test_after_mingle_leave_nobody_is_waited_for(daemon: FakeDaemon) -> None:
    """No news of the others will come: neither success nor an endless wait."""
    with Round(daemon) as round_:
        left = local.Failed(code="cancelled", sentence=f"job {JOB}: left on gpu2")
        playing = once_finished(round_.served, left)
        with pytest.raises(Lost, match="finished its work, but no daemon tells it of the others"):
            round_.membership.finish()
        playing.join()


# ---------------------------------------------------------------- the daemon ends


def test_another_daemon_takes_it_back_and_hears_everything_again(daemon: FakeDaemon) -> None:
    with Round(daemon, size_max=4) as round_:
        finishing = threading.Thread(target=round_.membership.finish)
        finishing.start()
        request(round_.served, local.Finished)
        round_.until_said("this node has finished")
        daemon.end()
        round_.until_said("the daemon ended")
        assert (round_.membership.waiting(), round_.membership.broken) == (0, "")
        daemon.start()
        served = daemon.accept()
        assert served.request(local.Reattach).participant == who(1)
        served.say(local.Done(count=1))
        request(served, local.Finished)
        served.request(local.Alive)
        round_.until_said("a daemon is back")
        served.say(gone("finished", rank=0), gone("finished"))
        finishing.join(PATIENCE_S)
        assert not finishing.is_alive()


# ---------------------------------------------------------------- nothing blocks, nothing is left


def test_it_answers_while_the_terminal_takes_no_line(daemon: FakeDaemon) -> None:
    stuck, go_on = threading.Event(), threading.Event()

    def say(_: str) -> None:
        stuck.set()
        assert go_on.wait(PATIENCE_S)

    with Round(daemon, say=say) as round_:
        round_.served.say(gone())
        assert stuck.wait(PATIENCE_S)
        try:
            assert round_.membership.waiting() == 1
            assert round_.membership.broken
        finally:
            go_on.set()


def test_a_second_stop_leaves_other_descriptors_alone(daemon: FakeDaemon) -> None:
    with Round(daemon) as round_:
        round_.membership.stop()
        others = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(8)]  # one has the old number
        round_.membership.stop()
        for other in others:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(other)
            os.close(other)


def test_twenty_rounds_leave_nothing(daemon: FakeDaemon) -> None:
    def kept() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = kept()
    for _ in range(20):
        with Round(daemon) as round_:
            request(round_.served, local.Alive)
        round_.served.close()
    assert kept() == before
