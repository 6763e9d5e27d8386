"""Newline-delimited JSON, typed: the one framing of the Unix socket and of the peer link."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Generic, TypeVar

import msgspec

from mingled.errors import BadInput, MingleError, VersionSkew

VERSION = (1, 0)
"""Major and minor of both protocols. Majors must be equal and minors at most one apart: a field
that one side does not know is ignored, and no minor takes a field away that the last one needed."""


def own_version() -> tuple[int, int]:
    """A message's default. A factory, since a default itself is left out on the wire, and the other
    side would put its own version in its place."""
    return VERSION


T = TypeVar("T")


def check_version(theirs: tuple[int, int], who: str) -> None:
    """Refuse (`VersionSkew`) a peer or client that we would misunderstand."""
    if theirs[0] != VERSION[0] or abs(theirs[1] - VERSION[1]) > 1:
        raise VersionSkew(
            f"{who} speaks version {theirs[0]}.{theirs[1]} of the protocol, this side "
            f"{VERSION[0]}.{VERSION[1]}; install the same mingled on both"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, str):  # JobId, Nonce, ...: msgspec encodes exact strings only
        return str(value)
    raise NotImplementedError(type(value))


def _typed(kind: type, value: Any) -> Any:
    if issubclass(kind, str) and isinstance(value, str):
        return kind(value)
    raise BadInput(f"a {type(value).__name__} where a {kind.__name__} is expected")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def encode(message: msgspec.Struct) -> bytes:
    """One message as one line, newline included."""
    return _encoder.encode(message) + b"\n"


def json(value: Any) -> bytes:
    """Anything made of what messages hold, as JSON."""
    return _encoder.encode(value)


class Decoder(Generic[T]):
    """Lines to messages of one tagged union. Unknown fields are ignored.

    Raises `BadInput` with one sentence for whatever the bytes are: broken or deep JSON, bad UTF-8,
    an unknown type, a value of the wrong shape. Nothing else escapes.
    """

    def __init__(self, kind: Any, what: str) -> None:
        self._kind = kind
        self._what = what

    @cached_property
    def _decoder(self) -> msgspec.json.Decoder[T]:
        # Made at first use: a millisecond or two that a client need not spend on what peers say.
        return msgspec.json.Decoder(self._kind, dec_hook=_typed)

    def decode(self, line: bytes) -> T:
        try:
            return self._decoder.decode(line)
        except MingleError:
            raise
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadInput(f"{self._what}: {error}") from None
