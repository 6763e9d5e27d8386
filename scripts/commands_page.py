"""docs/commands.md: every program, subcommand and option, from the texts that `--help` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from programs import Paragraph, Program, Row
from sections import code

HEAD = """# Commands

Made by `scripts/generate_docs.py` from the texts of `--help`. `man mingle`, `man mingle-wait` and
`man mingled` hold the same, and `mingle completion bash` (or zsh, fish) prints what completes them.
"""


def page(programs: Sequence[Program]) -> str:
    """Markdown, newline at the end."""
    blocks = [HEAD.rstrip("\n")]
    for program in programs:
        for command in program.walk():
            depth = "##" if command is program else "###"
            blocks += [f"{depth} {command.path}", *_command(command)]
    return "\n\n".join(blocks) + "\n"


def _command(command: Program) -> list[str]:
    usage = f"    {command.path} {command.usage}"
    if command.path == "mingle wait":
        return [usage, "The same as [mingle-wait](#mingle-wait)."]
    blocks = [usage, *_body(command.help)]
    # What every command has says nothing about this one.
    rows = [row for row in command.rows if "Show this message" not in row.help]
    if rows:
        lines = ["| option | |", "|---|---|", *(_row(row) for row in rows)]
        blocks.append("\n".join(lines))
    return blocks + _body(command.epilog)


def _row(row: Row) -> str:
    environ = f" [env: {row.environ}]" if row.environ else ""
    return f"| {code(row.names)} | {_escaped(row.help + environ)} |"


def _body(paragraphs: Iterable[Paragraph]) -> list[str]:
    blocks = []
    for paragraph in paragraphs:
        if not paragraph.verbatim:
            blocks.append(_escaped(paragraph.text))
            continue
        first, _, rest = paragraph.text.partition("\n")
        if rest and not first.startswith(" ") and rest.startswith(" "):  # a line above a list
            blocks.append(_escaped(first))
            blocks.append(_verbatim(rest))
        else:
            blocks.append(_verbatim(paragraph.text))
    return blocks


def _verbatim(text: str) -> str:
    return "\n".join(f"    {line.removeprefix('  ')}" for line in text.splitlines())


def _escaped(text: str) -> str:
    """What is text on a terminal is text here."""
    for character in "\\*|<[":
        text = text.replace(character, f"\\{character}")
    return text
