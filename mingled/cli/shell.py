"""What `mingle-wait` without CMD prints for `eval "$(mingle-wait ...)"`, in any POSIX shell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def assignments(
    values: Mapping[str, str], unset: Iterable[str], *, adopt: Sequence[str] | None
) -> str:
    """The lines to evaluate: `unset`, `export NAME='value'`, and last the adopting command.

    `adopt` is that command's words, the executable's full path first; the evaluating shell appends
    its own process ID, so that the lease becomes that shell's, and `eval` returns its exit status.
    None leaves it out. Every line ends with `;`: an `eval $(...)` without quotes, which joins the
    lines with blanks, then still works for values without white space.

    Raises:
        ValueError: a name that is no shell variable name, or a NUL byte (both our own mistake).
    """
    lines = [f"unset -v {_name(name)};" for name in unset]
    lines += [f"export {_name(name)}={quoted(value)};" for name, value in values.items()]
    if adopt is not None:
        lines.append(" ".join([*map(quoted, adopt), "$$"]))
    return "".join(line + "\n" for line in lines)


def failure(exit_code: int) -> str:
    """What to print when it failed: `eval` of it returns `exit_code`, and the shell lives."""
    return f"(exit {exit_code})\n"


def quoted(text: str) -> str:
    """`text` as one word that no shell reads anything into: single quotes are literal in all."""
    if "\0" in text:
        raise ValueError("a NUL byte cannot be in a shell word")
    return "'" + text.replace("'", "'\\''") + "'"


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no shell variable name")
    return name
