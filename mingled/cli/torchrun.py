"""A torchrun command line: read, so that nothing is said twice; checked; given the sealed values.

Flags are recognised as torchrun's own parser does (`get_args_parser` in `torch/distributed/run.py`,
torch 2.13, on argparse): both spellings (`--nproc-per-node`, `--nproc_per_node`), `--flag value`
and `--flag=value`, unambiguous beginnings (`--nn 2`), short flags alone or run together (`-mr3`),
the last of several. What follows the training script is the script's and never looked at. torchrun
takes each flag's default from the environment: `--node-rank` from PET_NODE_RANK, and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from mingled.cli import prefixes
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

LAUNCH_ONLY = frozenset({"use-env"})
"""What the older `torch.distributed.launch` understands on top; it takes no value."""

_OURS = ("nnodes", "node-rank", "nproc-per-node", "master-addr", "master-port")
_NOT_WITH_US = ("standalone", "master-addr", "master-port", "rdzv-endpoint")


class Flag(NamedTuple):
    """One flag as it stands on the line."""

    name: str  #: its full name, dashes within
    value: str | None  #: None for a flag that takes none
    first: int  #: index of its token in the line
    end: int  #: index after its last token
    text: str  #: as it was written, for a sentence


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
        return next((flag for flag in reversed(self.flags) if flag.name == name), None)


class Resolved(msgspec.Struct, frozen=True):
    """What the launcher form asks for, after all places that may say it were read."""

    nnodes: tuple[int, int]  #: (min, max)
    nproc: str  #: a number or one of torchrun's words
    node_rank: int | None  #: None: automatic


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
    flags: list[Flag] = []
    at = prefix.end
    while at < len(argv) and argv[at] != "--":
        found = _flags_in(argv, at, LAUNCH_ONLY if prefix.launch else frozenset())
        if not found:
            break
        flags += found
        at = found[-1].end
    script = at + 1 if argv[at : at + 1] == ("--",) else at
    if any(flag.name == "help" for flag in flags):
        raise BadInput("torchrun --help starts nothing that could wait: run it without mingle-wait")
    if script >= len(argv):
        raise BadInput("torchrun's command line names no training script; add it, as in train.py")
    line = TorchrunLine(argv, tuple(flags), at, script, prefix, None, None, None, None)
    nnodes, node_rank = _said(line, "nnodes"), _said(line, "node-rank")
    restarts = _said(line, "max-restarts")
    return line._replace(
        nnodes=node_counts(nnodes.value, nnodes.text) if nnodes else None,
        nproc=said.value if (said := _said(line, "nproc-per-node")) else None,
        node_rank=_integer(node_rank) if node_rank else None,
        max_restarts=_integer(restarts) if restarts else None,
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
    _check_same(job, "--nnodes", _range(nnodes), _said(line, "nnodes"), _range(line.nnodes))
    _check_same(job, "--nproc-per-node", nproc, _said(line, "nproc-per-node"), line.nproc)
    own_rank, line_rank = _text(node_rank), _text(line.node_rank)
    _check_same(job, "--node-rank", own_rank, _said(line, "node-rank"), line_rank)

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
        rank = _integer(Flag("node-rank", text, 0, 0, f"job {job}: PET_NODE_RANK={text}"))
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


def _flags_in(argv: tuple[str, ...], at: int, extra: frozenset[str]) -> list[Flag]:
    """The flags in the word at `at` (several when short ones run together); none for the script."""
    word = argv[at]
    if not word.startswith("-") or word == "-":
        return []
    spelled, attached = _split(word)
    if (name := _match(spelled, word, extra)) is None:
        # As argparse: a negative number, or a word with a blank in it, is no flag.
        if re.fullmatch(r"-\d+|-\d*\.\d+", word) or " " in word:
            return []
        if word.startswith("--") and attached is not None:
            return [Flag(spelled[2:], attached, at, at + 1, word)]  # a newer torchrun's, perhaps
        raise BadInput(
            f"torchrun has no flag {word} (as of torch 2.13): correct it; if your torchrun is "
            f"newer and knows it, write {spelled}=VALUE, or if it takes none set its PET_ variable"
        )
    if name in WITH_VALUE:
        if attached is not None:
            return [Flag(name, attached, at, at + 1, word)]
        if at + 1 >= len(argv) or _looks_like_flag(argv[at + 1], extra):
            raise BadInput(f"torchrun's {word} wants a value after it")
        return [Flag(name, argv[at + 1], at, at + 2, f"{word} {argv[at + 1]}")]
    flag = Flag(name, None, at, at + 1, word)
    if attached is None:
        return [flag]
    if word.startswith("--"):
        raise BadInput(f"torchrun's {spelled} takes no value: delete ={attached}")
    # Short flags run together: the rest is read as if it stood alone in the same place.
    rest = _flags_in((*argv[:at], f"-{attached}", *argv[at + 1 :]), at, extra)
    if not rest:
        raise BadInput(f"torchrun's {spelled} takes no value: delete {attached} from {word}")
    return [flag, *(other._replace(text=word) for other in rest)]


def _split(word: str) -> tuple[str, str | None]:
    """A word with a dash in front: the flag as it is spelled, and the value attached to it."""
    if word.startswith("--"):
        spelled, equals, value = word.partition("=")
        return spelled, value if equals else None
    attached = word[2:]
    if attached.startswith("="):
        attached = attached[1:]
    return word[:2], attached if len(word) > 2 else None


def _match(spelled: str, word: str, extra: frozenset[str]) -> str | None:
    """The full name of the flag that `spelled` means; None when no flag begins so."""
    if not spelled.startswith("--"):
        return SHORT.get(spelled)
    if "-" in spelled[2:] and "_" in spelled[2:]:
        return None  # argparse knows the two spellings, not a mixture
    given = spelled[2:].replace("_", "-")
    known = WITH_VALUE | WITHOUT_VALUE | extra
    if given in known:
        return given
    names = sorted(name for name in known if name.startswith(given))
    if len(names) > 1:
        raise BadInput(
            f"torchrun's {word} could mean {', '.join('--' + name for name in names)}: "
            "write the one you mean"
        )
    return names[0] if names else None


def _looks_like_flag(word: str, extra: frozenset[str]) -> bool:
    """Whether argparse would refuse `word` as a flag's value."""
    if not word.startswith("-") or word == "-":
        return False
    if word == "--" or _match(_split(word)[0], word, extra) is not None:
        return True
    return not (re.fullmatch(r"-\d+|-\d*\.\d+", word) or " " in word)


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


def _check_same(job: str, name: str, own: str | None, said: Flag | None, value: str | None) -> None:
    if own is None or said is None or value is None or _plain(own) == _plain(value):
        return
    raise BadInput(
        f"job {job}: mingle-wait says {name} {own}, torchrun's command line says {said.text}; "
        f"delete one of the two"
    )


def _plain(text: str) -> str:
    return str(int(text)) if re.fullmatch(r"[0-9]{1,9}", text) else text


def _range(sizes: tuple[int, int] | None) -> str | None:
    if sizes is None:
        return None
    return str(sizes[0]) if sizes[0] == sizes[1] else f"{sizes[0]}:{sizes[1]}"


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)


def _integer(flag: Flag) -> int:
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", flag.value or ""):
        raise BadInput(f"{flag.text}: want a whole number")
    return int(flag.value or "")
