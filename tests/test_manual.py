"""The manual pages: well formed, and nothing that `--help` says is lost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import manual
from programs import Paragraph, Program, Row, programs
from tests.lan.conftest import absent

PAGES = sorted((Path(__file__).parents[1] / "man").glob("*.1"))


def rendered(path: Path) -> str:
    """As `man` shows it, blanks and line ends as single blanks."""
    if shutil.which("man") is None:
        absent("man is not installed")
    environ = os.environ | {"MANWIDTH": "200", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    environ |= {"GROFF_NO_SGR": "1", "MANPAGER": "cat"}
    words = ["man", "--warnings=w", "--no-hyphenation", "--no-justification", "-l", str(path)]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return " ".join(re.sub(r".\x08", "", done.stdout).split())


def test_each_program_has_its_page() -> None:
    assert {path.stem for path in PAGES} == {program.path for program in programs()}


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.path)
def test_man_shows_every_option_and_every_sentence(program: Program) -> None:
    (path,) = (path for path in PAGES if path.stem == program.path)
    text = rendered(path)
    for command in program.walk():
        if command.path == "mingle wait":
            assert "see mingle-wait(1)" in text
            continue
        for row in command.rows:
            assert row.names in text
            assert row.help in text
        for paragraph in (*command.help, *command.epilog):
            heading = "Exit codes:" if " " in command.path else "EXIT CODES"
            for line in paragraph.text.replace("Exit codes:", heading).splitlines():
                assert " ".join(line.split()) in text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_mandoc_finds_nothing_wrong(path: Path) -> None:
    if shutil.which("mandoc") is None:
        absent("mandoc is not installed")
    words = ["mandoc", "-T", "lint", "-W", "warning", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    # There is no date, so that the same texts are the same page.
    wrong = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert wrong == []


def test_what_troff_would_read_as_its_own_is_text() -> None:
    program = Program(
        "mingle",
        "[OPTIONS]",
        (Paragraph(".so /etc/passwd \\n(.z 'a' – b-c", False),),
        (Row("--x", "'quoted\\", ""),),
        (),
        (),
    )
    lines = manual.page(program).splitlines()
    assert "\\&.so /etc/passwd \\en(.z 'a' \\[u2013] b\\-c" in lines
    assert "\\&'quoted\\e" in lines
