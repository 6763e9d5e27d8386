"""Progress for people: the lines themselves, then a pipe and a terminal to show them on."""

from __future__ import annotations

import errno
import fcntl
import io
import pty
import struct
import termios
from typing import Any, TextIO

import pytest
from msgspec.structs import replace

from mingled.cli.display import Display
from mingled.core import local
from mingled.core.config import Member
from mingled.core.messages import Running, Seen
from mingled.core.words import Form
from mingled.wording import (
    clean,
    gone_line,
    released_line,
    roster_line,
    split_warning,
    waiting_line,
)
from tests.core.samples import CONFIG

HOSTILE = "gpu1\x1b[2J\r\n\x9b31m\u202e\x07"


def progress(*hosts: str, **changes: Any) -> local.Progress:
    values: dict[str, Any] = {
        "job": "bert",
        "state": "leading",
        "leader": "gpu1",
        "here": len(hosts),
        "size_min": 4,
        "size_max": 4,
        "present": tuple(Seen(host=host, rank=None) for host in hosts),
        "missing": (),
    }
    return local.Progress(**(values | changes))


def gone(how: Any, **changes: Any) -> local.Gone:
    values: dict[str, Any] = {"reason": "exit 1", "host": "gpu2"} | changes
    return local.Gone(job="bert", round=1, rank=1, address="10.0.0.2", how=how, **values)


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("said", "form", "line"),
    [
        (progress("gpu1"), Form.LAUNCHER, "1/4 here: gpu1; waiting for 3 more"),
        (
            progress("gpu1", "gpu4", missing=(2, 3)),
            Form.LAUNCHER,
            "2/4 here: gpu1, gpu4; waiting for node ranks 2, 3",
        ),
        (
            progress("gpu1", "gpu1", "gpu2", missing=(3,)),
            Form.PROCESS,
            "3/4 here: gpu1, gpu2; waiting for rank 3",
        ),
        (
            progress("gpu1", here=40, size_min=40, size_max=64),
            Form.LAUNCHER,
            "40/40 to 64 here: gpu1 and 39 more",
        ),
        (
            progress("gpu1", leader=None),
            Form.PROCESS,
            "1/4 here: gpu1; waiting for 3 more (no rank 0 yet)",
        ),
        (progress(leader=None, size_min=0), Form.PLAIN, "waiting for rank 0"),
        (progress("gpu2", size_min=0), Form.PLAIN, "rank 0 is on gpu1"),
        (
            progress("gpu1", size_min=1, note="gpu3: no answer"),
            Form.PROCESS,
            "1/1 to 4 here: gpu1 [gpu3: no answer]",
        ),
        (
            progress(
                "gpu1",
                size_max=1,
                size_min=1,
                running=Running(round=2, since_s=61.2, hosts=("gpu1", "gpu2"), size=2),
            ),
            Form.LAUNCHER,
            "1/1 here: gpu1; round 2 has run for 61 s on gpu1, gpu2: this one is for the next",
        ),
    ],
)
def test_the_waiting_line(said: local.Progress, form: Form, line: str) -> None:
    assert waiting_line(said, form) == line


def seen(*whos: str) -> tuple[Seen, ...]:
    words = [who.split("@") for who in whos]
    return tuple(Seen(host=host, rank=None, user=user) for user, host in words)


@pytest.mark.parametrize(
    ("present", "names"),
    [
        (seen("ann@gpu1", "ann@gpu2", "ann@gpu2"), "gpu1, gpu2"),
        (seen("ann@gpu1", "bob@gpu2", "bob@gpu2"), "ann@gpu1, bob@gpu2"),
        (seen("ann@gpu1", "bob@gpu1"), "ann@gpu1, bob@gpu1"),
        (seen("ann@gpu1", "@gpu2"), "ann@gpu1, gpu2"),
        (seen("@gpu1", "@gpu2"), "gpu1, gpu2"),
    ],
)
def test_users_are_named_where_they_differ(present: tuple[Seen, ...], names: str) -> None:
    said = progress(present=present, here=len(present))
    line = waiting_line(said, Form.PROCESS)
    assert line.startswith(f"{len(present)}/4 here: {names}; waiting for ")


def test_the_roster_line_names_each_node_once() -> None:
    def member(rank: int, node: int, user: str = "ann", host: str = "gpu") -> Member:
        return Member(
            rank=rank,
            node_rank=node,
            local_index=0,
            nproc=1,
            global_rank=rank,
            host=f"{host}{node}",
            address=f"10.0.0.{node}",
            user=user,
            node=f"{node:032x}",
            participant=f"{rank:032x}",
        )

    def line(*members: Member, **changes: Any) -> str | None:
        return roster_line(replace(CONFIG, members=members, **changes))

    assert line(member(0, 2), member(1, 1), member(2, 2)) == (
        "with gpu2 (10.0.0.2, ann), gpu1 (10.0.0.1, ann)"
    )
    assert line(member(0, 1), member(1, 1, "bob"), member(2, 2, "")) == (
        "with gpu1 (10.0.0.1, ann, bob), gpu2 (10.0.0.2)"
    )
    assert line(member(0, 1), member(1, 1)) is None  # all on this node
    assert line(form=Form.PLAIN) is None
    many = line(*(member(n, n) for n in range(28)))
    assert many is not None
    assert many.endswith("gpu15 (10.0.0.15, ann) and 12 more")
    assert "more" not in (line(*(member(n, n) for n in range(16))) or "")
    hostile = line(member(0, 1, user=HOSTILE), member(1, 2, host=HOSTILE))
    assert hostile is not None
    assert hostile.isprintable()


@pytest.mark.parametrize(
    ("word", "form", "line"),
    [
        (
            gone("lost"),
            Form.LAUNCHER,
            "gpu2 (10.0.0.2, node rank 1) lost just now in round 1: exit 1",
        ),
        (
            gone("lost", ago_s=0.99),
            Form.PROCESS,
            "gpu2 (10.0.0.2, rank 1) lost just now in round 1: exit 1",
        ),
        (
            gone("lost", ago_s=4.4),
            Form.PLAIN,
            "gpu2 (10.0.0.2, rank 1) lost 4 s ago in round 1: exit 1",
        ),
        (gone("left"), Form.PROCESS, ""),
        (gone("running"), Form.PROCESS, "gpu2 (10.0.0.2, rank 1) is watched again"),
        (
            gone("unwatched", reason="its daemon ended"),
            Form.PROCESS,
            "gpu2 (10.0.0.2, rank 1) is no longer watched (its daemon ended): it may well go on",
        ),
    ],
)
def test_what_became_of_a_member(word: local.Gone, form: Form, line: str) -> None:
    assert gone_line(word, form) == line
    assert gone_line(gone(word.how, host=HOSTILE, reason=HOSTILE), form).isprintable() or not line


@pytest.mark.parametrize(
    ("sizes", "safe"), [((2, 8), "5:8"), ((2, 4), "3:4"), ((1, 2), "2:2"), ((4, 9), "5:9")]
)
def test_a_range_that_lets_two_halves_start(sizes: tuple[int, int], safe: str) -> None:
    warning = split_warning("bert", *sizes)
    assert warning is not None
    assert warning.startswith("job bert: with {}:{} both halves".format(*sizes))
    assert warning.endswith(f" {safe}")
    low, high = (int(text) for text in safe.split(":"))
    assert split_warning("bert", low, high) is None


@pytest.mark.parametrize("sizes", [(0, 0), (1, 1), (4, 4), (5, 8), (2, 3)])
def test_a_range_that_does_not(sizes: tuple[int, int]) -> None:
    assert split_warning("bert", *sizes) is None


def test_the_released_line_names_the_place_and_the_time() -> None:
    assert released_line(CONFIG, 0.018, 1.204) == (
        "rank 0 is gpu1 (10.0.0.1:29512); this is node rank 0 of 1 on eth0 (10.0.0.1) "
        "(found in 0.02 s, all here after 1.20 s)"
    )


@pytest.mark.parametrize("text", [HOSTILE, "\0", "\x7f", "\u2028", "\ud800"])
def test_fault_38_nothing_from_elsewhere_paints_the_terminal(text: str) -> None:
    assert clean(text).isprintable()
    assert clean(f"gpu1 (näher), 日本: {text}").startswith("gpu1 (näher), 日本: ")
    shown = waiting_line(progress(text, leader=text, note=text), Form.PROCESS)
    assert shown.isprintable()


# ---------------------------------------------------------------- on a pipe


def test_a_line_at_each_change_and_none_for_the_same() -> None:
    out = io.StringIO()
    display = Display("bert", Form.PROCESS, out)
    display.told(progress("gpu1"))
    display.told(progress("gpu1"))
    display.told(local.Notice(kind="hint", sentence=f"job bert: nobody, {HOSTILE}"))
    display.told(progress("gpu1"))
    display.told(progress("gpu1", HOSTILE))
    display.close()
    lines = out.getvalue().splitlines()
    assert lines[0] == "mingle-wait: job bert: 1/4 here: gpu1; waiting for 3 more"
    assert lines[1].startswith("mingle-wait: hint: job bert: nobody, gpu1")
    assert lines[2].startswith("mingle-wait: job bert: 2/4 here: gpu1, gpu1")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


def test_the_next_wait_may_say_the_same() -> None:
    out = io.StringIO()
    display = Display("bert", Form.PROCESS, out)
    for _ in range(2):
        display.told(progress("gpu1"))
        display.close()
    assert len(out.getvalue().splitlines()) == 2


def test_a_broken_stderr_stops_nothing() -> None:
    tried: list[str] = []

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            tried.append(text)
            raise OSError(errno.EPIPE, "broken pipe")

    Display("bert", Form.PROCESS, Broken()).told(progress("gpu1"))
    assert len(tried) == 1


# ---------------------------------------------------------------- on a terminal


class Screen:
    """A pseudo-terminal and what was written to it."""

    def __init__(self, columns: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.out: TextIO = open(slave, "w")  # noqa: SIM115  closed by `text`

    def text(self) -> str:
        self.out.close()
        said = b""
        with open(self._master, "rb", buffering=0) as master:
            try:
                while chunk := master.read(4096):
                    said += chunk
            except OSError:  # EIO: nobody has the other end open any more
                pass
        return said.decode()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm")
    return Screen(60)


ERASE = "\r\x1b[K"


def test_one_living_line(screen: Screen) -> None:
    display = Display("bert", Form.PROCESS, screen.out)
    display.told(progress("gpu1"))
    display.told(progress("gpu1"))
    display.told(progress("gpu1", "gpu2"))
    display.line("rank 0 is gpu1")
    display.close()
    prefix = "mingle-wait: job bert: "
    first, second, kept, end = screen.text().split(ERASE)
    assert first == f"{prefix}1/4 here: gpu1; waiting for 3 more"
    assert second == f"{prefix}2/4 here: gpu1, gpu2; waiting for 2…"
    assert kept == f"{prefix}rank 0 is gpu1\r\n{second}"
    assert end == ""


@pytest.mark.parametrize(("job", "shown"), [("bert", 58), ("訓練", 56)])
def test_the_living_line_never_wraps(screen: Screen, job: str, shown: int) -> None:
    display = Display(job, Form.PROCESS, screen.out)
    display.told(progress(*(f"a-long-host-name-{n}" for n in range(9))))
    display.close()
    (line, _) = screen.text().split(ERASE)
    assert line[-1] == "…"
    assert len(line) == shown + 1  # 59 columns: one each, two for the wide ones


def test_a_dumb_terminal_is_a_pipe(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    display = Display("bert", Form.PROCESS, screen.out)
    display.told(progress("gpu1"))
    display.told(progress("gpu1", "gpu2"))
    display.close()
    said = screen.text()
    assert said.count("\r\n") == 2
    assert "\x1b" not in said
