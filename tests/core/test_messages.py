"""Golden: every message of both protocols, against lines that are checked in.

A line that changes is a change of the protocol: raise `codec.VERSION` if an older side would
misunderstand it, and write the files anew with `python -m tests.core.test_messages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from mingled.core import codec, local, messages
from mingled.core.codec import Decoder
from mingled.errors import BadInput
from tests.core import samples

GOLDEN = Path(__file__).parent / "golden"
FILES: dict[str, tuple[Decoder[Any], Sequence[msgspec.Struct]]] = {
    "peer": (messages.peer_decoder, samples.PEER),
    "requests": (local.request_decoder, samples.REQUESTS),
    "replies": (local.reply_decoder, samples.REPLIES),
}
EACH = [(name, k) for name, (_, some) in FILES.items() for k in range(len(some))]


def lines_of(name: str) -> list[bytes]:
    return (GOLDEN / f"{name}.jsonl").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(("name", "k"), EACH)
def test_golden(name: str, k: int) -> None:
    decoder, some = FILES[name]
    assert codec.encode(some[k]) == lines_of(name)[k]
    assert decoder.decode(lines_of(name)[k]) == some[k]


@pytest.mark.parametrize("name", FILES)
def test_unknown_fields_are_ignored(name: str) -> None:
    decoder, some = FILES[name]
    for line, message in zip(lines_of(name), some, strict=True):
        assert decoder.decode(line.replace(b"{", b'{"from_a_newer_minor":[1,{}],', 1)) == message


def test_every_message_has_its_golden_line() -> None:
    for union, some in (
        (messages.type_of_peer_messages, samples.PEER),
        (local.Request, samples.REQUESTS),
        (local.Reply, samples.REPLIES),
    ):
        assert {type(m) for m in some} == set(get_args(union))
    assert [len(lines_of(n)) for n in FILES] == [len(some) for _, some in FILES.values()]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"type":"join","job":"bert","form":"plain"}', "add --nnodes N"),
        (b'{"type":"join","job":"bert","form":"launcher","size_min":3,"size_max":2}', "3:2"),
        (
            b'{"type":"join","job":"bert","form":"process","size_min":2,"size_max":2,"rank":2}',
            "rank 2 is outside the job: with --world-size 2",
        ),
        (
            b'{"type":"join","job":"bert","form":"launcher","size_min":2,"size_max":2,"nproc":0}',
            "0 processes",
        ),
        (b'{"type":"join","job":"","form":"plain","rank":0}', "job ID is empty"),
        (b'{"type":"leave","job":5}', "JobId"),
        (b'{"type":"leave","job":"a\\nb"}', "control character"),
        (b'{"type":"open-the-door"}', "request"),
        (b"[]", "request"),
    ],
)
def test_requests_that_cannot_work(line: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        local.request_decoder.decode(line)


@pytest.mark.parametrize(
    ("port", "addresses"), [(0, 1), (65_536, 1), (-1, 1), (29_400, messages.ADDRESSES_MAX + 1)]
)
def test_places_that_cannot_be(port: int, addresses: int) -> None:
    for place in (samples.CARD, samples.ADVERT):
        with pytest.raises(BadInput):
            msgspec.structs.replace(place, port=port, addresses=("10.0.0.1",) * addresses)


if __name__ == "__main__":
    for name, (_, some) in FILES.items():
        (GOLDEN / f"{name}.jsonl").write_bytes(b"".join(map(codec.encode, some)))
