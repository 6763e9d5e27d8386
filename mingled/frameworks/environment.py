"""A sealed config as environment variables: what torch, torchrun and the libraries below them read.

Two kinds. **Rendezvous variables** (address, ranks, sizes) are always ours: a value that was there
is replaced, and reported. **Tuning variables** (which interface a library uses) stay the user's: we
set one only where the user has not.

`MINGLE_EXPORTED` records the names and values that we set. A shell that evaluated them, or a
process started with them, can then ask for the next job without the last one's RANK being read back
as a wish; a value that somebody changed since then is a wish again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from mingled.core import codec
from mingled.core.config import Config
from mingled.core.words import Form
from mingled.errors import BadInput

EXPORTED = "MINGLE_EXPORTED"

_ALL = frozenset(Form)
_LAUNCHER = frozenset({Form.LAUNCHER})
_PROCESS = frozenset({Form.PROCESS})
_SEALED = _LAUNCHER | _PROCESS


class Variable(msgspec.Struct, frozen=True):
    """One exported variable."""

    name: str
    forms: frozenset[Form]
    meaning: str
    source: str | Callable[[Config], str | int | None]  #: a field of `Config`, or what computes it

    def value(self, config: Config) -> str | None:
        """Its text for `config`; None where the config does not know, and then it is not set."""
        source = self.source
        value = getattr(config, source) if isinstance(source, str) else source(config)
        return None if value is None else str(value)


def _hosts(config: Config) -> str | None:
    """The nodes' addresses, one a node, in node-rank order."""
    by_node: dict[int, str] = {}
    for member in config.members:
        by_node.setdefault(member.node_rank, member.address)
    return ",".join(by_node[node_rank] for node_rank in sorted(by_node)) or None


# fmt: off
VARIABLES: tuple[Variable, ...] = (
    # torch reads an IPv6 literal bare (TCPStore, and torchrun splits host:port at the last colon).
    Variable("MASTER_ADDR", _ALL, "literal IP of rank 0's node", "master_addr"),
    Variable("MASTER_PORT", _ALL, "TCP port of the store on rank 0", "master_port"),
    Variable("RANK", _PROCESS, "global rank of this process", "global_rank"),
    Variable("RANK", frozenset({Form.PLAIN}), "the rank that was given", "rank"),
    Variable("WORLD_SIZE", _PROCESS, "processes in the job", "world_size"),
    Variable("LOCAL_RANK", _PROCESS, "rank among this node's processes", "local_rank"),
    Variable("LOCAL_WORLD_SIZE", _PROCESS, "processes on this node", "local_world_size"),
    Variable("NODE_RANK", _PROCESS, "this node's place among the nodes", "node_rank"),
    Variable("PET_NNODES", _LAUNCHER, "torchrun --nnodes: a count, never a range", "nnodes"),
    Variable("PET_NODE_RANK", _LAUNCHER, "torchrun --node-rank", "rank"),
    Variable("PET_MASTER_ADDR", _LAUNCHER, "torchrun --master-addr", "master_addr"),
    Variable("PET_MASTER_PORT", _LAUNCHER, "torchrun --master-port", "master_port"),
    Variable("PET_NPROC_PER_NODE", _LAUNCHER, "torchrun --nproc-per-node", "nproc_per_node"),
    Variable("MINGLE_JOB", _ALL, "job ID", "job"),
    Variable("MINGLE_FORM", _ALL, "launcher, process or plain", "form"),
    Variable("MINGLE_ROUND", _ALL, "round of the job, from 1", "round"),
    Variable("MINGLE_CLAIM", _ALL, "nonce of the leader's claim", "claim"),
    Variable("MINGLE_RANK", _ALL, "this participant's place among the participants", "rank"),
    Variable("MINGLE_MASTER_ADDR", _ALL, "as MASTER_ADDR", "master_addr"),
    Variable("MINGLE_MASTER_PORT", _ALL, "as MASTER_PORT", "master_port"),
    Variable("MINGLE_LEADER_HOST", _ALL, "host name of rank 0's node", "leader_host"),
    Variable("MINGLE_INTERFACE", _ALL, "this node's interface on the proven path", "interface"),
    Variable("MINGLE_ADDRESS", _ALL, "this node's own IP on that path", "address"),
    Variable("MINGLE_NNODES", _SEALED, "nodes in the round", "nnodes"),
    Variable("MINGLE_NODE_RANK", _SEALED, "this node's place among the nodes", "node_rank"),
    Variable("MINGLE_NPROC_PER_NODE", _SEALED, "processes of this participant", "nproc_per_node"),
    Variable("MINGLE_GLOBAL_RANK", _SEALED, "global rank of its first process", "global_rank"),
    Variable("MINGLE_WORLD_SIZE", _SEALED, "processes in the round", "world_size"),
    Variable("MINGLE_LOCAL_RANK", _SEALED, "as LOCAL_RANK; 0 for a launcher", "local_rank"),
    Variable("MINGLE_LOCAL_WORLD_SIZE", _SEALED, "processes on this node", "local_world_size"),
    Variable("MINGLE_HOSTS", _SEALED, "the nodes' IPs in node-rank order, comma between", _hosts),
)
"""Every rendezvous variable: its forms, its meaning, its value. `MINGLE_EXPORTED` comes on top."""

TUNING: tuple[tuple[str, str], ...] = (
    ("NCCL_SOCKET_IFNAME", "={}"),  # exact; without "=", eth1 matches eth10 too
    ("GLOO_SOCKET_IFNAME", "{}"),   # bare names, comma between, each opened as it is
    ("TP_SOCKET_IFNAME", "{}"),     # TensorPipe: one bare name
)
"""The interface in each library's own syntax; set where the user has not (empty counts as not)."""
# fmt: on

FAMILY = ("NCCL_SOCKET_FAMILY", "AF_INET6")
"""For NCCL where the proven path is IPv6: of an interface's addresses it takes the first, which is
IPv4 where there is one. So does Gloo, which has no variable for it. Ours only beside our interface:
the user's may have no IPv6."""


class Environment(msgspec.Struct, frozen=True):
    """What to change in an environment for one config."""

    values: dict[str, str]  #: to set, `MINGLE_EXPORTED` included
    unset: list[str]  #: ours from an earlier job, and not of this one
    replaced: list[tuple[str, str, str]]  #: (name, the user's value, ours), to be said on stderr

    def merged(self, present: Mapping[str, str]) -> dict[str, str]:
        """`present` with the changes made: what a child process is started with."""
        kept = {name: value for name, value in present.items() if name not in self.unset}
        return kept | self.values


_NPROC = ("NPROC_PER_NODE", "GLOBAL_RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
AGENT = frozenset(
    v.name
    for v in VARIABLES
    if v.name.startswith("MINGLE_") and v.name.removeprefix("MINGLE_") not in _NPROC
)
"""For torch's own agent, which gives its workers MASTER_ADDR and ranks itself, and knows alone how
many processes each node has; and which must not inherit PET_*."""


def agent_environment(config: Config, *, present: Mapping[str, str]) -> dict[str, str]:
    """What the torchrun plugin sets for the workers of its agent, the interface included."""
    return environment(config, present=present, only=AGENT).values


def environment(
    config: Config,
    *,
    present: Mapping[str, str],
    only: Collection[str] | None = None,
    more: Mapping[str, str] | None = None,
) -> Environment:
    """The variables of `config` for a process or shell whose environment is `present`. `only`: of
    the rendezvous variables no others; `more` on top, such as a dialect's."""
    values = {
        variable.name: value
        for variable in VARIABLES
        if config.form in variable.forms
        and (only is None or variable.name in only)
        and (value := variable.value(config)) is not None
    }
    values |= more or {}
    wishes = defaults(present)
    replaced = [
        (name, wishes[name], value)
        for name, value in values.items()
        if name in wishes and wishes[name] != value
    ]
    if config.interface is not None:
        for name, syntax in TUNING:
            if not wishes.get(name):
                values[name] = syntax.format(config.interface)
        if TUNING[0][0] in values and ":" in (config.address or "") and not wishes.get(FAMILY[0]):
            values[FAMILY[0]] = FAMILY[1]
    unset = [name for name in present if name not in wishes and name not in values]
    values[EXPORTED] = exported(values)
    return Environment(values, [name for name in unset if name != EXPORTED], replaced)


def exported(values: Mapping[str, str]) -> str:
    """The record of what we set, for `MINGLE_EXPORTED`: a JSON object of names and values."""
    return codec.json(dict(values)).decode()


def defaults(env: Mapping[str, str]) -> dict[str, str]:
    """`env` as somebody else made it: without each variable that still has the value we gave it.

    A record that cannot be read (cut off, written by hand) counts as none.
    """
    try:
        ours = msgspec.json.decode(env.get(EXPORTED, "{}"), type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeError):
        ours = {}
    return {
        name: value for name, value in env.items() if name != EXPORTED and ours.get(name) != value
    }


STORE_INTERFACE_ONLY = "MINGLE_STORE_INTERFACE_ONLY"
"""Default of `store_interface_only`, wherever mingled opens rank 0's store itself."""


def asked_by_environment(job: str, name: str, env: Mapping[str, str] | None = None) -> bool:
    """A variable that is 1 or 0; not set is 0. Raises `BadInput` for anything else: who misspells
    what is to protect him must hear of it."""
    text = (os.environ if env is None else env).get(name, "")
    if text not in ("", "0", "1"):
        raise BadInput(f"job {job}: {name}={text[:64]!r} in the environment: want 1 or 0")
    return text == "1"


def check_interfaces(present: Mapping[str, str], node_interfaces: Sequence[str]) -> None:
    """Refuses an interface that the user set and this node lacks; what we set ourselves is passed.

    Read as the libraries do: NCCL (`ncclFindInterfaces`) takes prefixes with commas between, exact
    names after `=`, all but these after `^`, each perhaps with `:port`, and fails when none is
    left; Gloo (torch's `ProcessGroupGloo`) opens every name of a comma list; TensorPipe takes one
    name, and goes on with 127.0.0.1, silently, when it is not there.

    Raises:
        BadInput: names the variable, its value, what the node has, and what to do.
    """
    wishes = defaults(present)
    for name, _ in TUNING:
        value = wishes.get(name, "")
        missing = _missing(name, value, node_interfaces)
        if missing:
            raise BadInput(
                f"{name}={value}: this node has no interface {missing}, it has "
                f"{', '.join(node_interfaces) or 'none'}; unset {name} (mingled then sets the "
                "interface that reaches rank 0), or name one of these"
            )


def _missing(name: str, value: str, node_interfaces: Sequence[str]) -> str:
    """What of `value` this node lacks, for a sentence; empty when the library will be content."""
    if name == "TP_SOCKET_IFNAME":
        return value if value not in node_interfaces else ""
    if name == "GLOO_SOCKET_IFNAME":
        wanted = [part for part in value.split(",") if part]
        return ", ".join(part for part in wanted if part not in node_interfaces)
    if value.startswith("^"):
        return ""
    exact = value.startswith("=")
    # "eth0:1" is first a name (an address label), and only then an interface and a port.
    wanted = [part for part in value.removeprefix("=").split(",") if part]
    names = [*wanted, *(part.partition(":")[0] for part in wanted)]
    for interface in node_interfaces:
        if interface in names or (not exact and interface.startswith(tuple(names))):
            return ""
    return " or ".join(wanted if exact else [f"{part}*" for part in wanted])
