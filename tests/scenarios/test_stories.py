"""Each story, played now, against its transcript as it was checked in."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys

import pytest

from tests.scenarios.stories import (
    HERE,
    STORIES,
    elastic_shrink,
    path_of,
    text_of,
)

ANEW = "python -m tests.scenarios.stories"
LINES_MAX = 64


@pytest.mark.parametrize("name", STORIES)
def test_story(name: str) -> None:
    now, path = text_of(name), path_of(name)
    checked_in = path.read_bytes().decode() if path.exists() else ""
    if now == checked_in:
        return
    diff = difflib.unified_diff(
        checked_in.splitlines(), now.splitlines(), f"{path.name} as checked in", "now", lineterm=""
    )
    pytest.fail(
        "\n".join([*diff, "", f"If that is meant: {ANEW} writes all of them anew"]), pytrace=False
    )


def test_every_file_is_a_story_and_every_story_a_file() -> None:
    assert {path.stem for path in HERE.glob("*.txt")} == set(STORIES), f"{ANEW} writes them"


@pytest.mark.parametrize("name", STORIES)
def test_a_story_is_short_and_shows_no_raw_identifier(name: str) -> None:
    text = path_of(name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < LINES_MAX
    assert not re.findall(r"\b(?:[0-9a-f]{12,}|[a-z2-7]{26})\b", text)


@pytest.mark.parametrize("name", [name for name in STORIES if name != "plain"])
def test_rank_0_is_released_first_and_all_others_after_commit(name: str) -> None:
    said = path_of(name).read_text(encoding="utf-8")
    rounds = re.findall(r"is released: rank 0 of \d+, round (\d+)", said)
    assert rounds
    for number in rounds:
        releases = re.findall(rf"is released: rank (\d+) of (\d+), round {number},", said)
        assert releases[0][0] == "0"
        assert len(releases) == int(releases[0][1])
        before, _, after = said.partition(f"COMMIT round {number}\n")
        assert len(re.findall(rf"is released: rank \d+ of \d+, round {number},", before)) == 1
        assert len(re.findall(rf"is released: rank \d+ of \d+, round {number},", after)) > 0


def test_no_story_depends_on_the_order_of_a_set() -> None:
    """Another process has another hash seed."""
    code = f"from tests.scenarios.stories import *; print(''.join(map(text_of, {list(STORIES)})))"
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=HERE.parents[1],
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


@pytest.mark.parametrize("last_back", [0, 1])
def test_it_does_not_matter_which_survivor_comes_back_last(last_back: int) -> None:
    """Also not if it is rank 0; the transcript is that of the last rank."""
    elastic_shrink(last_back)
