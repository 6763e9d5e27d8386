"""Text that other machines send, as types: what is made of it on arrival, at this one place.

What decides something is refused where it is not what it says (`IpText`, and the words of
`mingled.core.words`). What is only said to people is mended instead: unprintable characters become
U+FFFD and what is too long is cut. Nothing is decided by it, and a refusal would let an odd host
name, or a line break in some library's error, keep an honest machine out of its job.

To a type checker these are `str`: nobody has to convert what was made here. Only decoding does.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Annotated

import msgspec

from mingled.errors import BadInput

SENTENCE_CHARS_MAX = 1_000
"""People read no more."""

NAME_CHARS_MAX = 255
"""RFC 1035: no host name is longer; nor is any user's name or interface's."""

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")
"""A roster has thousands, and this is five times as fast as `ipaddress`."""

_SCOPE = re.compile(r"[^\s/%\x00-\x1f]{0,15}")
"""An interface's name, as Linux takes it, or its number."""


def printable(text: str) -> str:
    """Without what could paint a terminal or forge a line of a log: control characters, line
    breaks of any kind, marks that reverse the direction of writing, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


HexId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""A node's or a participant's, where 10,000 of them come in one frame: checked, and no more."""

if TYPE_CHECKING:
    Sentence = str
    Name = str
    IpText = str
else:

    class _Mended(str):
        chars_max: int

        def __new__(cls, text):
            if len(text) > cls.chars_max:
                text = text[: cls.chars_max] + "…"
            return super().__new__(cls, printable(text))

    class Sentence(_Mended):
        """For people."""

        chars_max = SENTENCE_CHARS_MAX

    class Name(_Mended):
        """Of a host, a user, an interface, a graphics card: for people, too."""

        chars_max = NAME_CHARS_MAX

    class IpText(str):
        """A literal one, maybe with a scope, or empty where none is known. A name would be looked
        up by whoever connects, and a shell, a hostfile and /etc/hosts take addresses as they are.
        """

        def __new__(cls, text):
            if not text or _IPV4.fullmatch(text):
                return super().__new__(cls, text)
            plain, percent, scope = text.partition("%")
            try:
                ipaddress.ip_address(plain)
            except ValueError:
                raise BadInput(f"{text[:64]!r} is no IP address") from None
            if percent and not (":" in plain and scope.isprintable() and _SCOPE.fullmatch(scope)):
                raise BadInput(f"{text[:64]!r} is no IP address")
            return super().__new__(cls, text)
