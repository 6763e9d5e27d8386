"""`mingle metrics`: a daemon's numbers, as Prometheus reads them."""

from __future__ import annotations

import sys

import click

from mingled import client
from mingled.core import local
from mingled.errors import DaemonError


@click.command()
def command() -> None:
    """The metrics of this machine's daemon, in Prometheus's text format.

    The system's, or the one at MINGLE_SOCKET; private daemons, of one job each, count for
    themselves: name one's socket (mingle status). docs/metrics.md explains each.
    """
    connections = client.daemons()
    for other in connections[1:]:
        other.close()
    if not connections:
        raise DaemonError(
            "no daemon runs here, so there is nothing to measure; start mingled, or name a socket "
            "with MINGLE_SOCKET"
        )
    if len(connections) > 1 and connections[0].path != client.SYSTEM_SOCKET:
        click.echo(
            f"mingle metrics: of {len(connections)} private daemons this is the one at "
            f"{connections[0].path}; MINGLE_SOCKET names another",
            err=True,
        )
    answer = client.ask(connections[0], local.Metrics())
    if isinstance(answer, local.Measured):
        sys.stdout.write(answer.text)
