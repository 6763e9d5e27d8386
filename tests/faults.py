"""The tests of each fault, by their names: `test_fault_17_...` is about row 17 of the table in
docs/reliability.md, and a name may hold several such numbers.

python -m tests.faults        writes the list of tests there anew
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
BEGIN = "<!-- The list is made by `python -m tests.faults`. -->\n"

Kind = Literal["S", "N", "U"]

KINDS: Mapping[Kind, str] = {"S": "simulated", "N": "real network", "U": "unit or process"}

_ON_THE_SIMULATOR = re.compile(r"^from tests\.(sim|core\.stage)\b", re.MULTILINE)


class FaultTest(NamedTuple):
    file: str  #: below tests/
    name: str  #: without `test_` and numbers
    kind: Kind
    faults: frozenset[int]


def collect(folder: Path = TESTS) -> list[FaultTest]:
    """Every test whose name holds a row's number, by file and line; nothing is imported."""
    found = []
    for path in sorted(folder.rglob("test_*.py")):
        source = path.read_text()
        if "fault_" not in source:
            continue
        file = path.relative_to(folder).as_posix()
        kind = kind_of(file, source)
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                faults = frozenset(map(int, re.findall(r"fault_(\d\d)(?=_|$)", node.name)))
                if faults and node.name.startswith("test_"):
                    name = re.sub(r"^test_|fault_\d\d_?", "", node.name)
                    found.append(FaultTest(file, name, kind, faults))
    return found


def kind_of(file: str, source: str) -> Kind:
    """Namespaces, the simulator's world, or neither."""
    if file.startswith("lan/"):
        return "N"
    return "S" if _ON_THE_SIMULATOR.search(source) else "U"


def listed(tests: Sequence[FaultTest]) -> str:
    """One line for each row and kind of test."""
    rows: dict[tuple[int, Kind], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for test in tests:
        for fault in test.faults:
            rows[fault, test.kind][test.file].append(test.name.replace("_", " "))
    order: Sequence[Kind] = tuple(KINDS)
    lines = ["| # | how | tests, by file |", "|---|---|---|"]
    for fault, kind in sorted(rows, key=lambda row: (row[0], order.index(row[1]))):
        files = rows[fault, kind].items()
        cell = "; ".join(f"`{file}`: {', '.join(names)}" for file, names in files)
        lines.append(f"| {fault:02} | {KINDS[kind]} | {cell} |")
    return "\n".join(lines) + "\n"


def page(text: str, tests: Sequence[FaultTest]) -> str:
    """The page with its list as the tests are now; the list is its end."""
    written, mark, _ = text.partition(BEGIN)
    if not mark:
        raise ValueError(f"{PAGE.name} has no line {BEGIN!r}")
    return f"{written}{BEGIN}\n{listed(tests)}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(), collect()))
    sys.stdout.write(f"{PAGE} written\n")
