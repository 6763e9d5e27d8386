"""`mingle status` and `mingle leave`: what the daemons here know, and ending a lease."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mingled import client
from mingled.cli.json_lines import print_json
from mingled.core import local
from mingled.core.secrets import NO_KEY_ID
from mingled.core.words import Form, JobId
from mingled.errors import DaemonError, MingleError
from mingled.wording import clean, endpoint

if TYPE_CHECKING:
    from rich.console import Console


def reports() -> list[local.Report]:
    """One of each daemon that this user can ask."""
    found = []
    for connection in client.daemons():
        try:
            answer = client.ask(connection, local.Status())
        except DaemonError as error:  # one that is stuck must not hide the others
            click.echo(f"mingle status: {clean(str(error))}", err=True)
            continue
        if isinstance(answer, local.Report):
            found.append(answer)
    return found


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout.")
def status(as_json: bool) -> None:
    """This machine's daemons, their jobs, participants, leader, state and addresses."""
    found = reports()
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("mingle status: no daemon runs here; the next mingle-wait starts one", err=True)
        return
    for report in found:
        _show(report)


def _show(report: local.Report) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    kind = "private daemon" if report.private else "daemon"
    console.print(
        f"[bold]{_text(report.host)}[/]  {kind} {_text(report.release)}, pid {report.pid}, "
        f"up {duration(report.up_s)}, link port {report.link_port}"
    )
    console.print(f"  socket     {_text(report.socket)}")
    console.print(f"  addresses  {_text(', '.join(report.addresses) or 'none')}")
    for line in report.discovery:
        console.print(f"  discovery  {_text(line)}")
    console.print(f"  security   {_security(report)}")
    for job in report.jobs:
        console.print()
        _show_job(console, job)
    if not report.jobs:
        console.print("  no jobs")


def _security(report: local.Report) -> str:
    first, *others = report.key_ids
    if first == NO_KEY_ID:
        return "no cluster key: a job's ID is its only secret, guessable (mingle key new)"
    also = f"; takes {', '.join(others)} as well" if others else ""
    return _text(f"cluster key {first}{also}")


def _show_job(console: Console, job: local.Job) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("    RANK", "HOST", "ADDRESS", "STATE"):
        table.add_column(column, no_wrap=True)
    console.print(f"  [bold]job {_text(job.job)}[/]: {_text(_headline(job))}")
    for round_ in job.rounds:
        for m in round_.members:
            table.add_row(f"    {m.rank}", _text(m.host), _text(m.address), m.state)
    if not job.rounds or any(seat.state == "waiting" for seat in job.seats):
        for seat in job.seats:
            rank = "auto" if seat.rank is None else str(seat.rank)
            who = f"pid {seat.pid} ({seat.user})"
            state = f"{seat.state} for {duration(seat.for_s)}"
            table.add_row(f"    {rank}", "here", _text(who), state)
    if table.row_count:
        console.print(table)
    if job.note:
        console.print(f"    {_text(job.note)}")


def _headline(job: local.Job) -> str:
    """Where one job stands, in one line."""
    parts = []
    if job.rounds:
        r = job.rounds[-1]
        parts.append(
            f"round {r.round} runs for {duration(r.since_s)}, rank 0 is at "
            f"{endpoint(r.master_addr, r.master_port)}"
        )
    waiting = [seat for seat in job.seats if seat.state == "waiting"]
    if waiting and waiting[0].form is not Form.PLAIN:
        same = job.size_min == job.size_max
        size = f"{job.size_min}" if same else f"{job.size_min} to {job.size_max}"
        parts.append(f"{job.here}/{size} here")
    if job.leader:
        parts.append(f"leader {job.leader} {job.leader_address or ''}".rstrip())
    parts.append(job.state)
    return "; ".join(parts)


def _text(value: object) -> str:
    """Text from elsewhere: no control characters, no markup."""
    from rich.markup import escape

    return escape(clean(str(value)))


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
