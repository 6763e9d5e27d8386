"""The manual pages, man/*.1, from the texts that `--help` prints. In man(7), which any man reads.

One page for a program, its subcommands and exit codes in it: that is how a reader looks for them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from mingled import __version__
from programs import Paragraph, Program

SEE_ALSO = {
    "mingle": ("mingle-wait", "mingled"),
    "mingle-wait": ("mingle", "mingled"),
    "mingled": ("mingle", "mingle-wait"),
}


def page(program: Program) -> str:
    """One manual page. It holds no date: the same texts are to give the same bytes."""
    name = program.path
    lines = [
        '.\\" Made by scripts/generate_docs.py from the texts of --help.',
        f'.TH {_escaped(name.upper())} 1 "" "mingled {__version__}" "mingled"',
        ".SH NAME",
        f"{_escaped(name)} \\- {_escaped(_small(program.summary))}",
        ".SH SYNOPSIS",
        f".B {_escaped(name)}",
        _line(program.usage),
        ".SH DESCRIPTION",
        *_body(program.help),
        ".SH OPTIONS",
        *_options(program),
    ]
    if program.children:
        lines.append(".SH COMMANDS")
        for child in program.children:
            for command in child.walk():
                lines += _command(command)
    for paragraph in program.epilog:
        heading, _, rest = paragraph.text.partition("\n")
        if paragraph.verbatim and heading.endswith(":"):
            lines.append(f".SH {_escaped(heading.rstrip(':').upper())}")
            lines += _body([Paragraph(rest, True)])
        else:
            lines += _body([paragraph])
    lines += [".SH SEE ALSO"]
    others = SEE_ALSO[name]
    lines += [f".BR {_escaped(other)} (1){',' * (other != others[-1])}" for other in others]
    return "\n".join(lines) + "\n"


def _command(command: Program) -> list[str]:
    lines = [f".SS {_escaped(command.path)} {_escaped(command.usage)}"]
    if command.path == "mingle wait":  # a page of its own tells it all
        return [*lines, f"{_escaped(command.summary)}:", "see", ".BR mingle\\-wait (1)."]
    return [*lines, *_body(command.help), *_options(command), *_body(command.epilog)]


def _options(program: Program) -> list[str]:
    lines = []
    for row in program.rows:
        environ = f"  [env: {row.environ}]" if row.environ else ""
        lines += [".TP", f".B {_escaped(row.names)}", *_lines(row.help + environ)]
    return lines


def _body(paragraphs: Iterable[Paragraph]) -> list[str]:
    lines = []
    for number, paragraph in enumerate(paragraphs):
        if number:
            lines.append(".PP")
        if paragraph.verbatim:
            lines += [".nf", *map(_line, paragraph.text.splitlines()), ".fi"]
        else:
            lines += _lines(paragraph.text)
    return lines


def _small(text: str) -> str:
    return text[:1].lower() + text[1:]


def _lines(text: str) -> list[str]:
    wrapped = textwrap.wrap(text, 72, break_long_words=False, break_on_hyphens=False)
    return [_line(line) for line in wrapped]


def _line(text: str) -> str:
    """A line of text: what begins with a control character must not be a request."""
    escaped = _escaped(text)
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped


def _escaped(text: str) -> str:
    """Hyphens that are typed stay hyphens, for whoever copies them out of a page."""
    out = []
    for character in text:
        if character == "\\":
            out.append("\\e")
        elif character == "-":
            out.append("\\-")
        elif ord(character) > 126:
            out.append(f"\\[u{ord(character):04X}]")
        else:
            out.append(character)
    return "".join(out)
