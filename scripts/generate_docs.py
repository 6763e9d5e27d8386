"""Write the documents that are made from the code: `python scripts/generate_docs.py [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

from mingled.core.table import State, diagram
from mingled.core.words import Form
from mingled.frameworks.environment import EXPORTED, FAMILY, TUNING, VARIABLES

DOCS = Path(__file__).resolve().parents[1] / "docs"

READ = (
    ("`RANK`, `WORLD_SIZE`", "defaults of `--rank` and `--world-size`; not of the launcher form"),
    ("`NODE_RANK`, `PET_*`", "defaults of the launcher form"),
    ("`MINGLE_SOCKET`", "the daemon to ask (clients) or the socket to serve (`mingled`)"),
    ("`MINGLE_LINK_PORT`", "`mingled --link-port`; private daemons read all these, too"),
    ("`MINGLE_LOG_LEVEL`", "`mingled --log-level`"),
    (
        "`MINGLE_INTERFACE`, `MINGLE_SUBNET`",
        "defaults of `--interface` and `--subnet`, of `mingle-wait` and `mingled`: use only these "
        "(commas or blanks between)",
    ),
    ("`MINGLE_PEERS`", "the same of `--peers`: hosts to ask where multicast does not reach"),
    (
        "`MINGLE_REQUIRE_SAME`",
        "default of `--require-same`: what must be the same for all (commas or blanks between)",
    ),
    ("`MINGLE_DISCOVERY`", "`mingled --discovery`: which of mdns, broadcast, peers"),
    ("`MINGLE_BROADCAST_PORT`", "`mingled --broadcast-port`: UDP, the same on every machine"),
    ("`MINGLE_CONFIG`", "`mingled --config`: a file instead of `/etc/mingled/mingled.toml`"),
    ("`XDG_RUNTIME_DIR`", "where private daemons live; else `/tmp/mingled-UID`"),
)


def environment() -> str:
    """docs/environment.md."""
    lines = ["# Environment variables", "", "Made by `scripts/generate_docs.py`.", ""]
    lines += ["## What the training process gets", ""]
    lines += ["| variable | launcher | process | plain | meaning |", "|---|---|---|---|---|"]
    rows: dict[str, tuple[set[Form], list[str]]] = {}
    for variable in VARIABLES:
        forms, meanings = rows.setdefault(variable.name, (set(), []))
        forms |= variable.forms
        if variable.meaning not in meanings:
            meanings.append(variable.meaning)
    for name, (forms, meanings) in rows.items():
        marks = ["x" if form in forms else "" for form in Form]
        lines.append(f"| `{name}` | {' | '.join(marks)} | {'; '.join(meanings)} |")
    for name, syntax in TUNING:
        example = syntax.format("eth0")
        meaning = f"the proven interface, as in `{example}`, unless you set it"
        lines.append(f"| `{name}` | x | x | x | {meaning} |")
    meaning = f"`{FAMILY[1]}` where the proven path is IPv6, unless you set it or the interface"
    lines.append(f"| `{FAMILY[0]}` | x | x | x | {meaning} |")
    lines.append(
        f"| `{EXPORTED}` | x | x | x | what was set, so that the next job in the same shell does "
        "not read it as your wish |"
    )
    lines += ["", "## What mingled reads", "", "| variable | meaning |", "|---|---|"]
    lines += [f"| {name} | {meaning} |" for name, meaning in READ]
    return "\n".join(lines) + "\n"


def states() -> str:
    """docs/states.md."""
    meanings = "\n".join(f"- `{state}`" for state in State)
    return (
        "# The states of one job on one node\n\nMade by `scripts/generate_docs.py` from "
        "`mingled/core/table.py`, the one transition table.\n\n```mermaid\n"
        f"{diagram()}```\n\nStates:\n\n{meanings}\n"
    )


PAGES = {"environment.md": environment, "states.md": states}


def main() -> int:
    """With --check: 1 where a page is not what the code says."""
    stale = []
    for name, make in PAGES.items():
        path = DOCS / name
        if not path.exists() or path.read_text() != make():
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(make())
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"docs/{', '.join(stale)}: stale; run python scripts/generate_docs.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
