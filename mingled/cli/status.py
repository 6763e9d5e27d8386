"""`mingle status` and `mingle leave`: what the daemons here know, and ending a lease."""

from __future__ import annotations

import sys

import click
import msgspec

from mingled import client
from mingled.cli.display import clean
from mingled.core import local
from mingled.core.words import Form, JobId
from mingled.errors import DaemonError


def reports() -> list[local.Report]:
    """One of each daemon that this user can ask."""
    found = []
    for connection in client.daemons():
        answer = client.ask(connection, local.Status())
        if not isinstance(answer, local.Report):
            raise DaemonError(f"{connection.path}: unexpected answer {type(answer).__name__}")
        found.append(answer)
    return found


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout.")
def status(as_json: bool) -> None:
    """This machine's daemons, their jobs, participants, leader, state and addresses."""
    found = reports()
    if as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        return
    if not found:
        click.echo("mingle status: no daemon runs here; the next mingle-wait starts one", err=True)
        return
    for report in found:
        _show(report)


def _show(report: local.Report) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def text(value: object) -> str:
        return escape(clean(str(value)))

    console = Console(highlight=False)
    kind = "private daemon" if report.private else "daemon"
    console.print(
        f"[bold]{text(report.host)}[/]  {kind} {text(report.release)}, pid {report.pid}, "
        f"up {duration(report.up_s)}, link port {report.link_port}"
    )
    console.print(f"  socket     {text(report.socket)}", soft_wrap=True)
    console.print(f"  addresses  {text(', '.join(report.addresses) or 'none')}")
    for line in report.discovery:
        console.print(f"  discovery  {text(line)}")
    if report.key_id == "none":
        console.print("  security   no cluster key: a job's ID is its only secret, guessable")
    if not report.jobs:
        console.print("  no jobs")
        return
    table = Table(box=None, padding=(0, 2, 0, 2))
    for column in ("JOB", "STATE", "LEADER", "HERE", "RANK", "ADDRESS", "HOST", "MEMBER", "SINCE"):
        table.add_column(column, no_wrap=column not in ("HOST",))
    for job in report.jobs:
        _rows(table, job, text)
    console.print(table)
    for job in report.jobs:
        if job.note:
            console.print(f"  {text(job.job)}: {text(job.note)}")


def _rows(table: object, job: local.Job, text: object) -> None:
    from rich.table import Table

    assert isinstance(table, Table)
    assert callable(text)
    size = f"{job.size_min}" if job.size_min == job.size_max else f"{job.size_min}:{job.size_max}"
    leader = f"{job.leader} {job.leader_address or ''}".strip() if job.leader else "-"
    first = [text(job.job), text(job.state), text(leader)]
    waiting = [seat for seat in job.seats if seat.state == "waiting"]
    for seat in waiting:
        rank = "auto" if seat.rank is None else str(seat.rank)
        here = f"{job.here}/{size}" if seat.form is not Form.PLAIN else "-"
        who = f"pid {seat.pid} ({seat.user})"
        table.add_row(*first, here, rank, "-", "here", text(f"{who} waits"), duration(seat.for_s))
        first = ["", "", ""]
    for round_ in job.rounds:
        label = f"round {round_.round}"
        for member in round_.members:
            table.add_row(
                *first,
                label,
                str(member.rank),
                text(member.address),
                text(member.host),
                member.state,
                duration(round_.since_s),
            )
            first, label = ["", "", ""], ""
    if not waiting and not job.rounds:
        for seat in job.seats:
            who = text(f"pid {seat.pid} ({seat.user}) runs")
            table.add_row(*first, "-", str(seat.rank), "-", "here", who, duration(seat.for_s))
            first = ["", "", ""]


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
        answer = client.ask(connection, local.Leave(job=job_id))
        count += answer.count if isinstance(answer, local.Done) else 0
    if not count:
        raise DaemonError(f"job {job}: nothing of yours takes part in it here; see `mingle status`")
    click.echo(f"mingle leave: job {job}: {count} left", err=True)
