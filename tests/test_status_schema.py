"""What `mingle status --json` prints, its schema, and the page that explains it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mingled.cli.json_lines import json_text
from mingled.core import local
from tests.core.samples import REPLIES

ROOT = Path(__file__).parents[1]


def test_the_schema_fits_what_is_printed_and_the_page_has_every_field() -> None:
    (report,) = [reply for reply in REPLIES if isinstance(reply, local.Report)]
    schema = json.loads((ROOT / "docs" / "status.schema.json").read_text())
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(schema)
    printed = json.loads(json_text([report]))
    check.validate(printed)
    assert not check.is_valid([printed[0] | {"pid": "4711"}])
    page = (ROOT / "docs" / "status.md").read_text()
    page = page.partition("## mingle status --json")[2].partition("## mingle logs")[0]
    records = {n: d for n, d in schema["$defs"].items() if "properties" in d}
    for name, part in records.items():
        noun = {"Report": "report", "RoundMember": "member", "Seen": "node"}.get(name, name.lower())
        table = page.partition(f"| field of a {noun} |")[2].partition("\n\n")[0]
        cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
        assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(part["properties"])
