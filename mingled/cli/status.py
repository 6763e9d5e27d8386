"""`mingle status` and `mingle leave`: what the daemons here know, and ending a lease."""

from __future__ import annotations

import click

from mingled import client
from mingled.cli.json_lines import print_json
from mingled.core import local
from mingled.core.words import JobId
from mingled.errors import DaemonError, MingleError
from mingled.wording import clean


def reports() -> list[local.Report]:
    """One of each daemon that this user can ask; who does not answer is named. Raises
    `DaemonError` where there are some and none of them answers."""
    found, silent = asked()
    if silent and not found:
        raise silent[0]
    for error in silent:
        click.echo(f"mingle status: {clean(str(error))}", err=True)
    return found


def asked() -> tuple[list[local.Report], list[DaemonError]]:
    """Reports, and why the other daemons gave none: one that is stuck must not hide the rest."""
    found, silent = [], []
    for connection in client.daemons():
        try:
            answer = client.ask(connection, local.Status())
        except DaemonError as error:
            silent.append(error)
            continue
        if isinstance(answer, local.Report):
            found.append(answer)
    return found, silent


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON array on stdout (docs/status.schema.json)."
)
@click.option(
    "-w",
    "--watch",
    is_flag=True,
    help="Go on until the daemons end, or Ctrl-C (exit 130). With --json: a line at each change.",
)
def status(as_json: bool, watch: bool) -> None:
    """This machine's daemons, their jobs, participants, leader, state and addresses."""
    found = reports()
    if watch and found:
        from mingled.cli import status_watch

        status_watch.follow(found, _later, as_json=as_json)
        click.echo("mingle status: no daemon runs here any more", err=True)
    elif as_json:
        print_json(found)
    elif not found:
        click.echo("mingle status: no daemon runs here; the next mingle-wait starts one", err=True)
    else:
        from mingled.cli import status_table

        status_table.show(found)


def _later() -> list[local.Report]:
    """The one that MINGLE_SOCKET names may end meanwhile: that is no error."""
    try:
        return reports()
    except DaemonError:
        return []


def duration(seconds: float) -> str:
    """`4s`, `3m`, `2h05m`, `3d4h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if minutes < 60:
        return f"{minutes}m"
    return f"{hours}h{minutes % 60:02d}m" if days == 0 else f"{days}d{hours % 24}h"


@click.command()
@click.argument("job")
def leave(job: str) -> None:
    """End this machine's leases of JOB: it has left, and the others are told so."""
    job_id = JobId(job)
    count = 0
    for connection in client.daemons():
        try:
            answer = client.ask(connection, local.Leave(job=job_id))
        except DaemonError as error:
            click.echo(f"mingle leave: {clean(str(error))}", err=True)
            continue
        count += answer.count if isinstance(answer, local.Done) else 0
    if not count:
        raise MingleError(f"job {job}: nothing of yours takes part in it here; see `mingle status`")
    click.echo(f"mingle leave: job {job}: {count} left", err=True)
