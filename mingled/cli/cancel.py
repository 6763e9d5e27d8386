"""`mingle cancel`: end a job on all its nodes, and say where it has ended."""

from __future__ import annotations

import click

from mingled import client
from mingled.cli.json_lines import print_json
from mingled.core import local
from mingled.core.messages import NodeCancelled
from mingled.core.words import JobId
from mingled.errors import DaemonError, Indeterminate, MingleError, NotPermitted
from mingled.wording import clean

_EXITS = """\b
Exit codes:
  0   every node that is known has confirmed
  1   nobody takes part in the job here
  85  it is another user's, or participants of another user go on
  86  a node did not confirm: what runs there may go on
"""


@click.command(epilog=_EXITS)
@click.argument("job")
@click.option("--reason", default="", metavar="TEXT", help="Why: a sentence, told on every node.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout, an item a node.")
def command(job: str, reason: str, as_json: bool) -> None:
    """End JOB on all its nodes: whoever waits fails, and what runs is stopped.

    Run it on any node of the job, as its owner or root. Each CMD of mingle-wait gets SIGTERM, and
    SIGKILL after --stop-grace; torchrun stops its workers. All exit as cancelled (mingle-wait: 87).
    """
    nodes, elsewhere = _ask(JobId(job), reason)
    if not nodes:
        where = f"it is led at {', '.join(map(clean, elsewhere))}: run mingle cancel there"
        hint = where if elsewhere else "see `mingle status` on a machine that has it"
        raise MingleError(f"job {job}: nobody takes part in it here; {hint}")
    if as_json:
        print_json(nodes)
    else:
        for node in nodes:
            click.echo(_line(node))
    _judge(job, nodes)


def _ask(job: JobId, reason: str) -> tuple[list[NodeCancelled], list[str]]:
    """Every daemon here: what became of it by node, or where the job is instead."""
    nodes: list[NodeCancelled] = []
    elsewhere: dict[str, None] = {}
    refused: NotPermitted | None = None
    silent: DaemonError | None = None
    for connection in client.daemons():
        try:
            answer = client.ask(connection, local.Cancel(job=job, reason=reason))
        except NotPermitted as error:
            refused = error
            continue
        except DaemonError as error:
            click.echo(f"mingle cancel: {clean(str(error))}", err=True)
            silent = error
            continue
        if isinstance(answer, local.Cancelled):
            nodes += answer.nodes
            elsewhere |= dict.fromkeys(answer.elsewhere)
    if refused is not None and not nodes:
        raise refused
    if silent is not None and not nodes:  # it may have been the job's
        raise Indeterminate(f"job {job}: not known to have ended: {silent}")
    return nodes, list(elsewhere)


def _where(node: NodeCancelled) -> str:
    return clean(f"{node.host} ({node.address})" if node.address else node.host)


def _line(node: NodeCancelled) -> str:
    where = _where(node)
    if node.flaw:
        return f"{where}: not confirmed: {clean(node.flaw)}"
    parts = [f"{node.ended} ended"]
    if node.unheard:
        pids = ", ".join(map(str, node.unheard))
        parts.append(f"of these, end yourself what runs in pid {pids}: it hears nothing of this")
    if node.kept:
        parts.append(f"{node.kept} of another user go on")
    return f"{where}: {'; '.join(parts)}"


def _judge(job: str, nodes: list[NodeCancelled]) -> None:
    """Raises where not everything has ended for certain."""
    unsure = [
        clean(n.host if n.address == "" else f"{n.host} ({n.address})") for n in nodes if n.flaw
    ]
    if unsure:
        raise Indeterminate(
            f"job {job}: not known to have ended on {', '.join(unsure)}; run mingle cancel there, "
            "or again here once they answer"
        )
    kept = [clean(n.host) for n in nodes if n.kept]
    if kept:
        raise NotPermitted(
            f"job {job}: participants of another user go on, on {', '.join(kept)}; they, the owner "
            "of rank 0 or root may end those"
        )
