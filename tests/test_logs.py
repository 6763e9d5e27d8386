"""The daemon's log against what others put into it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from mingled.logs import Harmless

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


def test_a_log_that_cannot_be_written_ends_nothing() -> None:
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
