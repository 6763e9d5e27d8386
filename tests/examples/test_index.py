"""`examples/README.md` lists every example, with a command that its own README has."""

from __future__ import annotations

import re

from .documented import EXAMPLES

ROW = re.compile(r"^\| \[([\w-]+)\]\(([\w-]+)/\) \| [^|]+ \| `([^`]+)` \| [^|]+ \|$", re.MULTILINE)


def test_every_example_is_listed_with_a_command_of_its_own() -> None:
    rows = ROW.findall((EXAMPLES / "README.md").read_text())
    folders = {path.parent.name for path in EXAMPLES.glob("*/README.md")}
    assert [name for name, _, _ in rows] == [folder for _, folder, _ in rows]
    assert {name for name, _, _ in rows} == folders
    for name, _, command in rows:
        text = (EXAMPLES / name / "README.md").read_text()
        # A command may be shortened by ` ... `.
        assert all(part in text for part in command.split(" ... ")), name
