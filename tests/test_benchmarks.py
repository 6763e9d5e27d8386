"""The benchmarks run, and say what they measured. How long anything took is not tested."""

from __future__ import annotations

import json

import pytest

from benchmarks.__main__ import NAMES, Size, measure
from benchmarks.result import Result, result
from benchmarks.table import HEAD, as_json, as_text
from mingled.lab import available, missing
from tests.lan.conftest import absent

TINY = Size(
    nodes=(2,),
    joins=2,
    commands=1,
    starts=1,
    captures=1,
    watch_s=0.1,
    launches=1,
    torch_nodes=(2,),
    settle_s=0.0,
)

FAST = result("fast", "a fast thing", [1.0, 3.0, 2.0], against=("bare", [2.0]), goal=("ratio", 1.5))
SLOW = result("slow", "a slow thing", [40.0], unit="MB", goal=("median", 30), note="once")
OVER = result("over", "an import", [30.0], against=("bare", [12.0]), goal=("excess", 15))


def test_goals() -> None:
    assert (FAST.ratio, FAST.met) == (1.0, True)
    assert (SLOW.ratio, SLOW.met) == (None, False)
    assert (OVER.ratio_of_lowest, OVER.met) == (2.5, False)
    assert result("free", "no goal", [1.0]).met is None
    with pytest.raises(ValueError, match="nothing was measured"):
        result("empty", "nothing", [])


def test_the_table() -> None:
    lines = as_text([FAST, SLOW]).splitlines()
    head, rule, fast, slow = (line.split("|")[1:-1] for line in lines if line.startswith("|"))
    assert [cell.strip() for cell in head] == list(HEAD)
    assert {cell.strip("-") for cell in rule} == {""}
    assert [cell.strip() for cell in fast] == [
        "a fast thing",
        "2 [1-3] ms",
        "2",
        "1.00",
        "at most 1.5x",
        "met",
    ]
    assert [cell.strip() for cell in slow][1:] == ["40 MB", "", "", "at most 30 MB", "MISSED"]
    assert "- a slow thing: once" in lines


def test_json() -> None:
    said = json.loads(as_json([FAST, SLOW]))
    assert {"cores", "system", "python", "mingled"} <= said["machine"].keys()
    fast, slow = said["results"]
    assert fast["measured"] == {
        "what": "a fast thing",
        "values": [1, 3, 2],
        "median": 2,
        "min": 1,
        "max": 3,
    }
    assert (fast["met"], fast["ratio"], slow["reference"]) == (True, 1, None)


@pytest.mark.lan
def test_everything_is_measured() -> None:
    possible = available()
    lacks = possible.reason if possible.kind == "none" else missing("tcpdump")
    if lacks:
        absent(lacks)
    results: dict[str, Result] = {each.name: each for each in measure(TINY, NAMES)}
    assert results.keys() == {
        "release-2-a-follower-last",
        "release-2-rank-0-last",
        "release-at-once-2",
        "packets-2-rank-0-last",
        "packets-2-rank-0-first",
        "killed-2-follower",
        "killed-2-rank-0",
        "mingle-wait",
        "mingle-wait-join",
        "true",
        "import",
        "idle-rss",
        "idle-private",
        "idle-cpu",
        "idle-packets",
        "cold-start",
        "cold-start-wait",
        "daemon-start",
        "next-rendezvous-2",
        "torchrun-2",
        "torchrun-static-2",
    }
    assert results["idle-rss"].measured.median > results["idle-private"].measured.median > 0
    assert results["packets-2-rank-0-last"].measured.lowest > 0
    rows = [line for line in as_text(list(results.values())).splitlines() if line.startswith("|")]
    assert len(rows) == len(results) + 2
