"""Flags on another program's command line, read as its own parser (argparse) reads them.

Both spellings (`--nproc-per-node`, `--nproc_per_node`), `--flag value` and `--flag=value`,
unambiguous beginnings (`--nn 2`), short flags alone or run together (`-mr3`). What follows the
training script is the script's and never looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from mingled.errors import BadInput

_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")


class Flag(NamedTuple):
    """One flag as it stands on the line."""

    name: str  #: its full name, dashes within
    value: str | None  #: None for a flag that takes none
    first: int  #: index of its token in the line
    end: int  #: index after its last token
    text: str  #: as it was written, for a sentence


class Program(msgspec.Struct, frozen=True):
    """A launcher whose line is read."""

    name: str  #: for sentences
    version: str  #: whose flags these are
    with_value: frozenset[str]
    without_value: frozenset[str]
    short: Mapping[str, str]  #: to the full name
    valueless: str  #: what to do instead about a newer flag that takes no value

    def flags(self, argv: tuple[str, ...], at: int) -> tuple[tuple[Flag, ...], int]:
        """From the word at `at` on, to the first that is none; that one's index, too. Raises
        `BadInput` where the program would refuse a flag."""
        found: list[Flag] = []
        while at < len(argv) and argv[at] != "--":
            more = self._in(argv, at)
            if not more:
                break
            found += more
            at = more[-1].end
        return tuple(found), at

    def _in(self, argv: tuple[str, ...], at: int) -> list[Flag]:
        """The flags in one word (several when short ones run together); none for the script."""
        word = argv[at]
        if not word.startswith("-") or word == "-":
            return []
        spelled, attached = _split(word)
        if (name := self._match(spelled, word)) is None:
            # As argparse: a negative number, or a word with a blank in it, is no flag.
            if _NEGATIVE.fullmatch(word) or " " in word:
                return []
            if word.startswith("--") and attached is not None:
                return [Flag(spelled[2:], attached, at, at + 1, word)]  # a newer one's, perhaps
            raise BadInput(
                f"{self.name} has no flag {word} (as of {self.version}): correct it; if your "
                f"{self.name} is newer and knows it, write {spelled}=VALUE, or if it takes none "
                f"{self.valueless}"
            )
        if name in self.with_value:
            if attached is not None:
                return [Flag(name, attached, at, at + 1, word)]
            if at + 1 >= len(argv) or self._looks_like_flag(argv[at + 1]):
                raise BadInput(f"{self.name}'s {word} wants a value after it")
            return [Flag(name, argv[at + 1], at, at + 2, f"{word} {argv[at + 1]}")]
        flag = Flag(name, None, at, at + 1, word)
        if attached is None:
            return [flag]
        if word.startswith("--"):
            raise BadInput(f"{self.name}'s {spelled} takes no value: delete ={attached}")
        # Short flags run together: the rest is read as if it stood alone in the same place.
        rest = self._in((*argv[:at], f"-{attached}", *argv[at + 1 :]), at)
        if not rest:
            raise BadInput(f"{self.name}'s {spelled} takes no value: delete {attached} from {word}")
        return [flag, *(other._replace(text=word) for other in rest)]

    def _match(self, spelled: str, word: str) -> str | None:
        """The full name of the flag that `spelled` means; None when no flag begins so."""
        if not spelled.startswith("--"):
            return self.short.get(spelled)
        if "-" in spelled[2:] and "_" in spelled[2:]:
            return None  # argparse knows the two spellings, not a mixture
        given = spelled[2:].replace("_", "-")
        known = self.with_value | self.without_value
        if given in known:
            return given
        names = sorted(name for name in known if name.startswith(given))
        if len(names) > 1:
            raise BadInput(
                f"{self.name}'s {word} could mean {', '.join('--' + name for name in names)}: "
                "write the one you mean"
            )
        return names[0] if names else None

    def _looks_like_flag(self, word: str) -> bool:
        """Whether argparse would refuse `word` as a flag's value."""
        if not word.startswith("-") or word == "-":
            return False
        if word == "--" or self._match(_split(word)[0], word) is not None:
            return True
        return not (_NEGATIVE.fullmatch(word) or " " in word)


def last(flags: tuple[Flag, ...], name: str) -> Flag | None:
    """The occurrence that counts."""
    return next((flag for flag in reversed(flags) if flag.name == name), None)


def integer(flag: Flag) -> int:
    """Raises `BadInput`."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", flag.value or ""):
        raise BadInput(f"{flag.text}: want a whole number")
    return int(flag.value or "")


def check_same(
    job: str, program: str, name: str, own: str | None, said: Flag | None, value: str | None
) -> None:
    """What mingle-wait's own flag and the line both say must be one thing. Raises `BadInput`."""
    if own is None or said is None or value is None or _plain(own) == _plain(value):
        return
    raise BadInput(
        f"job {job}: mingle-wait says {name} {own}, {program}'s command line says {said.text}; "
        f"delete one of the two"
    )


def _plain(text: str) -> str:
    return str(int(text)) if re.fullmatch(r"[0-9]{1,9}", text) else text


def _split(word: str) -> tuple[str, str | None]:
    """A word with a dash in front: the flag as it is spelled, and the value attached to it."""
    if word.startswith("--"):
        spelled, equals, value = word.partition("=")
        return spelled, value if equals else None
    attached = word[2:]
    if attached.startswith("="):
        attached = attached[1:]
    return word[:2], attached if len(word) > 2 else None
