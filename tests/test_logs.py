"""The daemon's log against what others put into it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from mingled.logs import Harmless, Lines

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ")
FORGED = "gpu1\n2026-01-01 00:00:00,000 INFO all is well\x1b[2J\u202e\x9b\u2028\r"
TEXT = st.one_of(st.just(FORGED), st.text(max_size=80))


def record(words: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, None) if error is not None else None
    return logging.LogRecord("mingled", logging.WARNING, "f", 1, words, args, info)


@given(text=TEXT)
def test_fault_38_a_record_is_one_line(text: str) -> None:
    line = Harmless().format(record("heard of %s", text))
    assert line.isprintable()
    assert STAMP.match(line)


@given(text=TEXT)
def test_fault_38_an_exceptions_words_begin_no_record(text: str) -> None:
    first, *more = Harmless().format(record("bug", error=ValueError(text))).split("\n")
    assert STAMP.match(first)
    assert more
    assert all(line.startswith("    ") and line.isprintable() for line in more)


def test_what_is_plain_stays_and_keeps_its_level() -> None:
    assert Harmless().format(record("%d of %s", 2, "ä")).endswith(" WARNING 2 of ä")


def test_fault_30_a_log_that_cannot_be_written_ends_nothing() -> None:
    script = (
        "import logging; from mingled import logs; logs.configure('INFO');"
        "log = logging.getLogger('asyncio');"
        "[log.warning('heard %s', 'a\\nb') for _ in range(3)]; log.info('%d', 'no number');"
        "print('alive')"
    )
    reader, writer = os.pipe()
    os.close(reader)
    for stderr in (writer, subprocess.DEVNULL, os.open("/dev/full", os.O_WRONLY)):
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=stderr, check=False
        )
        assert done.stdout == b"alive\n"
        if stderr >= 0:
            os.close(stderr)


# ---------------------------------------------------------------- it keeps nobody waiting


def logger(fd: int) -> tuple[logging.Logger, Lines]:
    made = logging.Logger("test")
    lines = Lines(fd)
    made.addHandler(lines)
    return made, lines


def test_lines_arrive_whole() -> None:
    reader, writer = os.pipe()
    log, lines = logger(writer)
    log.warning("job %s: %s", "bert", "\ud800 ü")
    log.error("x" * 10_000)
    os.close(writer)
    with open(reader, encoding="utf-8") as said:
        assert said.read() == "job bert: \\ud800 ü\n" + "x" * 10_000 + "\n"
    assert lines.dropped == 0


def test_fault_30_a_full_pipe_drops_and_says_so_later() -> None:
    reader, writer = os.pipe()
    log, lines = logger(writer)
    while not lines.dropped:  # it would block here for ever
        log.warning("x" * 1_000)
    log.warning("also lost")
    assert lines.dropped == 2
    while len(os.read(reader, 65_536)) == 65_536:
        pass
    log.warning("heard")
    assert os.read(reader, 65_536) == b"(2 lines of this log were lost)\nheard\n"
    for fd in (reader, writer):
        os.close(fd)


def test_fault_30_a_closed_pipe_and_a_full_disk_drop() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log, lines = logger(writer)
    log.warning("nobody reads")
    assert lines.dropped == 1
    os.close(writer)
    log.warning("and nothing is there")
    assert lines.dropped == 2
    full = os.open("/dev/full", os.O_WRONLY)
    log, lines = logger(full)
    log.warning("no space")
    assert lines.dropped == 1
    os.close(full)
