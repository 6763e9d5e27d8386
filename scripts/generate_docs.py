"""Write what is made from the code: `python scripts/generate_docs.py [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

import commands_page
import diagram
import manual
import sections
import status_schema
from mingled.core.table import TRANSITIONS
from mingled.core.words import Form
from mingled.frameworks.dialects.registry import DIALECTS
from mingled.frameworks.environment import EXPORTED, FAMILY, TUNING, VARIABLES
from programs import programs

ROOT = Path(__file__).resolve().parents[1]

READ = (
    ("`RANK`, `WORLD_SIZE`", "defaults of `--rank` and `--world-size`; not of the launcher form"),
    ("`NODE_RANK`, `PET_*`", "defaults of the launcher form"),
    (
        "`SLURM_*`, `OMPI_*`, `SING_*`, `JOB_COMPLETION_INDEX`",
        "a scheduler's: job, size and rank, where nothing else says them ([which](schedulers.md))",
    ),
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
    (
        "`MINGLE_KEY_FILE`",
        "the cluster's key, of `mingled`, `mingle key` and whatever asks other daemons; `none`: no "
        "key ([security](security.md))",
    ),
    ("`MINGLE_SECRET_FILE`", "default of `--secret-file`: the job's own secret"),
    (
        "`MINGLE_STORE_INTERFACE_ONLY`",
        "default of `store_interface_only` (1 or 0): a store of rank 0 that mingled opens itself "
        "listens on `MASTER_ADDR` alone ([where](python.md#one-address-for-the-store))",
    ),
    ("`MINGLE_DISCOVERY`", "`mingled --discovery`: which of mdns, broadcast, peers"),
    ("`MINGLE_BROADCAST_PORT`", "`mingled --broadcast-port`: UDP, the same on every machine"),
    ("`MINGLE_METRICS_FILE`", "`mingled --metrics-file` ([metrics](metrics.md))"),
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
    table = "mingled/core/table.py"
    lines = ["# The states of one job on one node", ""]
    lines += [f"Made by `scripts/generate_docs.py` from `{table}`, the one transition table.", ""]
    lines += ["![The states, and what leads from one to another](states.svg)", ""]
    for heading, name in (("State", "State"), ("What moves it", "Trigger")):
        lines += [f"| {heading} | |", "|---|---|"]
        lines += [f"| {value} | {meaning} |" for value, meaning in sections.members(table, name)]
        lines.append("")
    lines += ["| from | by | to |", "|---|---|---|"]
    lines += [f"| {a} | {trigger} | {b} |" for (a, trigger), b in TRANSITIONS.items()]
    return "\n".join(lines) + "\n"


FRAMEWORKS = """# Frameworks

Made by `scripts/generate_docs.py`.

One sealed config, in the words of each framework. Every name below is good in three places, and
says the same in each:

    mingle-wait --job bert --world-size 4 --for jax -- python train.py
    eval "$(mingle-wait --job bert --world-size 4 --format jax)"
    cfg.to_env("jax")                            # of a DdpConfig, in Python

Its variables stand beside the usual ones ([environment.md](environment.md)), so that several names
may be given: `--for sing,jax`. A value of yours that is replaced is named on stderr. What a
framework cannot be told (a size that nobody knows, several processes in one participant) is refused
before anybody waits; what depends on who came, such as uneven nodes, once all are here, on every
node alike.
"""

FRAMEWORKS_END = """## What holds the lease

Without CMD somebody must be the participant from then on. Shell text ends with a line that makes
it the evaluating shell. A path, dotenv and an env-file are read by programs that know nothing of
leases, so it is the process that ran `mingle-wait`, mostly your shell, until it ends or
`mingle leave bert`:

    mingle-wait --job bert --nnodes 2 --format docker > env
    docker run --network host --env-file env IMAGE

    deepspeed --hostfile="$(mingle-wait --job bert --nnodes 2 --format deepspeed)" train.py

JSON holds a token instead: within ten seconds the program that reads it says which process it is
to be, `mingle-wait --adopt TOKEN PID`, or the others are told of a loss.

A hostfile has mode 0600 and lies among your private daemons. Under `mingle-wait` it goes with CMD,
in Python with the process; else the next that is written after its holder's end removes it.

## JAX in a script

    import mingled.jax
    cfg = mingled.jax.initialize("bert", world_size=4)    # joins, waits, jax.distributed.initialize

Whatever else `jax.distributed.initialize` takes may follow (`local_device_ids=[0]`,
`initialization_timeout=60`).

On CPUs JAX's collectives listen at what the machine's own name stands for, 127.0.1.1 on any Debian;
here they take the proven interface. A script that calls `jax.distributed.initialize` itself needs
the name in /etc/hosts, with its real address. GPUs do not care.

## Names by mDNS

With `--for sing` and the suffix `local`, and only then, each machine's daemon answers the names of
its own ranks by multicast DNS, `bert-0.local` and so on, as long as the lease lasts; nss-mdns and
avahi resolve them. This shows the job's name to everybody on the network. The name is asked for
first (RFC 6762, 8.1): where another machine has it already, that is said, and it keeps it. Another
suffix (`--sing-suffix team.example.org`, or `SING_HOSTNAME_SUFFIX`) is your own DNS's to answer.
`SING_MASTER_ADDR` is always rank 0's literal address.
"""


def frameworks() -> str:
    """docs/frameworks.md."""
    lines = [FRAMEWORKS, "## Names", "", "| name | who reads it | forms |", "|---|---|---|"]
    for dialect in DIALECTS:
        forms = ", ".join(form for form in Form if form in dialect.forms)
        if dialect.one_process:
            forms = forms.replace("launcher", "launcher (one process per node)")
        lines.append(f"| `{dialect.name}` | {dialect.reader} | {forms} |")
    lines += ["", "## Variables", "", "| name | variable | meaning |", "|---|---|---|"]
    speakers: dict[tuple[str, str], list[str]] = {}
    for dialect in DIALECTS:
        rows = [(f"`{item.name}`", item.meaning) for item in dialect.variables]
        for row in rows or [("all", dialect.syntax)]:
            speakers.setdefault(row, []).append(f"`{dialect.name}`")
    for (variable, meaning), names in speakers.items():
        lines.append(f"| {', '.join(names)} | {variable} | {meaning} |")
    return "\n".join(lines) + "\n\n" + FRAMEWORKS_END


def pages() -> dict[str, str]:
    """Every generated file, by its path in the repository."""
    texts = {
        "docs/commands.md": commands_page.page(programs()),
        "docs/environment.md": environment(),
        "docs/frameworks.md": frameworks(),
        "docs/states.md": states(),
        "docs/states.svg": diagram.svg(TRANSITIONS),
        "docs/status.schema.json": status_schema.text(),
    }
    for path in sorted((ROOT / "docs").glob("*.md")):  # parts of pages
        name = f"docs/{path.name}"
        texts[name] = sections.filled(texts.get(name) or path.read_text())
    texts |= {f"man/{program.path}.1": manual.page(program) for program in programs()}
    return texts


def main() -> int:
    """With --check: 1 where a file is not what the code says."""
    stale = []
    for name, text in pages().items():
        path = ROOT / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"{', '.join(stale)}: stale; run python scripts/generate_docs.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
