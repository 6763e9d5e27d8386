"""Which clocks are read: a wall clock jumps when somebody sets it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

WALL_CLOCKS = {f"time.{name}" for name in ("time", "time_ns", "localtime", "CLOCK_REALTIME")}
WALL_CLOCKS |= {f"datetime.datetime.{name}" for name in ("now", "utcnow", "today")}
WALL_CLOCKS |= {"datetime.date.today"}

ALLOWED = {"mingled/chronicle.py", "mingled/doctor/visit.py", "mingled/edges/visits.py"}
"""Doctor compares the clocks of two machines, and decides nothing by them."""

APART = {ROOT / "mingled" / "lab", ROOT / "mingled" / "demo"}
"""They time what they show; no rendezvous rests on them."""


def wall_clocks(source: str) -> set[str]:
    """What of a module's reads the time of day, by whatever name it is imported."""
    tree = ast.parse(source)
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {a.asname or a.name: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}

    def name_of(node: ast.AST) -> str:
        """The whole name, as in `datetime.datetime.now`; empty for what is no name."""
        match node:
            case ast.Name(id=name):
                return imported.get(name, "")
            case ast.Attribute(value=value, attr=attribute):
                return f"{name_of(value)}.{attribute}"
            case _:
                return ""

    return WALL_CLOCKS.intersection(map(name_of, ast.walk(tree)))


def test_fault_20_nothing_is_decided_by_the_time_of_day() -> None:
    read = {
        str(path.relative_to(ROOT)): found
        for path in sorted((ROOT / "mingled").rglob("*.py"))
        if not APART.intersection(path.parents) and (found := wall_clocks(path.read_text()))
    }
    assert set(read) == ALLOWED, read


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.time()",
        "from time import time\ntime()",
        "import time as clock\nclock.time_ns()",
        "import time\ntime.clock_gettime(time.CLOCK_REALTIME)",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime\ndatetime.now()",
        "from datetime import date\ndate.today()",
    ],
)
def test_fault_20_every_way_to_read_it_is_found(source: str) -> None:
    assert wall_clocks(source)


def test_fault_20_other_clocks_are_none() -> None:
    source = "import time\ntime.monotonic()\ntime.clock_gettime(time.CLOCK_BOOTTIME)"
    assert not wall_clocks(source)
    assert not wall_clocks("from datetime import timedelta\ntimedelta(seconds=1)")
