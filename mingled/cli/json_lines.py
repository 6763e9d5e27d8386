"""What `--json` prints: one line of JSON, and nothing in it that a terminal takes for a command."""

from __future__ import annotations

import re
import sys
from typing import Any

from mingled.core import codec

_SUSPECT = re.compile(r"[^\x20-\x7e]")


def print_json(value: Any) -> None:
    """On stdout, one line."""
    sys.stdout.write(json_text(value) + "\n")


def json_text(value: Any) -> str:
    """JSON itself escapes control characters up to U+001F alone: not the C1 ones, of which one
    begins a terminal's sequences, nor marks that reverse the direction of writing."""
    return _SUSPECT.sub(_escaped, codec.json(value).decode())


def _escaped(match: re.Match[str]) -> str:
    char = match[0]
    if char.isprintable():
        return char
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
