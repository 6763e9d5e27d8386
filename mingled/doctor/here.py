"""The daemons of this machine, as far as this user may ask them. Blocks."""

from __future__ import annotations

import msgspec

from mingled import client
from mingled.core import local
from mingled.core.words import Label
from mingled.errors import MingleError


class Daemons(msgspec.Struct, frozen=True, kw_only=True):
    """`troubles`: daemons that are there and cannot be asked, a sentence each."""

    reports: tuple[local.Report, ...] = ()
    troubles: tuple[str, ...] = ()

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset(report.node for report in self.reports)

    @property
    def jobs(self) -> dict[Label, str]:
        """The jobs that are known here, by their labels."""
        found: dict[Label, str] = {}
        for report in self.reports:
            for job in report.jobs:
                found[Label(job.label)] = job.job
        return found


def daemons() -> Daemons:
    """Starts none."""
    troubles: list[str] = []
    reports: list[local.Report] = []
    try:
        connections = client.daemons()
    except MingleError as error:
        return Daemons(troubles=(str(error),))
    for connection in connections:
        try:
            answer = client.ask(connection, local.Status())
        except MingleError as error:
            troubles.append(str(error))
            continue
        if isinstance(answer, local.Report):
            reports.append(answer)
    return Daemons(reports=tuple(reports), troubles=tuple(troubles))
