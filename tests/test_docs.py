"""The generated documents are what the code says, and what the others quote is what it says."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import pytest

import diagram
import sections
from mingled import errors
from mingled.core import local
from mingled.core.datagrams import kind_of_datagrams
from mingled.core.messages import type_of_peer_messages
from mingled.core.secrets import key_id_of, node_realms_of, realm_of, secret_of
from mingled.core.table import TRANSITIONS, State
from mingled.core.words import JobId
from mingled.frameworks.parameters import OURS
from tests.lan.conftest import absent

ROOT = Path(__file__).parents[1]


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate_docs.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_setting_of_torchruns_backend_has_its_row() -> None:
    text = (ROOT / "docs" / "torchrun.md").read_text()
    table = text.partition("| key | meaning |")[2].partition("\n\n")[0]
    named = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    keys = [key for cell in named for key in re.findall(r"`(\w+)`", cell)]
    assert sorted(keys) == sorted(OURS)


# ---------------------------------------------------------------- what pages quote


def sentences() -> list[str]:
    """Every text in the package, with … where a value goes."""
    found = []
    for path in (ROOT / "mingled").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sdr]", "…", node.value))  # of a line in the log
    return found


def test_each_symptom_is_a_sentence_that_mingled_says() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    headings = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert len(headings) > 40
    said = sentences()
    for heading in headings:
        assert heading.startswith("`")
        assert heading.endswith("`")
        # A backtick cannot stand in a heading of code, so … stands for it, too.
        words = [re.escape(part) for part in heading.strip("`").split("…")]
        pattern = re.compile(r"[^\n]{0,60}?".join(words))
        assert any(pattern.search(sentence) for sentence in said), heading


def test_each_exit_code_of_ours_has_its_part() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    codes = {kind.exit_code for kind in errors._BY_CODE.values()}
    for code in codes - {1, 2, 83, 84, 85, 86, 87, 88, 89}:
        assert f"## It ends with {code}: " in text
    for code in range(83, 90):
        assert f"Exit {code}" in text


def test_the_vectors_of_the_protocol_are_right() -> None:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from mingled.net.certificates import authority_of

    text = (ROOT / "docs/protocol.md").read_text()
    key, secret = bytes(range(32)), secret_of(b"correct horse battery staple")
    rows = re.findall(r"^\| `bert` \| (\w+) \| (\w+) \| `(\w+)` \| `(\w+)` \|$", text, re.MULTILINE)
    assert len(rows) == 3
    for with_key, with_secret, label, public in rows:
        realm = realm_of(
            JobId("bert"),
            key if with_key == "yes" else b"",
            secret if with_secret == "yes" else "",
        )
        assert realm.label == label
        point = authority_of(realm).key.public_key()
        x962, short = serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        assert point.public_bytes(x962, short).hex() == public
    for keys in ((), (key,)):
        (node,) = node_realms_of(keys)
        assert f"`{node.label}`" in text
    assert f"whose key id is `{key_id_of(key)}`" in text


def test_the_protocol_has_every_message() -> None:
    text = (ROOT / "docs/protocol.md").read_text()
    for union in (type_of_peer_messages, local.Request, local.Reply, kind_of_datagrams):
        for kind in get_args(union):
            assert f"#### {kind.__name__}, `{kind.__struct_config__.tag}`\n" in text


# ---------------------------------------------------------------- what makes them


def test_a_part_of_a_page_is_made_anew_and_the_rest_stays() -> None:
    page = "a\n<!-- structs: mingled/core/messages.py Ack -->\nold\n<!-- end -->\nb\n"
    made = sections.filled(page)
    assert made.startswith("a\n<!-- structs: mingled/core/messages.py Ack -->\n")
    assert made.endswith("\n<!-- end -->\nb\n")
    assert "#### Ack, `ack`" in made
    assert "| `proof` | `Nonce` |  |  |" in made
    assert "old" not in made
    assert sections.filled(made) == made
    code = sections.filled("<!-- code: mingled/daemon.py Daemon.emit -->\n<!-- end -->")
    assert "```python\ndef emit(self, event: events.Event) -> None:\n" in code
    above = sections.filled("<!-- structs: mingled/core/local.py Join -->\n<!-- end -->")
    assert "on no other: a round whose members would have to come by several is not" in above
    rooms = sections.filled("<!-- rooms: mingled/core table -->\n<!-- end -->")
    assert rooms.count("\n| `") == 1
    with pytest.raises(KeyError):
        sections.filled("<!-- structs: mingled/core/messages.py Nothing -->\n<!-- end -->")


def test_the_diagram_has_every_state_and_every_way() -> None:
    picture = ElementTree.fromstring(diagram.svg(TRANSITIONS))
    texts = [node.text or "" for node in picture.iter("{http://www.w3.org/2000/svg}text")]
    ways = {(before, after) for (before, _), after in TRANSITIONS.items()}
    assert {state.value for state in State} <= set(texts)
    assert len(texts) == len(State) + len(ways)
    assert sum(text.count(",") + 1 for text in texts) - len(State) == len(TRANSITIONS)


def test_each_state_and_each_trigger_is_explained() -> None:
    for name in ("State", "Trigger"):
        assert all(meaning for _, meaning in sections.members("mingled/core/table.py", name))


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        absent("mkdocs is not installed: pip install '.[docs]'")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environ = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    # mkdocs and what it needs may warn of each other; what counts is said of our pages.
    environ.pop("PYTHONWARNINGS", None)
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        # The reader's browser is to fetch nothing from elsewhere.
        fetched = re.findall(
            r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?:[^\" >]*)", page.read_text()
        )
        assert fetched == [], page
