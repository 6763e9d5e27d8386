"""What draws the recorded run. The run itself is `mingle demo`'s, which has its own tests."""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

import record_demo
from record_demo import Transcript, lines_of, picture

SVG = "{http://www.w3.org/2000/svg}"
RECORDED = Path(__file__).parents[1] / "docs/demo.svg"


def shown(svg: str) -> str:
    """The texts of a picture, blanks as in the terminal."""
    texts = ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(SVG + "text")]
    return " ".join(" ".join(texts).replace("\xa0", " ").split())


def test_a_terminals_bytes_become_lines_for_people() -> None:
    assert lines_of(b'one \r\n\r\n{"event": "timing"}\r\ntwo\xff\r\n') == ("one", "two\ufffd")


def test_each_machine_its_command_and_its_lines_are_drawn() -> None:
    line = "mingle-wait: job digits: rank 0 is gpu1 <&> [bold]x[/bold]"
    svg = picture([Transcript("gpu1", "cmd -- x", (line, "epoch 1")), Transcript("gpu2", "y", ())])
    text = shown(svg)
    assert "gpu1$ cmd -- x" in text
    assert "rank 0 is gpu1 <&> [bold]x[/bold] epoch 1" in text  # no markup is read from it
    assert "gpu2$ y" in text
    assert svg == picture(
        [Transcript("gpu1", "cmd -- x", (line, "epoch 1")), Transcript("gpu2", "y", ())]
    )


def test_the_recorded_picture_is_of_a_whole_run_and_fetches_nothing() -> None:
    svg = RECORDED.read_text()
    text = shown(svg)
    assert text.count(f"$ {record_demo.LINE}") == 3
    assert len(re.findall(r"this is node rank [012] of 3", text)) == 3
    assert re.search(r"test accuracy 9\d\.\d%", text)
    assert re.findall(r"https?://[^\"]*", svg.replace("http://www.w3.org/2000/svg", "")) == []


def test_a_terminal_is_read_until_the_word_comes_and_to_its_end() -> None:
    def start(inner: int) -> Callable[[], int]:
        os.write(inner, b"1/3 here\n")
        return lambda: 0

    terminal = record_demo._Terminal("gpu1", start)
    record_demo._follow([terminal], time.monotonic() + 60, b"1/3 here")
    assert terminal.output == b"1/3 here\r\n"
    record_demo._follow([terminal], time.monotonic() + 60, None)
    assert terminal.wait() == 0


def test_a_run_that_hangs_is_said_with_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "select", lambda *_: ([], [], []))
    inner: list[int] = []

    def start(fd: int) -> Callable[[], int]:
        inner.append(os.dup(fd))
        return lambda: 0

    terminal = record_demo._Terminal("gpu1", start)
    terminal.output = b"0/3 here"
    with pytest.raises(RuntimeError, match="not done within 240 s: 0/3 here"):
        record_demo._follow([terminal], 0.0, b"1/3 here")
    os.close(inner[0])
