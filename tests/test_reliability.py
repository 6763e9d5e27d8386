"""The table of faults in docs/reliability.md and the tests that are named after its rows agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults import BEGIN, PAGE, FaultTest, collect, kind_of, listed, page

FAULTS = range(1, 46)

TO_COME: dict[int, str] = {}
"""Rows without tests of these kinds as yet."""

ROW = re.compile(r"\| (\d\d) \| ([^|]+) \| ([^|]+) \| ([SNU ]+) \| ([^|]+) \|")


@pytest.fixture(scope="module")
def rows() -> dict[int, tuple[str, ...]]:
    """By number: the fault, what happens, how it is tested, the result."""
    table = PAGE.read_text().partition("| # | fault |")[2].partition("\n\n")[0]
    lines = table.splitlines()[2:]
    matches = [ROW.fullmatch(line) for line in lines]
    broken = [line for line, match in zip(lines, matches, strict=True) if match is None]
    assert not broken
    numbers = [int(match[1]) for match in matches if match is not None]
    assert numbers == list(FAULTS)
    return {int(match[1]): match.groups()[1:] for match in matches if match is not None}


def test_each_fault_has_tests_of_each_kind_that_its_row_names(
    rows: dict[int, tuple[str, ...]],
) -> None:
    tests = collect()
    for number, (fault, _, kinds, _) in rows.items():
        have = {test.kind for test in tests if number in test.faults}
        lacking = set(kinds.split()) - have - set(TO_COME.get(number, ""))
        assert not lacking, f"fault {number}, {fault}: no test_fault_{number:02}_ of {lacking}"


def test_each_test_of_a_fault_has_its_row() -> None:
    unknown = [test for test in collect() if not test.faults <= set(FAULTS)]
    assert not unknown


def test_a_result_is_open_only_while_tests_are_to_come(rows: dict[int, tuple[str, ...]]) -> None:
    unfinished = {number for number, row in rows.items() if row[3] == "open"}
    assert unfinished == set(TO_COME)


def test_the_list_of_tests_is_fresh() -> None:
    text = PAGE.read_text()
    assert page(text, collect()) == text, "run python -m tests.faults"


# ---------------------------------------------------------------- how tests are found


SOURCE = """
import pytest
from tests.core.stage import Stage

@pytest.mark.parametrize("a", [1])
def test_fault_01_a_crash(a): ...
async def test_fault_22_fault_23_both(): ...
def test_7_fault_09_numbered(): ...
def test_fault_1_is_no_row(): ...
def test_fault_170_neither(): ...
def fault_03_helper(): ...
def test_a_default_file(): ...
"""


def test_names_are_read_from_the_source(tmp_path: Path) -> None:
    (tmp_path / "lan").mkdir()
    (tmp_path / "lan" / "test_some.py").write_text(SOURCE)
    assert collect(tmp_path) == [
        FaultTest("lan/test_some.py", "a_crash", "N", frozenset({1})),
        FaultTest("lan/test_some.py", "both", "N", frozenset({22, 23})),
        FaultTest("lan/test_some.py", "7_numbered", "N", frozenset({9})),
    ]
    assert kind_of("core/test_some.py", SOURCE) == "S"
    assert kind_of("core/test_some.py", SOURCE.replace("core.stage", "unique")) == "U"


def test_the_list_is_the_end_of_the_page() -> None:
    tests = [FaultTest("lan/test_a.py", "a_crash", "N", frozenset({1}))]
    written = page(f"# Words\n\n{BEGIN}\nold\n", tests)
    assert written == f"# Words\n\n{BEGIN}\n{listed(tests)}"
    assert written.endswith("| 01 | real network | `lan/test_a.py`: a crash |\n")
    with pytest.raises(ValueError, match="has no line"):
        page("# Words\n", tests)
