"""Text from other machines: whatever they send, what arrives is harmless or refused."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mingled.core import heard, messages
from mingled.core.codec import encode
from mingled.core.config import Config, Member
from mingled.core.software import Software
from mingled.errors import BadInput
from tests.core import samples

HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.text("\x1b[2J\r\n\t\x07\x9b\x00\u202e\u2066\u2028\ufeff ab", max_size=60),
)


@given(HOSTILE)
def test_fault_38_no_text_that_is_made_printable_paints_or_breaks_a_line(text: str) -> None:
    made = heard.printable(text)
    assert made.isprintable()
    assert len(made) == len(text)
    assert len(made.splitlines()) <= 1
    assert heard.printable(made) == made


@pytest.mark.parametrize("text", ["", "gpu1", "ärger", "日本", "a b", "Ω-7", "🙂", "e\u0301"])
def test_names_that_people_have_stay(text: str) -> None:
    assert heard.printable(text) == heard.Name(text) == heard.Sentence(text) == text


@given(HOSTILE)
def test_fault_38_what_a_peer_says_arrives_mended(text: str) -> None:
    gone = encode(messages.Gone(claim=samples.CLAIM, round=1, rank=0, how="lost", reason=text))
    join = encode(samples.PEER[0]).replace(b'"ann"', msgspec.json.encode(text))
    for line in (gone, join):
        for said in strings(messages.peer_decoder.decode(line)):
            assert said.isprintable()


def test_what_is_too_long_is_cut() -> None:
    long = "x" * 5_000
    line = encode(messages.Dismiss(claim=samples.CLAIM, reason=long))
    dismiss = messages.peer_decoder.decode(line)
    assert isinstance(dismiss, messages.Dismiss)
    assert dismiss.reason == "x" * heard.SENTENCE_CHARS_MAX + "…"
    card = msgspec.structs.replace(samples.CARD, host="h")
    hail = messages.Redirect(claim=samples.CLAIM, advert=samples.ADVERT, host=long)
    redirect = messages.peer_decoder.decode(encode(hail))
    assert isinstance(redirect, messages.Redirect)
    assert redirect.host == "x" * heard.NAME_CHARS_MAX + "…"
    assert card.host == "h"


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1", "fd00::1", "::ffff:10.0.0.1", "fe80::1%eth0", "fe80::1%3", "fe80::1%"]
)
def test_addresses(text: str) -> None:
    assert heard.IpText(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("evil.example", "fade.de", "localhost", "10.0.0.1\n", "10.0.0.1;reboot", "$(reboot)"),
        *("10.0.0.1 -oProxyCommand=x", "10.0.0", "1", "10.0.0.1%eth0", "fe80::1%a/b", "/etc"),
        *("fe80::1%$(x) y", "fe80::1%a\x1b", "fe80::1%" + "x" * 16, "-1", "10.0.0.1/8", "\0"),
    ],
)
def test_fault_38_what_is_no_literal_address_is_refused(text: str) -> None:
    """Also a name, which whoever connects would look up."""
    with pytest.raises(BadInput, match="is no IP address"):
        heard.IpText(text)
    line = encode(samples.PEER[0]).replace(b'"10.0.0.1"', msgspec.json.encode(text))
    assert line != encode(samples.PEER[0])
    with pytest.raises(BadInput):
        messages.peer_decoder.decode(line)


CHECKED_ELSEWHERE = {(Software, name) for name in Software.__struct_fields__} | {
    (messages.Entry, "require_same")  # each checks itself when it is made
}


@pytest.mark.parametrize("kind", [*typing.get_args(messages.type_of_peer_messages), Config])
def test_no_text_from_a_peer_comes_in_as_it_is(kind: type[msgspec.Struct]) -> None:
    """A new field of a message has a type of its own, too."""
    plain = {
        (owner.__name__, field)
        for owner, field, type_ in fields(kind)
        if type_ is str and (owner, field) not in CHECKED_ELSEWHERE
    }
    own = {("Config", "job")}  # of the local socket alone, and the same as its Join's JobId
    assert plain <= own, plain


def fields(kind: Any) -> Iterator[tuple[Any, str, Any]]:
    """Every field of a struct and of those in it, with each type that it may have."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        for leaf in leaves(hint):
            if isinstance(leaf, type) and issubclass(leaf, msgspec.Struct):
                yield from fields(leaf)
            else:
                yield kind, name, leaf


def leaves(hint: Any) -> Iterator[Any]:
    origin = typing.get_origin(hint)
    if origin in (None, typing.Literal, typing.Annotated):
        yield hint
    elif origin in (tuple, typing.Union, types.UnionType):
        for inner in typing.get_args(hint):
            yield from leaves(inner)
    else:
        raise AssertionError(hint)


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from strings(one)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from strings(getattr(value, name))


def test_a_member_from_a_peer_and_one_of_ours_are_the_same() -> None:
    decoder = msgspec.json.Decoder(Member, dec_hook=lambda kind, value: kind(value))
    assert decoder.decode(encode(samples.MEMBER)) == samples.MEMBER
