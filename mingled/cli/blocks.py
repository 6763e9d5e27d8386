"""A block of lines for each thing, wrapped to the terminal: readable in 40 columns, where a table
is not. In a pipe nothing is wrapped, cut or coloured, so that `grep` finds whole facts."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mingled.errors import MingleError
from mingled.wording import clean

_INDENT = "  "
_COLUMNS_MIN = 30
"""Below it words would be a column of their own."""

_LABELS_SHARE_MAX = 0.4
"""Of the columns; where labels need more (IPv6 addresses in 40 columns) they get lines of their
own."""


SIGPIPE_EXIT = 141
"""What a shell says of a command that wrote to a pipe nobody reads any more."""

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class Block(NamedTuple):
    title: str
    marked: bool  #: the title is shown in bold, on a terminal
    line: str  #: beside the title
    rows: Sequence[tuple[str, str]]  #: label and text


def print_blocks(blocks: Iterable[Block]) -> None:
    """On stdout, an empty line between two."""
    columns = shown_columns()
    text = "\n\n".join("\n".join(_lines(block, columns)) for block in blocks)
    if text:
        print(text)


def print_line(text: str) -> None:
    """One sentence, wrapped where a terminal is narrow. Text from elsewhere is made harmless."""
    print("\n".join(wrapped(clean(text), "", _INDENT, shown_columns())))


def milliseconds(value: float) -> str:
    """`0.368 ms`, `1.61 ms`, `250 ms`: what can be told apart."""
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


@contextlib.contextmanager
def written() -> Iterator[None]:
    """What is printed inside gets to stdout before the end. Raises `MingleError` where it cannot
    (a full disk, a stdout that the shell closed); a reader that has seen enough ends the command as
    it would end any other."""
    if sys.stdout is None:
        sys.stdout = _Closed()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _give_up_stdout()
        raise SystemExit(SIGPIPE_EXIT) from None
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        _give_up_stdout()
        raise MingleError(f"stdout cannot be written to: {error.strerror}") from None


class _Closed(io.TextIOBase):
    """stdout of a process that was started without one."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "it is closed")


def _give_up_stdout() -> None:
    """So that the interpreter does not try once more at its end, and fail with a traceback."""
    with contextlib.suppress(OSError, ValueError):
        here = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, here)
        os.close(nowhere)


def _lines(block: Block, columns: int | None) -> list[str]:
    width = max(len(label) for label, _ in block.rows) + 2 if block.rows else 0
    title = clean(block.title)
    head = wrapped(f"{title}  {clean(block.line)}", "", _INDENT, columns)
    if block.marked and _coloured():
        head[0] = f"\x1b[1m{title}\x1b[0m" + head[0][len(title) :]
    lines = head
    for label, text in block.rows:
        first = f"{_INDENT}{clean(label):<{width}}"
        if columns is not None and width > columns * _LABELS_SHARE_MAX:
            lines.append(first.rstrip())
            first = 2 * _INDENT
        lines += wrapped(clean(text), first, " " * len(first), columns)
    return lines


def wrapped(text: str, first: str, later: str, columns: int | None) -> list[str]:
    """Lines, the first begun with `first` and the others with `later`; None: one line."""
    if columns is None:
        return [first + text]
    return textwrap.wrap(
        text,
        columns,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]


def shown_columns() -> int | None:
    """None: do not wrap. COLUMNS is obeyed in a pipe too, since somebody set it on purpose."""
    asked = os.environ.get("COLUMNS", "")
    if not sys.stdout.isatty() and not asked.isdecimal():
        return None
    return max(_COLUMNS_MIN, shutil.get_terminal_size().columns)


def _coloured() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ
