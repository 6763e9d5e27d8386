"""A torchrun command line: read, so that nothing is said twice; checked; given the sealed values.

Flags are recognised as torchrun's own parser does (`get_args_parser` in `torch/distributed/run.py`,
torch 2.13): see `mingled.cli.programs`. torchrun takes each flag's default from the environment:
`--node-rank` from PET_NODE_RANK, and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from mingled.cli import prefixes
from mingled.cli.programs import Flag, Program, check_same, integer, last
from mingled.cli.resolved import Resolved
from mingled.core.config import Config
from mingled.errors import BadInput
from mingled.frameworks.environment import defaults

WITH_VALUE = prefixes.words(
    "nnodes nproc-per-node rdzv-backend rdzv-endpoint rdzv-id rdzv-conf max-restarts "
    "monitor-interval start-method event-log-handler role log-dir redirects tee "
    "local-ranks-filter duplicate-stdout-filters duplicate-stderr-filters node-rank master-addr "
    "master-port local-addr logs-specs numa-binding signals-to-handle shutdown-timeout"
)
"""torchrun's flags that take a value, torch 2.13; those of older versions are among them."""

WITHOUT_VALUE = prefixes.words("standalone module no-python run-path virtual-local-rank help")
"""torchrun's flags that take none, torch 2.13."""

SHORT = {"-m": "module", "-r": "redirects", "-t": "tee", "-h": "help"}

TORCHRUN = Program(
    name="torchrun",
    version="torch 2.13",
    with_value=WITH_VALUE,
    without_value=WITHOUT_VALUE,
    short=SHORT,
    valueless="set its PET_ variable",
)

LAUNCH = msgspec.structs.replace(TORCHRUN, without_value=WITHOUT_VALUE | {"use-env"})
"""The older `torch.distributed.launch`, which understands one more."""

_OURS = ("nnodes", "node-rank", "nproc-per-node", "master-addr", "master-port")
_NOT_WITH_US = ("standalone", "master-addr", "master-port", "rdzv-endpoint")


class TorchrunLine(NamedTuple):
    """What a command line says to torchrun. Indexes count the words of the whole line, `argv`."""

    argv: tuple[str, ...]
    flags: tuple[Flag, ...]  #: in the line's order
    insert_at: int  #: where more flags may be put: before the script and a `--` before it
    script: int  #: the training script, or the module after `-m`
    prefix: prefixes.Prefix  #: the commands that torchrun stands behind
    nnodes: tuple[int, int] | None  #: (min, max) nodes that the line names
    nproc: str | None  #: its `--nproc-per-node`: a number or a word
    node_rank: int | None
    max_restarts: int | None

    @property
    def direct(self) -> bool:
        """torchrun is CMD itself: the sealed values can be given as flags, which beat PET_*."""
        return not self.prefix.commands

    def flag(self, name: str) -> Flag | None:
        """The occurrence that counts: the last."""
        return last(self.flags, name)


def read(cmd: Sequence[str]) -> TorchrunLine | None:
    """`cmd` as torchrun's command line; None where it is something else, or cannot be told.

    torchrun is `torchrun`, a path that ends so, and `python -m torch.distributed.run` (or
    `launch`), also behind the commands that `mingled.cli.prefixes` knows.

    Raises:
        BadInput: it is torchrun's, and torchrun would refuse it (no script, a flag that wants a
            value, an unknown or ambiguous flag, a count that is none).
    """
    argv = tuple(cmd)
    prefix = prefixes.read(argv)
    if prefix is None:
        return None
    flags, at = (LAUNCH if prefix.launch else TORCHRUN).flags(argv, prefix.end)
    script = at + 1 if argv[at : at + 1] == ("--",) else at
    if any(flag.name == "help" for flag in flags):
        raise BadInput("torchrun --help starts nothing that could wait: run it without mingle-wait")
    if script >= len(argv):
        raise BadInput("torchrun's command line names no training script; add it, as in train.py")
    line = TorchrunLine(argv, flags, at, script, prefix, None, None, None, None)
    nnodes, node_rank = _said(line, "nnodes"), _said(line, "node-rank")
    restarts = _said(line, "max-restarts")
    return line._replace(
        nnodes=node_counts(nnodes.value, nnodes.text) if nnodes else None,
        nproc=said.value if (said := _said(line, "nproc-per-node")) else None,
        node_rank=integer(node_rank) if node_rank else None,
        max_restarts=integer(restarts) if restarts else None,
    )


def check(
    line: TorchrunLine,
    *,
    job: str,
    nnodes: tuple[int, int] | None,
    node_rank: int | None,
    nproc: str | None,
    env: Mapping[str, str],
) -> Resolved:
    """Merges mingle-wait's own flags (None: not given) with the line and with PET_* in `env`.

    A flag beats PET_*, as with torchrun; what an earlier mingle-wait exported does not count.

    Raises:
        BadInput: the two places differ, no place names a node count, or the line says what would
            lead torchrun away from the job; names the flag to add or delete.
    """
    env = defaults(env)
    _check_address(line, job, env)
    _check_prefix(line, job)
    check_same(
        job, "torchrun", "--nnodes", _range(nnodes), _said(line, "nnodes"), _range(line.nnodes)
    )
    check_same(
        job, "torchrun", "--nproc-per-node", nproc, _said(line, "nproc-per-node"), line.nproc
    )
    own_rank, line_rank = _text(node_rank), _text(line.node_rank)
    check_same(job, "torchrun", "--node-rank", own_rank, _said(line, "node-rank"), line_rank)

    if (sizes := nnodes or line.nnodes) is None and "PET_NNODES" in env:
        sizes = node_counts(env["PET_NNODES"], f"job {job}: PET_NNODES={env['PET_NNODES']}")
    if sizes is None:
        raise BadInput(
            f"job {job}: no node count is given, so torchrun would train alone on each machine; "
            "add --nnodes N to mingle-wait, the same on every machine"
        )
    said = _said(line, "nnodes")
    if said and line.nnodes and line.nnodes[0] != line.nnodes[1] and not line.direct:
        raise BadInput(
            f"job {job}: torchrun behind {line.prefix.commands[0]} would go by its own "
            f"{said.text}, not by the nodes that came; delete it there and add "
            f"--nnodes {_range(line.nnodes)} to mingle-wait"
        )
    rank = line.node_rank if node_rank is None else node_rank
    if rank is None and (text := env.get("PET_NODE_RANK")) is not None:
        rank = integer(Flag("node-rank", text, 0, 0, f"job {job}: PET_NODE_RANK={text}"))
    return Resolved(sizes, nproc or line.nproc or env.get("PET_NPROC_PER_NODE") or "1", rank)


def rewrite(line: TorchrunLine, config: Config) -> list[str]:
    """The command line to run: torchrun as CMD itself gets the sealed values as flags.

    Its own `--nnodes`, `--node-rank` and `--nproc-per-node` are taken out; the rendezvous stays
    torchrun's default, static. Behind another command the line stays as it is (it gets PET_*).

    Raises:
        BadInput: rank 0's address has a scope, which torchrun does not take.
    """
    if not line.direct:
        return list(line.argv)
    if "%" in config.master_addr:
        raise BadInput(
            f"job {config.job}: the machines reach each other by IPv6 link-local addresses only "
            f"(rank 0 is {config.master_addr}), and torchrun takes none; give them IPv4 or other "
            "IPv6 addresses, or start each process by itself: --world-size W -- python ..."
        )
    taken = {at for flag in line.flags if flag.name in _OURS for at in range(flag.first, flag.end)}
    kept = [word for at, word in enumerate(line.argv[: line.insert_at]) if at not in taken]
    return [
        *kept,
        f"--nnodes={config.nnodes}",
        f"--node-rank={config.rank}",
        f"--nproc-per-node={config.nproc_per_node}",
        f"--master-addr={config.master_addr}",
        f"--master-port={config.master_port}",
        *line.argv[line.insert_at :],
    ]


def node_counts(text: str | None, said: str) -> tuple[int, int]:
    """(min, max) of `N` or `MIN:MAX` as torchrun means it; `said` names its place in a sentence.

    Raises:
        BadInput: neither, or not 1 <= min <= max.
    """
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?::\s*([0-9]{1,9})\s*)?", text or "")
    sizes = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if match and sizes[0] > sizes[1]:
        raise BadInput(f"{said}: the minimum is above the maximum; want MIN:MAX, as in 2:4")
    if not 1 <= sizes[0] <= sizes[1]:
        raise BadInput(f"{said}: want a number of nodes, as in --nnodes 4, or a range, as in 2:4")
    return sizes


def _said(line: TorchrunLine, name: str) -> Flag | None:
    """What the line says of `name`: its flag, else a PET_ variable that `env` sets there."""
    if (flag := line.flag(name)) is not None:
        return flag
    variable = _variable(name)
    value = line.prefix.sets.get(variable)
    return None if value is None else Flag(name, value, 0, 0, f"{variable}={value}")


def _variable(name: str) -> str:
    return "PET_" + name.upper().replace("-", "_")


def _check_address(line: TorchrunLine, job: str, env: Mapping[str, str]) -> None:
    """Refuses what would make torchrun meet elsewhere than where mingle-wait sends it."""
    for name in (*_NOT_WITH_US, "rdzv-backend"):
        said = _said(line, name)
        where = "delete it from torchrun's command line"
        # torchrun's own environment: PET_MASTER_* there is replaced by ours, so no matter.
        if said is None and name not in ("master-addr", "master-port"):
            value = env.get(variable := _variable(name))
            if value is not None:
                said = Flag(name, value, 0, 0, f"{variable}={value}")
                where = f"unset {variable}"
        if said is None or _harmless(said):
            continue
        raise BadInput(
            f"job {job}: {said.text} leads torchrun away from the job; {where}: mingle-wait hands "
            "torchrun the address of rank 0 itself"
        )


def _harmless(said: Flag) -> bool:
    if said.name == "rdzv-backend":
        return said.value == "static"
    if said.name == "standalone":
        return said.value == "0"  # PET_STANDALONE=0 is off; the flag itself has no value
    return said.name == "rdzv-endpoint" and said.value == ""


def _check_prefix(line: TorchrunLine, job: str) -> None:
    """Refuses an `env` on the line that takes away the variables through which torchrun is told."""
    command = line.prefix.hides(("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR"))
    command = command or line.prefix.hides(("PET_MASTER_PORT", "PET_NPROC_PER_NODE"))
    if command:
        raise BadInput(
            f"job {job}: `{command}` takes away the variables by which mingle-wait tells torchrun "
            f"where rank 0 is; delete it, or put it in front of mingle-wait"
        )


def _range(sizes: tuple[int, int] | None) -> str | None:
    if sizes is None:
        return None
    return str(sizes[0]) if sizes[0] == sizes[1] else f"{sizes[0]}:{sizes[1]}"


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)
