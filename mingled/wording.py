"""The sentences about a wait that people read, on a terminal, in a log, in a notebook.

Text from other machines never gets through raw.
"""

from __future__ import annotations

from mingled.core import local
from mingled.core.config import Config
from mingled.core.words import Form


def clean(text: str) -> str:
    """Without control characters: a host name must not be able to repaint the terminal."""
    return "".join(c if c.isprintable() else "�" for c in text)


def waiting_line(progress: local.Progress, form: Form) -> str:
    """`2/4 here: gpu1, gpu4; waiting for node ranks 2, 3`."""
    hosts = list(dict.fromkeys(seen.host for seen in progress.present))
    names = ", ".join(hosts)
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
        ordinal = "node rank" if form is Form.LAUNCHER else "rank"
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


def released_line(config: Config, found_s: float, waited_s: float) -> str:
    """One sentence: who is rank 0, where, what this node is, and what the wait was for."""
    master = f"{config.master_addr}:{config.master_port}"
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
