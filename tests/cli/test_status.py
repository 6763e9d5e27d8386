"""`mingle status` and `mingle leave`: jobs of this very process, and daemons made up."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

import mingled
from mingled.cli import status, status_table, status_watch
from mingled.core import local
from mingled.core.codec import Decoder
from mingled.core.words import Form
from tests.core.samples import REPLIES

from .fake_daemon import FakeDaemon
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


@pytest.mark.parametrize("words", ["status", "status --json", "status --watch"])
def test_a_daemon_that_cannot_be_understood_is_not_called_absent(
    daemon: FakeDaemon, say: Say, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setenv("MINGLE_SOCKET", str(daemon.path))

    def serve() -> None:
        with daemon.accept() as served:
            served.request(local.Status)
            served.say_bytes(b"HTTP/1.1 400 Bad Request\n")

    thread = threading.Thread(target=serve)
    thread.start()
    said = say(words)
    thread.join()
    assert (said.code, said.out) == (80, "")
    assert "what answers there is no mingled of this version" in said.err
    assert "install the same release for both" in said.err
    assert "no daemon runs here" not in said.err
    assert said.err.count("\n") == 1


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
    assert said.count(shown) == 16


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
    assert status_table.headline(msgspec.structs.replace(JOB, **changes)) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.9, "59s"), (60, "1m"), (7500, "2h05m"), (86_400, "1d0h"), (273_600, "3d4h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert status.duration(seconds) == text


# ---------------------------------------------------------------- the picture


def painted(report: local.Report, columns: int, **options: Any) -> list[str]:
    out = Console(file=io.StringIO(), width=columns, highlight=False, **options)
    out.print(status_table.picture([report], columns))
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


def test_the_picture() -> None:
    assert painted(REPORT, 100) == [
        "gpu1  daemon 0.1.0, pid 4711, up 1h00m, link port 29400, its loop was up to 0.2 s late",
        "  socket     /run/mingled/control.sock",
        "  addresses  10.0.0.1",
        "  discovery  mDNS: works",
        "  security   no cluster key: a job's ID is its only secret, guessable (mingle key new)",
        "",
        "  job bert: round 1 runs for 12s, rank 0 is at 10.0.0.1:29512; 1/2 to 4 here; leader gpu1 "
        "10.0.0.1;",
        "  leading",
        "    RANK  HOST  ADDRESS   STATE    SINCE  WHO",
        "    0     gpu1  10.0.0.1  running  12s",
        "    0     gpu1            waiting  1s     pid 4711 (ann), here",
        "    auto  gpu2  10.0.0.2  waiting         ann",
        "    missing: node ranks 2, 3",
        "    gpu3: no answer",
    ]


def test_a_narrow_terminal_keeps_what_matters() -> None:
    lines = painted(REPORT, 40)
    assert all(len(line) <= 40 for line in lines)
    assert "    RANK  HOST  ADDRESS   STATE" in lines
    assert "    auto  gpu2  10.0.0.2  waiting" in lines


def test_members_are_told_from_whom_they_are() -> None:
    seat = msgspec.structs.replace(SEAT, state="released")
    lines = painted(_with(seats=(seat,), missing=()), 100)
    assert "    0     gpu1  10.0.0.1  running  12s    pid 4711 (ann), here" in lines
    assert not any("missing" in line or "waiting" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"missing": (3,)}, "    missing: node rank 3"),
        ({"missing": ()}, "    missing: 1 more, of any node rank"),
        ({"missing": (), "here": 2}, None),
    ],
)
def test_who_is_missing(changes: dict[str, Any], line: str | None) -> None:
    lines = painted(_with(**changes), 100)
    assert [x for x in lines if "missing" in x] == ([line] if line else [])


def test_colour_is_for_terminals(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = local.RoundMember(rank=0, host="gpu1", address="10.0.0.1", nproc=1, state="lost")
    (round_,) = JOB.rounds
    report = _with(rounds=(msgspec.structs.replace(round_, members=(lost,)),))
    assert any("\x1b[1;31mlost" in x for x in painted(report, 100, force_terminal=True))
    monkeypatch.setattr(status, "reports", lambda: [report])
    said = say("status")
    assert "\x1b" not in said.out
    assert "leader gpu1 10.0.0.1; leading\n" in said.out, "a pipe gets whole lines"


def _with(**changes: Any) -> local.Report:
    return msgspec.structs.replace(REPORT, jobs=(msgspec.structs.replace(JOB, **changes),))


# ---------------------------------------------------------------- --watch


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, later, then changed, then gone: the daemon is asked so often."""
    later = msgspec.structs.replace(_with(), up_s=3601.5)
    seen = iter([[REPORT], [later], [_with(note="gpu3 has come")], []])
    monkeypatch.setattr(status, "reports", lambda: next(seen))
    monkeypatch.setattr(status_watch, "LOOK_S", 0.0)


@pytest.mark.usefixtures("watched")
def test_watching_as_json_tells_changes_alone(say: Say) -> None:
    said = say("status --watch --json")
    decoder: Decoder[list[local.Report]] = Decoder(list[local.Report], "status")
    notes = [decoder.decode(x.encode())[0].jobs[0].note for x in said.out.splitlines()]
    assert (said.code, notes) == (0, ["gpu3: no answer", "gpu3 has come"])
    assert said.err == "mingle status: no daemon runs here any more\n"


@pytest.mark.usefixtures("watched")
def test_watching_in_a_pipe(say: Say) -> None:
    said = say("status -w")
    assert (said.out.count("job bert"), said.out.count("gpu3 has come")) == (2, 1)


def test_the_end_of_a_watch_by_ctrl_c(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "reports", lambda: [REPORT])
    monkeypatch.setattr(time, "sleep", interrupted)
    assert say("status --watch").code == 130
    assert say("status --watch --json").code == 130


def test_a_named_daemon_that_ends_is_no_error(
    daemon: FakeDaemon, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINGLE_SOCKET", str(daemon.path))
    monkeypatch.setattr(status_watch, "LOOK_S", 0.0)

    def serve() -> None:
        with daemon.accept() as served:
            served.request(local.Status)
            served.say(REPORT)
            daemon.end()

    thread = threading.Thread(target=serve)
    thread.start()
    said = say("status --watch --json")
    thread.join()
    assert (said.code, said.out.count("\n")) == (0, 1)
    assert "no daemon runs here any more" in said.err
