"""`make bench`: measure, and print the table."""

from __future__ import annotations

import compileall
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click

import mingled
from benchmarks import commands, idle, loss, release, table, torchrun
from benchmarks.fleet import BROWSED_S, Fleet
from benchmarks.result import Result
from mingled.errors import MingleError
from mingled.lab import available, missing


class Size(NamedTuple):
    """How often, how many and how long."""

    nodes: tuple[int, ...]
    joins: int
    commands: int
    starts: int
    captures: int
    watch_s: float
    launches: int
    torch_nodes: tuple[int, ...] = (2, 4, 8)
    settle_s: float = BROWSED_S


FULL = Size(nodes=(2, 8), joins=20, commands=20, starts=8, captures=3, watch_s=60, launches=5)
QUICK = Size(nodes=(2, 8), joins=5, commands=7, starts=3, captures=1, watch_s=30, launches=2)

LAN_NAMES = ("release", "together", "packets", "loss", "mingle-wait", "import", "idle")

TORCH_NAMES = ("next-rendezvous", "torchrun")

NAMES = (*LAN_NAMES, "cold-start", *TORCH_NAMES)

Measure = Callable[[], list[Result]]


def measure(size: Size, names: tuple[str, ...]) -> Iterator[Result]:
    """Everything that is named, one after the other: two at once would disturb each other."""
    for nodes in size.nodes:
        wanted = [name for name in names if name in _of_size(nodes, size)]
        if wanted:
            with Fleet(nodes) as fleet:
                yield from _run(_measures(fleet, size), wanted, f", {nodes} nodes")
    for nodes in size.torch_nodes:
        wanted = [name for name in names if name in TORCH_NAMES]
        if wanted:
            with Fleet(nodes) as fleet:
                yield from _run(_of_torch(fleet, size), wanted, f", {nodes} nodes")
    if "cold-start" in names:
        with Fleet(2, daemons=False) as fleet:
            yield from _run(
                {"cold-start": lambda: commands.cold_start(fleet, size.starts)}, ["cold-start"], ""
            )


def _of_size(nodes: int, size: Size) -> tuple[str, ...]:
    """What is measured with so many nodes: the commands and the idle daemon with the fewest."""
    several = ("release", "together", "packets", "loss")
    return (*several, "mingle-wait", "import", "idle") if nodes == size.nodes[0] else several


def _measures(fleet: Fleet, size: Size) -> dict[str, Measure]:
    # Many nodes share few cores: what takes long and says little is done less often there.
    joins = size.joins if len(fleet) < 64 else max(1, size.joins // 4)
    return {
        "release": lambda: release.last_join(fleet, joins),
        "together": lambda: release.all_at_once(fleet, joins),
        "loss": lambda: loss.killed(fleet, joins),
        "packets": lambda: release.packets(fleet, size.captures, size.settle_s),
        "mingle-wait": lambda: commands.config_ready(fleet, size.commands),
        "import": lambda: commands.import_mingled(fleet, size.commands),
        "idle": lambda: idle.idle(fleet, size.watch_s, size.settle_s),
    }


def _of_torch(fleet: Fleet, size: Size) -> dict[str, Measure]:
    return {
        "next-rendezvous": lambda: torchrun.handlers(fleet, size.joins // 2),
        "torchrun": lambda: torchrun.launches(fleet, size.launches),
    }


def _run(measures: dict[str, Measure], names: list[str], where: str) -> Iterator[Result]:
    for name in names:
        table.progress(f"measuring {name}{where}")
        yield from measures[name]()


def _as_installed() -> None:
    """Byte code beside the sources, as pip leaves it: without, each start compiles everything."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(Path(mingled.__file__).parent, quiet=1)


def _check_machine() -> None:
    possible = available()
    reason = possible.reason if possible.kind == "none" else missing("tcpdump")
    if reason:
        raise click.ClickException(f"The benchmarks run on a LAN of namespaces. {reason}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_", is_flag=True, help="Results as JSON, with every single value.")
@click.option("--quick", is_flag=True, help="Fewer repetitions.")
@click.option("--large", is_flag=True, help="64 nodes as well: 4 GB of memory, some minutes.")
@click.option(
    "--only", "only", type=click.Choice(NAMES), multiple=True, help="Only this, or these."
)
@click.option("--why", is_flag=True, help="Also: where the time of the imports goes.")
def main(json_: bool, quick: bool, large: bool, only: tuple[str, ...], why: bool) -> None:
    """Measure mingled beside its references, on a LAN of namespaces on this machine."""
    _check_machine()
    _as_installed()
    size = QUICK if quick else FULL
    if large:
        size = size._replace(nodes=(*size.nodes, 64))
    try:
        results = list(measure(size, only or NAMES))
    except MingleError as error:
        raise click.ClickException(str(error)) from None
    print(table.as_json(results) if json_ else table.as_text(results))
    if why:
        for module in ("mingled.cli.wait", "mingled.daemon"):
            shares = idle.importing(module)
            parts = ", ".join(f"{name} {spent:.1f}" for name, spent in shares[:8])
            table.progress(f"import {module}, ms with -X importtime: {parts}")


if __name__ == "__main__":
    main()
