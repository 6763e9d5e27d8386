"""Peers and subnets that somebody names: what is taken can be asked, all else is BadInput."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mingled.core.peers import check_peers, check_subnets, listed, parse_peer
from mingled.errors import BadInput

WORDS = st.text(alphabet="ag1-_.:[]%/ \u0663\u00fc\x00\x1b", max_size=24) | st.text(max_size=24)
PORTS = st.text(alphabet="0123456789", min_size=1, max_size=9)


@given(WORDS | st.builds("{}:{}".format, st.sampled_from(["gpu1", "[fd00::7]"]), PORTS))
def test_whatever_is_named_is_a_place_or_bad_input(text: str) -> None:
    with contextlib.suppress(BadInput):
        host, port = parse_peer(text)
        assert host
        assert not set(host) & set(" \x00\x1b/[]")
        assert port is None or 0 < port < 65_536


@pytest.mark.parametrize("text", ["gpu1:0655350", "gpu1:065536", "[fd00::7]:9999990", "gpu1:00000"])
def test_a_port_with_zeros_before_it_is_no_way_around_the_limit(text: str) -> None:
    with pytest.raises(BadInput, match="is no host"):
        parse_peer(text)


@given(st.lists(WORDS | st.ip_addresses().map(str), max_size=6))
def test_lists_of_peers_and_subnets(texts: list[str]) -> None:
    words = listed(texts)
    assert len(set(words)) == len(words)
    assert not any("," in word or " " in word or not word for word in words)
    with contextlib.suppress(BadInput):
        check_peers(words)
        assert all(parse_peer(word) for word in words)
    with contextlib.suppress(BadInput):
        check_subnets(words)
        assert all(ipaddress.ip_network(word, strict=False) for word in words)
