"""`mingle-wait` without CMD: the config on stdout, and who holds the lease from then on.

Shell text is evaluated: its last line has the evaluating shell take the lease over. What no shell
evaluates (a path, dotenv, an env-file) is read later, by programs that know nothing of leases: the
process that ran `mingle-wait` takes it over at once. JSON holds the token, for its reader.
"""

from __future__ import annotations

import os
import sys

import msgspec

from mingled import client
from mingled.cli import shell
from mingled.cli.display import Display
from mingled.cli.json_lines import json_text
from mingled.core.config import Config
from mingled.errors import MingleError
from mingled.frameworks.dialects import hostfiles
from mingled.frameworks.dialects.registry import BY_NAME, Chosen
from mingled.processes import calling_process

SHELL = "shell"

PATHS = tuple(name for name, dialect in BY_NAME.items() if dialect.hostfile is not None)
"""Formats that are the path of a file."""

TEXTS = tuple(name for name, dialect in BY_NAME.items() if dialect.text is not None)

EVALUATED = frozenset([SHELL, *BY_NAME]) - {*PATHS, *TEXTS}
"""Formats that are shell text."""


class _Printed(msgspec.Struct, frozen=True):
    """With `--format json`."""

    config: Config
    environment: dict[str, str]  #: what a CMD would get
    adopt: str  #: the token


def check(format_: str | None, job: str) -> None:
    """Before anybody waits. Raises `BadInput` for a job ID that a syntax cannot carry."""
    dialect = BY_NAME.get(format_ or "")
    if dialect is not None and dialect.text is not None:
        dialect.text({"MINGLE_JOB": str(job)})


def show(lease: client.Lease, chosen: Chosen, format_: str, display: Display) -> None:
    """Print it. Raises `MingleError` where it cannot be said in this format, or nobody is there to
    hold the lease: it has ended then."""
    evaluated, caller = format_ in EVALUATED, calling_process()
    try:
        changes = chosen.environment(lease.config, present=os.environ, owner=caller)
        display.released(lease.config, lease.found_s, lease.waited_s)
        for name, old, new in changes.replaced:
            display.line(f"{name}={old} in the environment is replaced by {new}")
        for line in chosen.notes(lease.config):
            display.line(line)
        token = f"{lease.connection.path}#{lease.token}"
        if format_ == "json":
            printed = _Printed(lease.config, changes.values, token)
            text = json_text(printed) + "\n"
        elif evaluated:
            text = shell.assignments(changes.values, changes.unset, adopt=_adopting(token))
        else:
            text = _text(format_, changes.values)
            client.adopt(token, caller)
    except MingleError as error:
        lease.leave(lost=True, reason=f"its config could not be printed: {error}")
        raise
    sys.stdout.write(text)
    sys.stdout.flush()
    if evaluated and sys.stdout.isatty():
        display.line('printing sets nothing: type eval "$(mingle-wait ...)"')


def _text(format_: str, values: dict[str, str]) -> str:
    dialect = BY_NAME[format_]
    if dialect.text is not None:
        return dialect.text(values)
    return values[hostfiles.PATH.name] + "\n"


def _adopting(token: str) -> list[str]:
    """The words by which a shell takes the lease over; it appends its own process ID."""
    words = [os.path.abspath(sys.argv[0])]
    if os.path.basename(words[0]) != "mingle-wait":  # mingle wait, or a module
        words = [sys.executable, "-P", "-m", "mingled.cli.wait"]
    return [*words, "--adopt", token]
