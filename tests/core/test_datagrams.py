"""Datagrams: what was encoded decodes to the same, and of anything else comes BadInput alone."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mingled.core import datagrams
from mingled.core.datagrams import (
    DATAGRAM_BYTES_MAX,
    RECEIVED_BYTES_MAX,
    Announce,
    Ask,
    Bye,
    Datagram,
    Echo,
    Echoed,
    Here,
    Identity,
    Relay,
    Who,
    decode,
    encode,
    scoped,
)
from mingled.core.messages import ADDRESSES_MAX
from mingled.errors import BadInput
from tests.core.samples import ADVERT, CLAIM, LABEL, NODE

RELAY = Relay(by=NODE, address="fe80::1%eth0", port=29_491, interface="eth0")
EACH: tuple[Datagram, ...] = (
    Announce(node=NODE, to="one", advert=ADVERT),
    Bye(node=NODE, label=LABEL, claim=CLAIM),
    Ask(node=NODE, labels=(LABEL,), relay=RELAY),
    Who(node=NODE),
    Here(node=NODE, by="broadcast", host="gpu1", port=29_490, addresses=("10.0.0.1", "fd00::1")),
    Echo(node=NODE, token="7", by="multicast", back=True, pad="x" * 500),
    Echoed(
        node=NODE,
        token="7",
        by="multicast",
        sent_by="unicast",
        host="gpu1",
        interface="eth0",
        address="10.0.0.1",
    ),
)
LONG = tuple(f"fdff:ffff:ffff:ffff:ffff:ffff:ffff:ff{n:02x}" for n in range(10, 30))


def test_each_kind_survives_the_wire() -> None:
    assert {type(d) for d in EACH} == set(get_args(datagrams.kind_of_datagrams))
    for datagram in EACH:
        data = encode(datagram)
        assert len(data) <= DATAGRAM_BYTES_MAX
        assert decode(data) == datagram
        assert decode(data.replace(b"{", b'{"from_a_newer_minor":[1],', 1)) == datagram


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("\x1b[31mred", "\ufffd[31mred"),
        ("a\nHost *", "a\ufffdHost *"),
        ("\udcff", "\ufffd"),
        ("x" * 300, "x" * 255),
    ],
)
def test_an_own_host_name_that_others_would_refuse(given: str, host: str) -> None:
    identity = Identity(node=NODE, host=given, port=1)
    assert (identity.host, identity.host_given) == (host, given)
    here = Here(node=NODE, by="broadcast", host=identity.host, port=1, addresses=())
    assert decode(encode(here)) == here
    assert Identity(node=NODE, host="gpu1", port=1).host_given == ""


def test_the_most_that_can_be_said_fits() -> None:
    longest = msgspec.structs.replace(ADVERT, addresses=LONG[:ADDRESSES_MAX], key_id="k" * 16)
    data = encode(Announce(node=NODE, to="one", advert=longest))
    assert len(data) <= DATAGRAM_BYTES_MAX
    assert decode(data) == Announce(node=NODE, to="one", advert=longest)
    far = Announce(node=NODE, advert=longest, relay=RELAY)
    assert decode(encode(far)) == far
    assert len(encode(far)) <= RECEIVED_BYTES_MAX


def test_the_last_addresses_are_left_out_where_all_are_too_many() -> None:
    crowded = Here(
        node=NODE, by="broadcast", host="h" * 255, port=1, addresses=LONG[:ADDRESSES_MAX]
    )
    wide = msgspec.structs.replace(crowded, host="\u00e9" * 255)
    data = encode(wide)
    assert DATAGRAM_BYTES_MAX - 50 < len(data) <= DATAGRAM_BYTES_MAX
    told = decode(data)
    assert isinstance(told, Here)
    assert told.addresses == LONG[: len(told.addresses)]
    assert 0 < len(told.addresses) < ADDRESSES_MAX


def test_scopes_are_the_receivers_own() -> None:
    advert = msgspec.structs.replace(ADVERT, addresses=("fe80::1%eth0", "fe80::1%eth1", "10.0.0.1"))
    told = decode(encode(Announce(node=NODE, advert=advert)))
    assert isinstance(told, Announce)
    assert told.advert.addresses == ("fe80::1", "10.0.0.1")
    assert scoped(told.advert.addresses, "ib0") == ("fe80::1%ib0", "10.0.0.1")
    assert scoped(told.advert.addresses, "") == ("10.0.0.1",)
    assert scoped(("fe80::1%2", "169.254.0.1", "name"), "ib0") == (
        "fe80::1%2",
        "169.254.0.1",
        "name",
    )


def raw(**fields: Any) -> bytes:
    return msgspec.json.encode({"node": str(NODE)} | fields)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{" * 1_000,
        b'{"a":' * 200,
        raw(type="advert"),
        raw(type="open-the-door"),
        raw(type="who", node="x"),
        raw(type="who", node=5),
        raw(type="who", pad="x" * RECEIVED_BYTES_MAX),
        raw(type="ask", labels=["short"]),
        raw(type="ask", labels=[str(LABEL)] * 17),
        raw(type="bye", label=str(LABEL), claim="../etc"),
        raw(type="here", by="unicast", host="gpu1", port=0, addresses=[]),
        raw(type="here", by="unicast", host="gpu1", port=65_536, addresses=[]),
        raw(type="here", by="unicast", host="gpu1", port=1, addresses=["10.0.0.1"] * 17),
        raw(type="here", by="unicast", host="gpu1", port=1, addresses=["$(reboot)"]),
        raw(type="here", by="unicast", host="gpu1", port=1, addresses=["fe80::1%eth0 x"]),
        raw(type="here", by="unicast", host="\x1b[2J", port=1, addresses=[]),
        raw(type="echo", token="x" * 65, by="unicast"),
        raw(type="echo", token="x", by="pigeon"),
        raw(type="echo", token="x", by="unicast", pad="x" * 1_001),
        raw(type="who", relay={"by": str(NODE), "address": "fe80::1%a b", "port": 1}),
        raw(type="who", relay={"by": str(NODE), "address": "10.0.0.1", "port": 0}),
        raw(type="who", relay={"by": str(NODE), "address": "gpu1", "port": 1}),
        raw(type="echoed", token="x", by="unicast", sent_by="unicast", host="", interface="a/b",
            address=""),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        decode(data)


@pytest.mark.parametrize(
    "changes", [{"version": 0}, {"version": 70_000}, {"key_id": "\n"}, {"key_id": "k" * 17}]
)
def test_an_advert_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Announce(node=NODE, advert=msgspec.structs.replace(ADVERT, **changes))


def outcome(data: bytes) -> Datagram | str:
    try:
        return decode(data)
    except BadInput as error:
        return str(error)


@given(st.binary(max_size=RECEIVED_BYTES_MAX + 10))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    assert outcome(data)
    assert outcome(b"{" + data)


@given(st.sampled_from(EACH), st.data())
def test_no_damaged_datagram_raises_anything_else(datagram: Datagram, data: st.DataObject) -> None:
    whole = encode(datagram)
    at = data.draw(st.integers(0, len(whole)))
    gone = data.draw(st.integers(0, 8))
    assert outcome(whole[:at] + data.draw(st.binary(max_size=8)) + whole[at + gone :])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


@given(st.sampled_from(EACH), st.data())
def test_no_value_of_any_field_raises_anything_else(
    datagram: Datagram, data: st.DataObject
) -> None:
    fields = msgspec.json.decode(encode(datagram))
    name = data.draw(st.sampled_from(sorted(fields)))
    assert outcome(msgspec.json.encode(fields | {name: data.draw(JSON)}))
