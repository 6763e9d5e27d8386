"""Whatever the bytes are, a decoder gives a message or one BadInput."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mingled.core.codec import VERSION, check_version, encode
from mingled.core.local import request_decoder
from mingled.core.messages import peer_decoder
from mingled.errors import BadInput, VersionSkew
from tests.core.test_messages import FILES, lines_of
from tests.fuzz.mutations import json_mutated


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b'"join"',
        b'{"type":"ping"',
        b'{"type":"ping","claim":"\xff"}',
        b'{"type":"ping","claim":"\\ud800"}',
        b'{"type":"ping","claim":' + b"[" * 100_000,
        b'{"x":' * 50_000,
        b'{"type":"ping","claim":1e999}',
        b'{"type":"ping"}',
        b'{"claim":"00"}',
    ],
)
def test_fault_36_broken_lines_are_bad_input(line: bytes) -> None:
    for decoder in (peer_decoder.decode, request_decoder.decode):
        with pytest.raises(BadInput):
            decoder(line)


@pytest.mark.parametrize("name", FILES)
@given(line=st.binary(max_size=200))
def test_fault_36_noise_is_bad_input(name: str, line: bytes) -> None:
    decoder, _ = FILES[name]
    with pytest.raises(BadInput):
        decoder.decode(line)


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_fault_36_damaged_lines_are_bad_input_or_a_message(name: str, data: st.DataObject) -> None:
    decoder, _ = FILES[name]
    line = data.draw(st.sampled_from(lines_of(name)))
    start = data.draw(st.integers(0, len(line) - 1))
    piece = data.draw(st.sampled_from([b"", b'"', b"9", b"-1", b"null", b"{", b"[]", b"\xff"]))
    end = data.draw(st.integers(start, len(line)))
    with contextlib.suppress(BadInput):
        decoder.decode(line[:start] + piece + line[end:])


@pytest.mark.parametrize("name", FILES)
@given(seed=st.integers(0, 2**32))
def test_fault_36_lines_changed_as_json(name: str, seed: int) -> None:
    """They are bad input or a message, which can be said again and is the same then."""
    decoder, _ = FILES[name]
    rng = random.Random(seed)
    line = json_mutated(rng.choice(lines_of(name)), rng)
    assert line is not None
    for one in line.splitlines():
        with contextlib.suppress(BadInput):
            message = decoder.decode(one)
            assert decoder.decode(encode(message)) == message


def test_fault_43_versions() -> None:
    major, minor = VERSION
    check_version((major, minor), "gpu2")
    check_version((major, minor + 1), "gpu2")
    for theirs in ((major + 1, minor), (major, minor + 2)):
        with pytest.raises(VersionSkew, match=rf"gpu2 speaks version {theirs[0]}\.{theirs[1]}"):
            check_version(theirs, "gpu2")
