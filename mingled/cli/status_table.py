"""What `mingle status` paints: each daemon, its jobs, and who is in them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mingled.cli.status import duration
from mingled.core import local
from mingled.core.secrets import NO_KEY_ID
from mingled.core.words import Form
from mingled.wording import clean, endpoint

UNWRAPPED_COLUMNS = 10_000
"""Where stdout is no terminal: `grep` is to find a whole line."""

NARROW_COLUMNS = 64
"""Below this a table shows what matters most."""

LAG_SHOWN_S = 0.1
"""A loop that is later than this is worth a look."""

STYLES = {
    "running": "green",
    "released": "green",
    "waiting": "yellow",
    "unwatched": "yellow",
    "lost": "bold red",
    "left": "dim",
    "finished": "dim",
}
"""Of states; other words have none. Colour is never all that tells two of them apart."""


def show(reports: Iterable[local.Report]) -> None:
    """On stdout. Colour is for terminals (and not with NO_COLOR, or TERM=dumb)."""
    out = console()
    if out.is_terminal:
        out.print(picture(reports, out.width))
        return
    with out.capture() as captured:
        out.print(picture(reports, out.width))
    lines = captured.get().splitlines()  # tables fill their columns up
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))


def console() -> Console:
    """For stdout as it is."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=UNWRAPPED_COLUMNS)


def picture(reports: Iterable[local.Report], columns: int) -> Group:
    """All of them, one below the other."""
    parts: list[RenderableType] = []
    for report in reports:
        parts += _daemon(report)
        for job in report.jobs:
            parts += ["", Padding(_job(job, report, columns), (0, 0, 0, 2), expand=False)]
        if not report.jobs:
            parts.append("  no jobs")
    return Group(*parts)


def _daemon(report: local.Report) -> list[RenderableType]:
    kind = "private daemon" if report.private else "daemon"
    title = Text.assemble(
        (_text(report.host), "bold"),
        f"  {kind} {_text(report.release)}, pid {report.pid}, up {duration(report.up_s)}, "
        f"link port {report.link_port}",
    )
    if report.lag.minute_s >= LAG_SHOWN_S:
        title.append(f", its loop was up to {report.lag.minute_s:.1f} s late", "bold red")
    rows = [
        ("socket", report.socket),
        ("addresses", ", ".join(report.addresses) or "none"),
        *(("discovery", line) for line in report.discovery),
        ("security", _security(report)),
    ]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(label), Text(_text(value)))
    return [title, Padding(table, (0, 0, 0, 2), expand=False)]


def _security(report: local.Report) -> str:
    first, *others = report.key_ids
    if first == NO_KEY_ID:
        return "no cluster key: a job's ID is its only secret, guessable (mingle key new)"
    also = f"; takes {', '.join(others)} as well" if others else ""
    return f"cluster key {first}{also}"


# ---------------------------------------------------------------- one job


def _job(job: local.Job, report: local.Report, columns: int) -> Group:
    head = Text.assemble("job ", (_text(job.job), "bold"), f": {_text(headline(job))}")
    parts: list[RenderableType] = [head]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    wide = columns >= NARROW_COLUMNS
    names = ["RANK", "HOST", "ADDRESS", "STATE", "SINCE", "WHO"]
    for name in names if wide else names[:4]:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for row in [*_members(job, report), *_waiting(job, report)]:
        rank, host, address, state, since, who = (Text(_text(value)) for value in row)
        state.stylize(STYLES.get(row[3], ""))
        cells = [rank, host, address, state, since, who]
        table.add_row(*(cells if wide else cells[:4]))
    if table.row_count:
        parts.append(Padding(table, (0, 0, 0, 2), expand=False))
    lines = [Text(_text(line)) for line in (_missing(job), job.note) if line]
    parts += [Padding(line, (0, 0, 0, 2), expand=False) for line in lines]
    return Group(*parts)


Row = tuple[str, str, str, str, str, str]


def _members(job: local.Job, report: local.Report) -> list[Row]:
    """Of every round that is watched here; of the newest, which of our processes they are."""
    rows: list[Row] = []
    newest = job.rounds[-1] if job.rounds else None
    here = {seat.rank: seat for seat in job.seats if seat.state == "released"}
    for round_ in job.rounds:
        for m in round_.members:
            seat = here.get(m.rank) if round_ is newest else None
            since = duration(round_.since_s) if m.state == "running" else ""
            who = _who(seat) if seat is not None else ""
            rows.append((str(m.rank), m.host, m.address, m.state, since, who))
    if newest is None:  # the plain form has no roster
        rows += [
            (str(seat.rank), report.host, "", "released", duration(seat.for_s), _who(seat))
            for seat in here.values()
        ]
    return rows


def _waiting(job: local.Job, report: local.Report) -> list[Row]:
    """Who waits here, and who is known to wait elsewhere."""
    rows: list[Row] = [
        (_rank(seat.rank), report.host, "", "waiting", duration(seat.for_s), _who(seat))
        for seat in job.seats
        if seat.state == "waiting"
    ]
    if not rows:
        return []
    members = {(m.host, m.address) for round_ in job.rounds for m in round_.members}
    own = {address.rpartition(" ")[2] for address in report.addresses}
    rows += [
        (_rank(seen.rank), seen.host, seen.address, "waiting", "", seen.user)
        for seen in job.nodes
        if seen.address not in own and (seen.host, seen.address) not in members
    ]
    return rows


def _rank(rank: int | None) -> str:
    return "auto" if rank is None else str(rank)


def _who(seat: local.Seat) -> str:
    return f"pid {seat.pid} ({seat.user}), here"


def _missing(job: local.Job) -> str:
    """Whom the next round waits for."""
    waiting = [seat for seat in job.seats if seat.state == "waiting"]
    if not waiting or waiting[0].form is Form.PLAIN:
        return ""
    word = "node rank" if waiting[0].form is Form.LAUNCHER else "rank"
    if job.missing:
        plural = "s" if len(job.missing) > 1 else ""
        return f"missing: {word}{plural} {', '.join(map(str, job.missing))}"
    more = job.size_min - job.here
    return f"missing: {more} more, of any {word}" if more > 0 else ""


def headline(job: local.Job) -> str:
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


def _text(value: str) -> str:
    """Text from elsewhere: no control characters. (A rich `Text` reads no markup.)"""
    return clean(value)


def timeless(reports: Sequence[local.Report]) -> tuple[local.Report, ...]:
    """Without what changes by itself: equal ones mean that nothing has happened."""
    from msgspec.structs import replace

    def job(one: local.Job) -> local.Job:
        seats = tuple(replace(seat, for_s=0.0) for seat in one.seats)
        rounds = tuple(replace(round_, since_s=0.0) for round_ in one.rounds)
        return replace(one, seats=seats, rounds=rounds)

    return tuple(
        replace(r, up_s=0.0, lag=local.Lag(), counts={}, jobs=tuple(map(job, r.jobs)))
        for r in reports
    )
