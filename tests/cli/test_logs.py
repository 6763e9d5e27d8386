"""`mingle logs`: of a job of this very process, and of a daemon made up."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import mingled
from mingled.cli import logs
from mingled.core import local
from mingled.core.codec import Decoder

from .fake_daemon import FakeDaemon
from .running import JOB as ID
from .saying import Say

LINES: Decoder[list[local.StoryLine]] = Decoder(list[local.StoryLine], "logs")


def line(number: int, text: str) -> local.StoryLine:
    return local.StoryLine(number=number, at_s=1_795_000_000.25, kind="note", text=text)


def test_a_job_of_ours(runtime: Path, say: Say) -> None:
    with mingled.join(ID, world_size=1):
        lines = LINES.decode(say(f"logs {ID} --json").out.encode())
        shown = say(f"logs {ID}")
    assert [x.number for x in lines] == sorted(x.number for x in lines)
    assert {"came", "state", "ready"} <= {x.kind for x in lines}
    assert shown.out.count("\n") == len(lines)
    assert "idle --search--> searching" in shown.out


def test_a_job_that_is_not_known(runtime: Path, say: Say) -> None:
    said = say(f"logs {ID}")
    assert (said.code, said.out) == (1, "")
    assert f"job {ID}: nothing of yours is known of it on this machine" in said.err


@pytest.mark.parametrize(("flag", "shown"), [("", "note     two\ufffd[2J\n"), ("--json", '"two')])
def test_following_until_the_daemon_ends(
    daemon: FakeDaemon, say: Say, monkeypatch: pytest.MonkeyPatch, flag: str, shown: str
) -> None:
    monkeypatch.setenv("MINGLE_SOCKET", str(daemon.path))
    monkeypatch.setattr(logs, "LOOK_S", 0.0)
    asked = []

    def serve() -> None:
        for lines in ((line(1, "one"),), (), (line(4, "two\x1b[2J"),)):
            with daemon.accept() as served:
                asked.append(served.request(local.Logs).after)
                served.say(local.Story(job="bert", lines=lines))
        daemon.end()

    thread = threading.Thread(target=serve)
    thread.start()
    said = say(f"logs bert -f {flag}")
    thread.join()
    assert asked == [0, 1, 1]
    assert said.code == 0
    assert said.out.count("\n") == 2
    assert shown in said.out
    assert "\x1b" not in said.out
    assert "job bert: its daemon has ended" in said.err
