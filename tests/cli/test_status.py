"""`mingle status` and `mingle leave`: jobs of this very process, and daemons made up."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest

import mingled
from mingled.cli import status
from mingled.core import local
from mingled.core.codec import Decoder
from mingled.core.words import Form
from tests.core.samples import REPLIES

from .running import JOB as ID
from .saying import Say

(REPORT,) = [reply for reply in REPLIES if isinstance(reply, local.Report)]
(JOB,) = REPORT.jobs
(SEAT,) = JOB.seats


def told(say: Say) -> list[local.Report]:
    decoder: Decoder[list[local.Report]] = Decoder(list[local.Report], "status")
    return decoder.decode(say("status --json").out.encode())


# ---------------------------------------------------------------- real daemons


def test_no_daemon(runtime: Path, say: Say) -> None:
    assert say("status --json") == (0, "[]\n", "")
    shown = say("status")
    assert (shown.code, shown.out) == (0, "")
    assert "no daemon runs here; the next mingle-wait starts one" in shown.err
    assert not runtime.exists()


def test_two_jobs_are_two_private_daemons(runtime: Path, say: Say) -> None:
    one, two = f"{ID}-one", f"{ID}-two"
    with mingled.join(one, world_size=1), mingled.join(two, nnodes=1, nproc_per_node=4):
        first, second = told(say)
        jobs = {job.job: job for report in (first, second) for job in report.jobs}
        assert set(jobs) == {one, two}
        assert first.private
        assert first.host == socket.gethostname()
        assert Path(first.socket).parent == runtime
        (seat,) = jobs[two].seats
        assert (seat.pid, seat.state, seat.form) == (os.getpid(), "released", Form.LAUNCHER)
        (sealed,) = jobs[two].rounds
        assert (sealed.master_addr, sealed.members[0].nproc) == ("127.0.0.1", 4)
        shown = say("status").out
        assert f"job {one}" in shown
        assert f"job {two}" in shown
        assert f"127.0.0.1:{sealed.master_port}" in shown


def test_leave_ends_what_is_ours(runtime: Path, say: Say) -> None:
    mingled.join(ID, world_size=1)
    assert say(f"leave {ID}") == (0, "", f"mingle leave: job {ID}: 1 left\n")
    again = say(f"leave {ID}")
    assert again.code == 1
    assert again.err.startswith(f"mingle: job {ID}: nothing of yours takes part in it here")
    assert runtime.exists()


def test_leave_wants_a_possible_job(runtime: Path, say: Say) -> None:
    assert say("leave").code == 2
    said = say("leave a\x1b[2Jb")
    assert said.code == 2
    assert "U+001B" in said.err
    assert not runtime.exists()


def test_a_daemon_that_is_named_is_the_only_one(
    runtime: Path, say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with mingled.join(ID, world_size=1):
        (report,) = told(say)
        monkeypatch.setenv("MINGLE_SOCKET", report.socket)
        (same,) = told(say)
        assert same.pid == report.pid
        monkeypatch.setenv("MINGLE_SOCKET", str(tmp_path / "none"))
        said = say("status")
        assert (said.code, said.out) == (80, "")
        assert f"{tmp_path}/none on {socket.gethostname()}: there is no such socket" in said.err
        monkeypatch.delenv("MINGLE_SOCKET")


@pytest.mark.parametrize("words", ["stats", "status --jsno", "status bert"])
def test_usage(say: Say, words: str) -> None:
    said = say(words)
    assert (said.code, said.out) == (2, "")
    assert words.split()[-1] in said.err


# ---------------------------------------------------------------- what is shown


def test_text_from_elsewhere_is_shown_as_it_is(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = "\x1b[2J\r[red]x[/]"
    shown = "�[2J�[red]x[/]"
    member = local.RoundMember(rank=0, host=bad, address=bad, nproc=1, state="running")
    round_ = local.Round(round=1, since_s=1, master_addr=bad, master_port=1, members=(member,))
    seat = msgspec.structs.replace(SEAT, user=bad)
    job = msgspec.structs.replace(
        JOB,
        job=bad,
        state=bad,
        leader=bad,
        leader_address=bad,
        note=bad,
        seats=(seat,),
        rounds=(round_,),
    )
    report = msgspec.structs.replace(
        REPORT,
        host=bad,
        release=bad,
        socket=bad,
        addresses=(bad,),
        discovery=(bad,),
        key_ids=(bad,),
        jobs=(job,),
    )
    monkeypatch.setattr(status, "reports", lambda: [report])
    said = say("status").out
    assert all(line.isprintable() for line in said.split("\n"))
    assert said.count(shown) == 15


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rounds": ()}, "1/2 to 4 here; leader gpu1 10.0.0.1; leading"),
        ({"rounds": (), "size_max": 2}, "1/2 here; leader gpu1 10.0.0.1; leading"),
        (
            {"seats": (msgspec.structs.replace(SEAT, state="released"),)},
            "round 1 runs for 12s, rank 0 is at 10.0.0.1:29512; leader gpu1 10.0.0.1; leading",
        ),
        (
            {
                "seats": (msgspec.structs.replace(SEAT, form=Form.PLAIN),),
                "rounds": (),
                "leader": None,
                "state": "searching",
            },
            "searching",
        ),
    ],
)
def test_where_a_job_stands(changes: dict[str, object], line: str) -> None:
    assert status._headline(msgspec.structs.replace(JOB, **changes)) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.9, "59s"), (60, "1m"), (7500, "2h05m"), (86_400, "1d0h"), (273_600, "3d4h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert status.duration(seconds) == text
