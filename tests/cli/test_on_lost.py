"""What `mingle-wait` does while CMD runs and members are lost. The test plays the daemon."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mingled.core import local
from mingled.core.words import Form

from .fake_daemon import JOB, RESTART, SERVES, THREE, FakeDaemon, gone, ready, start
from .running import BIN, WAIT, Running

PREFIX = f"mingle-wait: job {JOB}: "
LOST = f"{PREFIX}gpu3 (10.0.0.3, node rank 2) lost 4 s ago in round 1: no sign of life; "

ENDS_7 = f"trap 'echo TERM; exit 7' TERM; {SERVES}"
DEAF = f"trap '' TERM; {SERVES}"


# ---------------------------------------------------------------- warn, ignore


def test_warn_tells_and_goes_on(daemon: FakeDaemon) -> None:
    with start(daemon, cmd=SERVES) as waiting:
        served, _ = daemon.join(ready())
        waiting.until("ready 29501 1\n")
        served.say(gone("left", rank=0), gone(), gone())
        waiting.until("lost 4 s ago")
        served.say(gone("unwatched", rank=0, reason="its daemon stopped"), gone("running", rank=0))
        waiting.until("watched again")
        waiting.process.send_signal(signal.SIGTERM)
        assert daemon.leave().lost
        assert waiting.end() == 128 + signal.SIGTERM
    assert waiting.err.splitlines()[2:] == [
        f"{LOST}training will hang: Ctrl-C, or --on-lost stop",
        f"{PREFIX}gpu1 (10.0.0.1, node rank 0) is no longer watched (its daemon stopped): it "
        "may well go on",
        f"{PREFIX}gpu1 (10.0.0.1, node rank 0) is watched again",
    ]


def test_ignore_says_nothing(daemon: FakeDaemon) -> None:
    cmd = "echo ready; read line; exit 0"
    with start(daemon, "--on-lost", "ignore", cmd=cmd) as waiting:
        served, _ = daemon.join(ready())
        waiting.until("ready\n")
        served.say(gone(), gone("unwatched", rank=0), gone("running", rank=0))
        served.say(local.Notice(kind="hint", sentence="that was all"))
        waiting.until("that was all")
        waiting.say("go")
        assert not daemon.leave().lost
        assert waiting.end() == 0
    assert "gpu3 (10.0.0.3, node" not in waiting.err
    assert "watched" not in waiting.err


def test_in_the_process_form_a_rank_is_named(daemon: FakeDaemon) -> None:
    words = ("--job", JOB, "--world-size", "3", "--", "sh", "-c", "read line")
    with Running(WAIT, *words, env=daemon.environ()) as waiting:
        served, _ = daemon.join()
        served.say(ready(form=Form.PROCESS), gone(ago_s=0.3))
        waiting.until(
            "gpu3 (10.0.0.3, rank 2) lost just now in round 1: no sign of life; training will hang"
        )
        waiting.say("go")
        daemon.leave()
        assert waiting.end() == 0


# ---------------------------------------------------------------- stop


def test_stop_ends_cmd_and_is_no_loss_to_the_others(daemon: FakeDaemon) -> None:
    with start(daemon, "--on-lost", "stop", cmd=ENDS_7) as waiting:
        served, join = daemon.join(ready())
        assert join.stop_grace_s == 35
        waiting.until("ready")
        served.say(gone())
        waiting.until("TERM\n")
        leave = daemon.leave()
        assert (leave.lost, leave.reason) == (False, "stopped: gpu3 was lost")
        assert waiting.end() == 88
    *_, told, sentence = waiting.err.splitlines()
    assert told == f"{LOST}stops CMD"
    assert (
        f"job {JOB}: gpu3 (10.0.0.3, node rank 2) was lost in round 1, so CMD was stopped on "
        in sentence
    )
    assert "CMD ended with exit 7" in sentence
    assert "run the same line on every machine again, or use --on-lost restart" in sentence


def test_who_does_not_end_is_killed(daemon: FakeDaemon) -> None:
    with start(daemon, "--on-lost", "stop", "--stop-grace", "0.2", cmd=DEAF) as waiting:
        served, join = daemon.join(ready())
        assert join.stop_grace_s == 0.2
        waiting.until("ready")
        served.say(gone())
        daemon.leave()
        assert waiting.end() == 88
    assert "CMD was killed by SIGKILL" in waiting.err.splitlines()[-1]


def test_stop_is_not_for_those_who_leave(daemon: FakeDaemon) -> None:
    cmd = "echo ready; read line; exit 3"
    with start(daemon, "--on-lost", "stop", cmd=cmd) as waiting:
        served, _ = daemon.join(ready())
        waiting.until("ready\n")
        served.say(gone("left"), gone("unwatched", rank=0))
        waiting.until("no longer watched")
        waiting.say("go")
        assert daemon.leave().lost
        assert waiting.end() == 3


# ---------------------------------------------------------------- restart


def test_two_restarts_each_with_its_own_round(daemon: FakeDaemon, tmp_path: Path) -> None:
    torchrun = tmp_path / "torchrun"
    torchrun.write_text(
        f"#!{sys.executable}\n"
        "import json, os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(1))\n"
        "env = {n: os.environ[n] for n in ('MASTER_PORT', 'PET_NODE_RANK', 'MINGLE_ROUND')}\n"
        f"open({str(tmp_path / 'runs')!r}, 'a').write(json.dumps([env, sys.argv[1:]]) + '\\n')\n"
        "print('ready', os.environ['MASTER_PORT'], flush=True)\n"
        "sys.exit(0 if os.environ['MINGLE_ROUND'] == '3' else sys.stdin.read())\n"
    )
    torchrun.chmod(0o755)
    words = ("--job", JOB, *RESTART, "--", str(torchrun), "--nnodes=3", "train.py")
    with Running(WAIT, *words, env=daemon.environ()) as waiting:
        joins = []
        for round_, rank in ((1, 1), (2, 2), (3, 0)):
            served, join = daemon.join(ready(round_, rank=rank))
            joins.append(join)
            waiting.until(f"ready {29500 + round_}\n")
            if round_ < 3:
                served.say(gone(rank=0 if rank else 2))
        leave = daemon.leave()
        assert (leave.lost, leave.participant) == (False, ready(rank=0).participant)
        assert waiting.end() == 0
    assert joins[0] == joins[1] == joins[2]
    runs = [json.loads(line) for line in (tmp_path / "runs").read_text().splitlines()]
    assert [env["MASTER_PORT"] for env, _ in runs] == ["29501", "29502", "29503"]
    assert [env["PET_NODE_RANK"] for env, _ in runs] == ["1", "2", "0"]
    assert [argv[1:3] for _, argv in runs] == [
        [f"--node-rank={rank}", "--nproc-per-node=1"] for rank in (1, 2, 0)
    ]
    assert [argv[4:] for _, argv in runs] == [
        [f"--master-port={port}", "train.py"] for port in (29501, 29502, 29503)
    ]
    assert "joins again: restart 1 of 3\n" in waiting.err
    assert "joins again: restart 2 of 3\n" in waiting.err
    assert "this is node rank 0 of 3" in waiting.err


def test_no_restarts_left_is_a_stop(daemon: FakeDaemon) -> None:
    with start(daemon, *RESTART, "--max-restarts", "1", cmd=ENDS_7) as waiting:
        first, _ = daemon.join(ready())
        waiting.until("ready 29501")
        first.say(gone())
        second, _ = daemon.join(ready(2))
        first.until_closed()
        waiting.until("ready 29502")
        second.say(gone())
        assert daemon.leave().reason == "stopped: gpu3 was lost"
        assert waiting.end() == 88
    assert waiting.err.count("restart 1 of 1") == 1
    assert f"{LOST}stops CMD: the 1 restarts of --max-restarts are used up\n" in waiting.err
    assert "or use --on-lost restart" not in waiting.err


def test_cmds_own_failure_restarts_it_and_is_told(daemon: FakeDaemon) -> None:
    cmd = "test $MINGLE_ROUND = 1 && exit 3; test $MINGLE_ROUND = 2 && kill -KILL $$; exit 0"
    with start(daemon, *RESTART, cmd=cmd) as waiting:
        served, joins = [], []
        for round_ in (1, 2, 3):
            client, join = daemon.join(ready(round_))
            served.append(client)
            joins.append(join)
        assert not daemon.leave().lost
        assert waiting.end() == 0
        for client in served:
            client.until_closed()
    assert [join.lost for join in joins] == [
        "",
        "CMD ended with exit 3",
        "CMD was killed by SIGKILL",
    ]
    assert f"{PREFIX}CMD ended with exit 3; joins again: restart 1 of 3\n" in waiting.err
    assert f"{PREFIX}CMD was killed by SIGKILL; joins again: restart 2 of 3\n" in waiting.err


def test_cmds_own_failure_without_restarts_left_is_its_own(daemon: FakeDaemon) -> None:
    with start(daemon, *RESTART, "--max-restarts", "0", cmd="exit 3") as waiting:
        daemon.join(ready())
        assert daemon.leave().lost
        assert waiting.end() == 3


def test_a_cmd_that_ends_well_when_told_to_is_started_again(daemon: FakeDaemon) -> None:
    """It has kept its checkpoint; its training is not over."""
    cmd = f"test $MINGLE_ROUND = 2 && exit 0; trap 'exit 0' TERM; {SERVES}"
    with start(daemon, *RESTART, cmd=cmd) as waiting:
        first, _ = daemon.join(ready())
        waiting.until("ready")
        first.say(gone())
        _, again = daemon.join(ready(2))
        assert again.lost == ""
        assert not daemon.leave().lost
        assert waiting.end() == 0


def test_a_failure_after_another_has_finished_is_the_end(daemon: FakeDaemon) -> None:
    """Whoever finished first closed its connections; a new round would wait for it in vain."""
    with start(daemon, *RESTART, cmd="exit 3") as waiting:
        daemon.join(ready(), gone("left"))
        assert daemon.leave().lost
        assert waiting.end() == 3


def test_what_joining_again_says_is_the_end(daemon: FakeDaemon) -> None:
    with start(daemon, *RESTART, cmd="exit 3") as waiting:
        daemon.join(ready())
        daemon.join(local.Failed(code="timeout", sentence=f"job {JOB}: nobody came"))
        leave = daemon.leave()
        assert (leave.lost, leave.reason) == (True, "CMD ended with exit 3")
        assert waiting.end() == 82
    assert waiting.err.splitlines()[-1] == f"mingle-wait: job {JOB}: nobody came"


# ---------------------------------------------------------------- on the command line


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--on-lost", "stop"], "delete --on-lost stop, or add -- CMD"),
        (["--on-lost", "restart"], "delete --on-lost restart, or add -- CMD"),
        (
            ["--on-lost", "restart", "--max-restarts", "1"],
            "delete --on-lost restart and --max-restarts, or add -- CMD",
        ),
        (["--on-lost", "stop", "--exec", "--", "true"], "delete --exec, or --on-lost stop"),
        (["--max-restarts", "1", "--", "true"], "delete --max-restarts, or add --on-lost restart"),
        (["--on-lost", "restart", "--max-restarts", "-1", "--", "true"], "--max-restarts"),
        (["--on-lost", "panic", "--", "true"], "--on-lost"),
        (["--last-call", "1s", "--", "true"], "delete --last-call, or give a range"),
        (["--stop-grace", "soon", "--", "true"], "--stop-grace 'soon': want a time"),
        (["--stop-grace", "25h", "--", "true"], "a stop grace of 90000 s is not between"),
    ],
)
def test_what_cannot_work(words: list[str], sentence: str) -> None:
    done = subprocess.run([WAIT, *THREE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_asked_of_the_daemon(daemon: FakeDaemon) -> None:
    flags = ("--no-wait", "--any-user", "--last-call", "0", "--stop-grace", "1m")
    words = ("--job", JOB, "--nnodes", "2:8", *flags, "--", "true")
    with Running(WAIT, *words, env=daemon.environ()) as waiting:
        _, join = daemon.join(ready())
        daemon.leave()
        assert waiting.end() == 0
    assert (join.wait, join.any_user, join.last_call_s, join.stop_grace_s) == (False, True, 0, 60)
    assert not join.store
    warning, roster, *_ = waiting.err.splitlines()
    assert warning.startswith(f"mingle-wait: warning: job {JOB}: with 2:8 both halves of a split")
    assert warning.endswith("5:8")
    assert roster == (
        f"{PREFIX}with gpu1 (10.0.0.1, ann), gpu2 (10.0.0.2, ann), gpu3 (10.0.0.3, ann)"
    )


def test_news_that_come_along_with_the_config_are_told(daemon: FakeDaemon) -> None:
    """Of a member that was lost before this client had read its config."""
    with start(daemon, cmd="read line") as waiting:
        served, _ = daemon.join()
        served.say(ready(), gone())
        waiting.until("lost 4 s ago")
        waiting.say("go")
        daemon.leave()
        assert waiting.end() == 0


def test_exec_hears_nothing_and_leaves_nothing_behind(daemon: FakeDaemon) -> None:
    words = (*THREE, "--exec", "--", "sh", "-c", "echo $$ $MASTER_PORT; read line")
    with Running(WAIT, *words, env=daemon.environ()) as waiting:
        served, _ = daemon.join(ready())
        waiting.until(f"{waiting.process.pid} 29501\n")
        served.until_closed()
        assert waiting.end() == 1


def test_help_names_every_exit_and_default() -> None:
    done = subprocess.run(
        [BIN / "mingle-wait", "--help"], capture_output=True, text=True, check=True
    )
    for words in ("[default: 3]", "[default: 35s]", "[default: warn]", "  88  ", "--no-wait"):
        assert words in done.stdout


@pytest.mark.parametrize("reaction", ["stop", "restart"])
def test_the_plain_form_knows_of_no_losses(reaction: str) -> None:
    words = ["--job", JOB, "--rank", "1", "--on-lost", reaction, "--", "true"]
    done = subprocess.run([WAIT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"job {JOB}: --on-lost {reaction} needs a round with a size" in done.stderr


def test_a_time_that_no_clock_counts_is_refused() -> None:
    words = [*THREE, "--timeout", "99999999999999999999h", "--", "true"]
    done = subprocess.run([WAIT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "want a year at most" in done.stderr


def test_a_loss_after_others_have_finished_is_no_reason_to_join_again(daemon: FakeDaemon) -> None:
    with start(daemon, *RESTART, cmd=SERVES) as waiting:
        served, _ = daemon.join(ready())
        waiting.until("ready")
        served.say(gone("left", rank=1), gone(rank=2))
        assert daemon.leave().reason == "stopped: gpu3 was lost"
        assert waiting.end() == 88
    assert "stops CMD: others have finished" in waiting.err


# ---------------------------------------------------------------- mingle cancel

SENTENCE = f"job {JOB}: cancelled on gpu2 while it ran by ann on gpu1"


@pytest.mark.parametrize("flags", [(), ("--on-lost", "ignore"), RESTART])
def test_a_cancelled_job_stops_cmd(daemon: FakeDaemon, flags: tuple[str, ...]) -> None:
    with start(daemon, *flags, cmd=ENDS_7) as waiting:
        served, join = daemon.join(ready())
        assert join.listens
        waiting.until("ready 29501 1\n")
        served.say(local.Failed(code="cancelled", sentence=SENTENCE, stop=True))
        assert waiting.end() == 87
    assert "TERM" in waiting.out
    assert waiting.err.splitlines()[-2:] == [
        f"{PREFIX}cancelled; stops CMD",
        f"mingle-wait: {SENTENCE} (CMD ended with exit 7)",
    ]


def test_a_cancelled_cmd_that_does_not_end_is_killed(daemon: FakeDaemon) -> None:
    with start(daemon, "--stop-grace", "0s", cmd=DEAF) as waiting:
        served, _ = daemon.join(ready())
        waiting.until("ready 29501 1\n")
        served.say(local.Failed(code="cancelled", sentence=SENTENCE, stop=True))
        assert waiting.end() == 87
    assert waiting.err.endswith(f"{SENTENCE} (CMD was killed by SIGKILL)\n")


def test_leave_stops_nothing(daemon: FakeDaemon) -> None:
    with start(daemon, cmd="echo ready; read line; exit 0") as waiting:
        served, _ = daemon.join(ready())
        waiting.until("ready\n")
        served.say(local.Failed(code="cancelled", sentence=f"job {JOB}: left on gpu2"))
        waiting.until("unwatched from now")
        waiting.say("")
        daemon.leave()
        assert waiting.end() == 0
