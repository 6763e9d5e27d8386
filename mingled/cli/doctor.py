"""`mingle doctor`: what stands in the way of a job on this network, and what mends it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Sequence

import click

from mingled.cli.blocks import shown_columns, wrapped
from mingled.cli.firewall import configured
from mingled.cli.json_lines import print_json
from mingled.core.peers import check_peers, listed
from mingled.core.words import JobId
from mingled.doctor.model import Finding, Result
from mingled.wording import clean

SIGNS: dict[Result, str] = {"pass": "ok", "warn": "warn", "fail": "FAIL", "skipped": "skip"}
"""Readable without colour."""

_COLOURS: dict[Result, str] = {
    "pass": "green",
    "warn": "yellow",
    "fail": "red",
    "skipped": "bright_black",
}


@click.command()
@click.option("--job", metavar="ID", help="Also: why does this job still wait?")
@click.option(
    "--peer",
    "--peers",
    "peers",
    multiple=True,
    metavar="HOST,...",
    help="Nodes to test that discovery may not find. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON array of findings on stdout.")
def command(job: str | None, peers: tuple[str, ...], as_json: bool) -> None:
    """Test this machine, its network and the other nodes; say what to do about what is wrong.

    Exit code 0: nothing failed (there may be warnings); 1: something did. Nothing is changed and
    no daemon is started. docs/doctor.md explains each check.
    """
    from mingled.doctor.run import run

    named = listed(peers or [os.environ.get("MINGLE_PEERS", "")])
    check_peers(named)
    findings = asyncio.run(run(named, JobId(job) if job is not None else None, ports=configured()))
    if as_json:
        print_json(findings)
    else:
        show(findings)
    if any(finding.result == "fail" for finding in findings):
        raise SystemExit(1)


def show(findings: Sequence[Finding]) -> None:
    """A line for each, what mends it below, then the count."""
    columns = shown_columns()
    width = max((len(finding.check) for finding in findings), default=0)
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for finding in findings:
        sign = f"{SIGNS[finding.result]:<4}"
        lines = wrapped(
            clean(finding.measured), f"{sign} {finding.check:<{width}}  ", " " * 7, columns
        )
        if coloured:
            lines[0] = click.style(sign, fg=_COLOURS[finding.result]) + lines[0][len(sign) :]
        for mend in finding.mend:
            lines += wrapped(clean(mend), "     mend: ", " " * 9, columns)
        click.echo("\n".join(lines))
    counts = Counter(finding.result for finding in findings)
    click.echo(", ".join(f"{counts[r]} {word}" for r, word in _WORDS if counts[r]))


_WORDS: tuple[tuple[Result, str], ...] = (
    ("fail", "failed"),
    ("warn", "warned"),
    ("pass", "passed"),
    ("skipped", "skipped"),
)
