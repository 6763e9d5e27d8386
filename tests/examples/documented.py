"""An example's folder as a reader of its README has it: a copy of it, and the lines to type."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from mingled.lab import Lan, Node
from tests.lan.conftest import absent
from tests.lan.helpers import BIN, PATIENCE_S, Running, start

EXAMPLES = Path(__file__).parents[2] / "examples"


def needs(*modules: str) -> None:
    """Skip without them; a failure in CI."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            absent(f"{module} is not installed")


def copy_of(example: str, to: Path) -> Path:
    """A copy of the example's folder alone, made below `to`: nothing beside it is there."""
    return Path(shutil.copytree(EXAMPLES / example, to / example))


def commands(example: str, *words: str) -> list[str]:
    """The lines in the README's code blocks that have all these words in them, in order: without
    the prompt, continued lines joined. There must be one."""
    text = (EXAMPLES / example / "README.md").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    found = [line.removeprefix("$ ") for line in lines if all(word in line for word in words)]
    assert found, f"{example}/README.md has no command with {words}"
    return found


def typed(node: Node, line: str, folder: Path, env: Mapping[str, str] | None = None) -> Running:
    """`line`, as typed into a shell of that node in that folder."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    given = {"PATH": path, "OMP_NUM_THREADS": "1", **(env or {})}
    return start(node, "sh", "-c", f"cd '{folder}' && {line}", env=given)


def known_hosts(lan: Lan, folder: Path, more: Mapping[str, str] | None = None) -> None:
    """Every node knows all names, and `more`: gloo, started by no mingled, asks for its own."""
    names = {node.name: node.address for node in lan.nodes} | dict(more or {})
    hosts = folder / "hosts"
    lines = [f"{address} {name}\n" for name, address in names.items()]
    hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))
    for node in lan.nodes:
        node.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)


def who_says(runs: dict[int, Running], *texts: str) -> int:
    """Whichever of them is rank 0 now: ask again and again until one has said it all."""
    until_s = time.monotonic() + PATIENCE_S
    while True:
        for number, running in runs.items():
            if all(text in running.out for text in texts):
                return number
        said = {n: (one.out, one.err) for n, one in runs.items()}
        assert time.monotonic() < until_s, (texts, said)
        assert not any(one.over for one in runs.values()), said
        time.sleep(0.05)
