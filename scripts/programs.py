"""What the command line says of itself, read from click: for the manual pages and the docs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import NamedTuple

import click

from mingled.cli import mingle, mingled, wait


class Paragraph(NamedTuple):
    text: str
    verbatim: bool  #: its lines are to stay as they are (click's `\\b`)


class Row(NamedTuple):
    """An option or an argument that has something to say."""

    names: str
    help: str
    environ: str  #: the variable that gives its default; empty: none, or its help says so


class Program(NamedTuple):
    """One program or subcommand."""

    path: str  #: as it is typed: `mingle key new`
    usage: str  #: what follows the path
    help: tuple[Paragraph, ...]
    rows: tuple[Row, ...]
    epilog: tuple[Paragraph, ...]
    children: tuple[Program, ...]

    @property
    def summary(self) -> str:
        """Its first sentence, without the full stop."""
        return self.help[0].text.partition(". ")[0].rstrip(".") if self.help else ""

    def walk(self) -> Iterator[Program]:
        yield self
        for child in self.children:
            yield from child.walk()


def programs() -> tuple[Program, ...]:
    """All that are installed, with their subcommands."""
    return (
        _read(wait.command, "mingle-wait"),
        _read(mingle.command, "mingle"),
        _read(mingled.command, "mingled"),
    )


def _read(command: click.Command, path: str, above: click.Context | None = None) -> Program:
    settings = command.context_settings
    ctx = click.Context(command, info_name=path.rpartition(" ")[2], parent=above, **settings)
    children = []
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            if child is not None and not child.hidden:
                children.append(_read(child, f"{path} {name}", ctx))
    rows = []
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None or not (record[1] or isinstance(parameter, click.Option)):
            continue  # hidden, or an argument that the usage shows and nothing is said about
        variable = parameter.envvar if isinstance(parameter.envvar, str) else ""
        said = not variable or variable in record[1]
        rows.append(Row(record[0], " ".join(record[1].split()), "" if said else variable))
    return Program(
        path=path,
        usage=" ".join(command.collect_usage_pieces(ctx)),
        help=_paragraphs(command.help or ""),
        rows=tuple(rows),
        epilog=_paragraphs(command.epilog or ""),
        children=tuple(children),
    )


def _paragraphs(text: str) -> tuple[Paragraph, ...]:
    found = []
    for block in inspect.cleandoc(text).partition("\f")[0].split("\n\n"):
        lines = block.strip("\n").splitlines()
        if not lines:
            continue
        if lines[0].strip() == "\b":
            found.append(Paragraph("\n".join(lines[1:]), True))
        else:
            found.append(Paragraph(" ".join(line.strip() for line in lines), False))
    return tuple(found)
