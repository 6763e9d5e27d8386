"""Asks the daemons that a test's clients have started."""

from __future__ import annotations

from mingled import client
from mingled.core import local


def seats() -> list[local.Seat]:
    """What all private daemons hold."""
    found: list[local.Seat] = []
    for connection in client.daemons():
        report = client.ask(connection, local.Status())
        assert isinstance(report, local.Report)
        found += [seat for job in report.jobs for seat in job.seats]
    return found
