"""Why does this job still wait? Pure."""

from __future__ import annotations

from mingled.core import local
from mingled.core.messages import Presence
from mingled.core.words import Form, distinct
from mingled.doctor.gather_job import Matrix
from mingled.doctor.gathered import Gathered, firewall_command
from mingled.doctor.model import Finding, failed, named, passed, skipped, warned

PAIRS_SHOWN_MAX = 16
"""Lines of failures; one firewall makes as many as there are nodes."""


def job(g: Gathered, matrix: Matrix) -> list[Finding]:
    check = "job"
    if matrix.report is None:
        return [_unknown(g, matrix)]
    report = matrix.report
    waiting = [seat for seat in report.seats if seat.state == "waiting"]
    if not waiting:
        round_ = report.rounds[-1] if report.rounds else None
        said = f"{matrix.job} runs" if round_ is not None else f"{matrix.job}: {report.state}"
        return [passed(check, said)]
    here = distinct((seen.host, seen.address) for seen in report.nodes)
    said = f"{matrix.job} waits"
    if waiting[0].form is not Form.PLAIN:
        said += f": {report.here} of {_size(report)} here"
    said += f" ({named(here)})" if here else ""
    said += f"; leader {report.leader}" if report.leader else "; no rank 0 yet"
    missing = _missing(report)
    said += f"; missing: {missing}" if missing else ""
    said += f"; {report.note}" if report.note else ""
    mends = []
    idle = _without_job(g, matrix)
    if idle and missing:
        mends.append(
            f"{named(idle)}: a daemon is there, but not this job; start it there, and compare the "
            f"job ID byte for byte ({_quoted(matrix.job)})"
        )
    if not mends:
        mends.append(f"start the job on the nodes that are missing: {_start(matrix)}")
    return [warned(check, said, *mends)]


def _unknown(g: Gathered, matrix: Matrix) -> Finding:
    check, ask = "job", f"mingle doctor --job {_quoted(matrix.job)}"
    for one in g.beside:
        if _has(one.seen.presence, matrix):
            whose = one.user or "another user"
            said = (
                f"{matrix.job} is {whose}'s on this machine: only {whose} and root may ask that "
                f"daemon (link port {one.seen.port})"
            )
            as_whom = f"sudo -u {_quoted(one.user)} {ask}" if one.user else f"as its user: {ask}"
            return failed(check, said, as_whom)
    others = named(matrix.known)
    said = f"no daemon here that you may ask knows {matrix.job}"
    said += f"; known: {others}" if others else ""
    elsewhere = _with_job(g, matrix)
    has = "have" if len(set(elsewhere)) > 1 else "has"
    said += f"; {named(elsewhere)} {has} it" if elsewhere else ""
    if g.here.daemons.troubles:
        said += f"; not asked: {'; '.join(g.here.daemons.troubles)}"
        return failed(check, said, f"ask as its user or as root: sudo {ask}")
    mend = f"mingle-wait --job {_quoted(matrix.job)} ... on this machine, then ask again"
    return failed(check, said, mend)


def job_paths(g: Gathered, matrix: Matrix) -> list[Finding]:
    check = "job-paths"
    if matrix.report is None:
        return []
    findings = [
        failed(
            check,
            f"{pair.source} does not reach {pair.target} ({pair.address}) on TCP {pair.port}: "
            f"{pair.reason}",
            f"open it on {pair.target}: {firewall_command(g)}",
        )
        for pair in matrix.failures[:PAIRS_SHOWN_MAX]
    ]
    more = len(matrix.failures) - PAIRS_SHOWN_MAX
    if more > 0:
        mend = "as above, then ask again"
        findings.append(failed(check, f"and {more} more pairs", mend))
    mend = f"see that mingled runs there and is let through: {firewall_command(g)}"
    findings += [failed(check, f"could not be asked: {text}", mend) for text in matrix.unasked]
    if findings:
        return findings
    if not matrix.tried:
        return [skipped(check, "no two of its nodes are known here")]
    count = len(matrix.hosts)
    left = f"; {matrix.left_out} more were left out" if matrix.left_out else ""
    return [passed(check, f"each of {count} nodes reaches each other, {named(matrix.hosts)}{left}")]


def _start(matrix: Matrix) -> str:
    return f"mingle-wait --job {_quoted(matrix.job)} ..."


def _size(report: local.Job) -> str:
    if report.size_min == report.size_max:
        return str(report.size_min)
    return f"{report.size_min} to {report.size_max}"


def _missing(report: local.Job) -> str:
    lacking = report.size_min - report.here
    return f"{lacking} more" if lacking > 0 else ""


def _has(presence: Presence | None, matrix: Matrix) -> bool:
    return presence is not None and not set(matrix.labels).isdisjoint(presence.labels)


def _with_job(g: Gathered, matrix: Matrix) -> list[str]:
    return [o.seen.host for o in g.others if _has(o.seen.presence, matrix)]


def _without_job(g: Gathered, matrix: Matrix) -> list[str]:
    asked = (o.seen for o in g.others if o.seen.presence is not None)
    return [seen.host for seen in asked if not _has(seen.presence, matrix)]


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
