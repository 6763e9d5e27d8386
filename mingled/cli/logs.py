"""`mingle logs`: what this machine's daemons know to tell of one job."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from pathlib import Path

import click

from mingled import client
from mingled.cli.json_lines import json_text, print_json
from mingled.core import local
from mingled.core.words import JobId
from mingled.errors import DaemonError, MingleError
from mingled.wording import clean

LOOK_S = 0.5
"""With --follow the daemons are asked this often."""


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on as more happens; Ctrl-C ends it.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="One JSON array on stdout; with --follow an object a line.",
)
def command(job: str, follow: bool, as_json: bool) -> None:
    """What has happened to JOB on this machine: who came, what was told, and why.

    The daemon keeps the last 256 lines of each of the last 64 jobs, also when they are over; a
    private one ends with its job. Its own log has more: journalctl -u mingled, where systemd runs
    it.
    """
    job_id = JobId(job)
    known: dict[Path, int] = {}
    lines = _ask(job_id, known)
    if not lines and not follow:
        raise MingleError(
            f"job {job}: nothing of yours is known of it on this machine; see `mingle status`, or "
            "look on a machine that takes part"
        )
    if not follow:
        if as_json:
            print_json(lines)
        else:
            for line in lines:
                click.echo(_text(line))
        return
    while True:
        for line in lines:
            click.echo(json_text(line) if as_json else _text(line))
        sys.stdout.flush()
        time.sleep(LOOK_S)
        lines = _ask(job_id, known)
        if not known:
            click.echo(f"mingle logs: job {clean(job)}: its daemon has ended", err=True)
            return


def _ask(job: JobId, known: dict[Path, int]) -> list[local.StoryLine]:
    """Of all daemons what they have not told yet, the oldest first. `known`: the last number of
    each that there is."""
    found: list[local.StoryLine] = []
    there = {}
    for connection in _daemons(known):
        path = connection.path
        try:
            answer = client.ask(connection, local.Logs(job=job, after=known.get(path, 0)))
        except DaemonError as error:
            click.echo(f"mingle logs: {clean(str(error))}", err=True)
            continue
        there[path] = known.get(path, 0)
        if isinstance(answer, local.Story) and answer.lines:
            found += answer.lines
            there[path] = answer.lines[-1].number
    known.clear()
    known.update(there)
    return sorted(found, key=lambda line: (line.at_s, line.number))


def _daemons(known: dict[Path, int]) -> list[client.Connection]:
    """The one that MINGLE_SOCKET names may end while it is followed: that is no error."""
    try:
        return client.daemons()
    except DaemonError:
        if known:
            return []
        raise


def _text(line: local.StoryLine) -> str:
    """`2026-03-01 12:00:00.250  state    idle --search--> searching`, in local time."""
    at = datetime.fromtimestamp(line.at_s).isoformat(sep=" ", timespec="milliseconds")
    return f"{at}  {line.kind:8} {clean(line.text)}"
