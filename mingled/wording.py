"""The sentences about a wait and a round that people read, on a terminal, in a log, in a notebook.

Text from other machines never gets through raw.
"""

from __future__ import annotations

from mingled.core import local
from mingled.core.config import Config
from mingled.core.heard import printable
from mingled.core.words import Form, distinct

HOSTS_NAMED_MAX = 16
"""In the line that says who is in a round: people read no more."""


def clean(text: str) -> str:
    """Text for a terminal, whoever it is from: this is the one place where it is made harmless."""
    return printable(text)


# ---------------------------------------------------------------- before a round


def split_warning(job: str, size_min: int, size_max: int) -> str | None:
    """Of a range that would let both halves of a split network start; None where it cannot."""
    if size_max == 0 or 2 * size_min > size_max:
        return None
    safe = size_max // 2 + 1
    return (
        f"job {job}: with {size_min}:{size_max} both halves of a split network could start a round "
        f"of their own; the smallest range that prevents it is {safe}:{size_max}"
    )


def waiting_line(progress: local.Progress, form: Form) -> str:
    """`2/4 here: gpu1, gpu4; waiting for node ranks 2, 3`. Users are named where they differ."""
    several = len({seen.user for seen in progress.present}) > 1
    shown_as = (
        (f"{seen.user}@{seen.host}" if several and seen.user else seen.host, seen.address)
        for seen in progress.present
    )
    names = ", ".join(distinct(shown_as))
    shown = len(progress.present)
    if progress.here > shown:
        names += f" and {progress.here - shown} more"
    if form is Form.PLAIN:
        line = f"rank 0 is on {progress.leader}" if progress.leader else "waiting for rank 0"
    else:
        size = f"{progress.size_min}"
        if progress.size_max != progress.size_min:
            size += f" to {progress.size_max}"
        line = f"{progress.here}/{size} here: {names}"
        ordinal = _ordinal(form)
        lacking = progress.size_min - progress.here
        if progress.missing:
            plural = "s" if len(progress.missing) > 1 else ""
            line += f"; waiting for {ordinal}{plural} {', '.join(map(str, progress.missing))}"
        elif lacking > 0:
            line += f"; waiting for {lacking} more"
        if progress.leader is None:
            line += " (no rank 0 yet)"
    if progress.running:
        r = progress.running
        line += (
            f"; round {r.round} has run for {r.since_s:.0f} s on {', '.join(r.hosts)}: "
            "this one is for the next"
        )
    if progress.note:
        line += f" [{progress.note}]"
    return clean(line)


# ---------------------------------------------------------------- a round


def released_lines(config: Config, found_s: float, waited_s: float) -> list[str]:
    """Who is in the round, if others are; then who is rank 0 and what this node is."""
    roster = roster_line(config)
    return [*([roster] if roster else []), released_line(config, found_s, waited_s)]


def roster_line(config: Config) -> str | None:
    """`with gpu1 (10.0.0.1, ann), gpu2 (10.0.0.2, ann)`, by rank, each node once; None where nobody
    else is known: in the plain form, and where all are on one node."""
    nodes: dict[str, dict[str, None]] = {}
    for member in config.members:
        words = nodes.setdefault(member.node, {f"{member.host} ({member.address}": None})
        words[member.user] = None
    if len(nodes) < 2:
        return None
    named = [", ".join(filter(None, words)) + ")" for words in nodes.values()]
    more = len(named) - HOSTS_NAMED_MAX
    line = "with " + ", ".join(named[:HOSTS_NAMED_MAX])
    return clean(line + (f" and {more} more" if more > 0 else ""))


def endpoint(address: str, port: int) -> str:
    """`10.0.0.7:29500`, `[fd00::7]:29500`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def released_line(config: Config, found_s: float, waited_s: float) -> str:
    """One sentence: who is rank 0, where, what this node is, and what the wait was for."""
    master = endpoint(config.master_addr, config.master_port)
    head = f"rank 0 is {config.leader_host} ({master})"
    if config.form is Form.PLAIN:
        tail = f"this is rank {config.rank}"
        if config.interface is None:
            tail += (
                "; several interfaces here, so none is exported: set NCCL_SOCKET_IFNAME and "
                "GLOO_SOCKET_IFNAME yourself if need be"
            )
    elif config.form is Form.LAUNCHER:
        tail = f"this is node rank {config.rank} of {config.nnodes}"
    else:
        tail = f"this is rank {config.rank} of {config.world_size}"
    if config.interface:
        tail += f" on {config.interface} ({config.address})"
    return clean(f"{head}; {tail} (found in {found_s:.2f} s, all here after {waited_s:.2f} s)")


def member(gone: local.Gone, form: Form) -> str:
    """`gpu3 (10.0.0.7, node rank 2)`."""
    return clean(f"{gone.host} ({gone.address}, {_ordinal(form)} {gone.rank})")


def gone_line(gone: local.Gone, form: Form) -> str:
    """What became of a member, without what follows from it; empty where it left in peace."""
    who = member(gone, form)
    match gone.how:
        case "lost":
            when = "just now" if gone.ago_s < 1 else f"{gone.ago_s:.0f} s ago"
            return clean(f"{who} lost {when} in round {gone.round}: {gone.reason}")
        case "unwatched":
            why = f" ({gone.reason})" if gone.reason else ""
            return clean(f"{who} is no longer watched{why}: it may well go on")
        case "running":
            return f"{who} is watched again"
        case _:
            return ""


def _ordinal(form: Form) -> str:
    return "node rank" if form is Form.LAUNCHER else "rank"
