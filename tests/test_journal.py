"""Log records as entries of systemd's journal, read back as journald would."""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mingled import journal


def parsed(data: bytes) -> dict[str, str]:
    """By the native journal protocol."""
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + length], data[9 + length :]
        fields[name.decode()] = value.decode()
    return fields


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "j"))
        sock.setblocking(False)
        yield sock


@pytest.fixture
def log(tmp_path: Path) -> Iterator[logging.Logger]:
    found = logging.Logger("mingled.jobs")
    handler = journal.Journal(str(tmp_path / "j"))
    found.addHandler(handler)
    yield found
    handler.close()


@pytest.mark.parametrize(
    ("level", "priority"), [("DEBUG", 7), ("INFO", 6), ("WARNING", 4), ("ERROR", 3)]
)
def test_levels_and_fields(
    journald: socket.socket, log: logging.Logger, level: str, priority: int
) -> None:
    number = logging.getLevelNamesMapping()[level]
    log.log(number, "job %s: rank 2 is lost", "bert", extra={"job": "bert"})
    fields = parsed(journald.recv(65_536))
    assert fields["MESSAGE"] == "job bert: rank 2 is lost"
    assert fields["PRIORITY"] == str(priority)
    assert fields["MINGLE_JOB"] == "bert"
    assert fields["SYSLOG_IDENTIFIER"] == "mingled"
    assert fields["MINGLE_LOGGER"] == "mingled.jobs"
    assert fields["CODE_FILE"] == __file__
    assert fields["CODE_FUNC"] == "test_levels_and_fields"


def test_what_others_say_cannot_forge_a_field(journald: socket.socket, log: logging.Logger) -> None:
    log.info("a host: %s", "x\nPRIORITY=0\nMESSAGE=forged\x1b[2J", extra={"job": "a\nPRIORITY=1"})
    fields = parsed(journald.recv(65_536))
    assert fields["MESSAGE"].startswith("a host: x\nPRIORITY=0\n")
    assert "\x1b" not in fields["MESSAGE"]
    assert fields["PRIORITY"] == "6"
    assert "\n" not in fields["MINGLE_JOB"]


def test_a_traceback_is_one_entry(journald: socket.socket, log: logging.Logger) -> None:
    try:
        raise ValueError("the reason")
    except ValueError:
        log.exception("bug: it was not handled")
    fields = parsed(journald.recv(65_536))
    assert fields["MESSAGE"].startswith("bug: it was not handled\nTraceback ")
    assert fields["MESSAGE"].endswith("ValueError: the reason")
    with pytest.raises(BlockingIOError):
        journald.recv(1)


def test_a_long_entry_is_cut(journald: socket.socket, log: logging.Logger) -> None:
    log.info("é" * journal.MESSAGE_BYTES_MAX)
    assert parsed(journald.recv(1 << 20))["MESSAGE"] == "é" * (journal.MESSAGE_BYTES_MAX // 2)


def test_a_full_or_dead_journal_holds_nobody_up(
    journald: socket.socket, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = logging.Logger("mingled")
    handler = journal.Journal(str(tmp_path / "j"))
    log.addHandler(handler)
    said = ""
    count = 0
    while "<6>" not in said:
        log.info("number %d", count)
        said = capfd.readouterr().err
        count += 1
        assert count < 10_000
    journald.close()
    log.warning("two\nlines")
    assert capfd.readouterr().err == "<4>two\ufffdlines\n"
    handler.close()


def test_is_stderr_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w") as file:
        about = os.fstat(file.fileno())
        name = f"{about.st_dev}:{about.st_ino}"
        assert journal.connected(file, {"JOURNAL_STREAM": name})
        assert not journal.connected(file, {"JOURNAL_STREAM": name + "1"})
        assert not journal.connected(file, {})
    assert not journal.connected(file, {"JOURNAL_STREAM": name}), "closed"
    assert not journal.connected(sys.stderr, {})
