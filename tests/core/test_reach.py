"""Which addresses of another daemon are tried, in which order, and how they are written."""

from __future__ import annotations

import pytest

from mingled.core.events import Address
from mingled.core.peers import check_peers, check_subnets, listed, parse_peer
from mingled.core.reach import behind_nat, permitted, scoped, to_try, ways
from mingled.errors import BadInput

ETH0 = Address(address="10.0.0.5", interface="eth0", prefix=24)
ETH1 = Address(address="192.168.7.5", interface="eth1", prefix=24)
LOCAL6 = Address(address="fe80::5", interface="eth0", prefix=64)
DOCKER = Address(address="172.17.0.1", interface="docker0", prefix=16, virtual=True)
HERE = (ETH0, ETH1, LOCAL6, DOCKER)
OWN = {a.address for a in HERE} | {"127.0.0.1"}


@pytest.mark.parametrize(
    ("theirs", "tried"),
    [
        # A subnet of ours first, else as the other side ranks them.
        (("172.30.0.1", "192.168.7.1", "10.0.0.1"), ("192.168.7.1", "10.0.0.1", "172.30.0.1")),
        # docker0 has the same address everywhere: it leads back to us.
        (("172.17.0.1", "10.0.0.1"), ("10.0.0.1",)),
        # A container bridge's subnet is no sign that they are near.
        (("172.17.0.9", "10.9.0.1"), ("172.17.0.9", "10.9.0.1")),
        # All ours: that daemon runs on this machine.
        (("10.0.0.5", "172.17.0.1"), ("10.0.0.5", "172.17.0.1")),
        # Every link-local address is in fe80::/64, whatever interface it came over.
        (("2001:db8::1", "fe80::1%eth1"), ("fe80::1%eth1", "2001:db8::1")),
        (("fe80::5%eth0", "10.0.0.1"), ("10.0.0.1",)),
        (("no-address", "10.0.0.1"), ("10.0.0.1", "no-address")),
        ((), ()),
    ],
)
def test_what_is_tried(theirs: tuple[str, ...], tried: tuple[str, ...]) -> None:
    assert to_try(theirs, HERE, OWN) == tried


def test_a_link_local_address_gets_the_scope_of_its_link() -> None:
    assert scoped("fe80::1", "eth1") == "fe80::1%eth1"
    assert scoped("fe80::1%3", "eth1") == "fe80::1%3"
    assert scoped("fd00::1", "eth1") == "fd00::1"
    assert scoped("10.0.0.1", "eth1") == "10.0.0.1"
    assert ways("fe80::1", ("fd00::1", "fe80::1", "fe80::2"), "eth0") == (
        *("fe80::1%eth0", "fd00::1", "fe80::2%eth0"),
    )


@pytest.mark.parametrize(
    ("interfaces", "subnets", "left"),
    [
        ((), (), HERE),
        (("eth1",), (), (ETH1,)),
        (("10.0.0.5",), (), (ETH0,)),
        ((), ("192.168.0.0/16",), (ETH1,)),
        (("eth0",), ("10.0.0.0/8",), (ETH0,)),
        (("eth0",), ("fe80::/10",), (LOCAL6,)),
        (("docker0",), (), (DOCKER,)),
        (("eth9",), (), ()),
    ],
)
def test_what_a_user_permits(
    interfaces: tuple[str, ...], subnets: tuple[str, ...], left: tuple[Address, ...]
) -> None:
    assert permitted(HERE, interfaces, subnets) == left


def test_an_address_that_somebody_rewrites() -> None:
    assert behind_nat("10.0.0.9", "172.17.0.2")
    assert not behind_nat("10.0.0.9", "10.0.0.9")
    assert not behind_nat("fe80::1", "fe80::1%eth0")
    assert not behind_nat("10.0.0.9", "")  # an older daemon does not say


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("gpu1", ("gpu1", None)),
        ("gpu1:4000", ("gpu1", 4000)),
        ("10.0.0.7", ("10.0.0.7", None)),
        ("10.0.0.7:29491", ("10.0.0.7", 29_491)),
        ("fd00::7", ("fd00::7", None)),
        ("fe80::7%eth0", ("fe80::7%eth0", None)),
        ("[fd00::7]:4000", ("fd00::7", 4000)),
        ("[fd00::7]", ("fd00::7", None)),
        ("test-service.demo-project.svc.", ("test-service.demo-project.svc.", None)),
    ],
)  # fmt: skip
def test_a_peer(text: str, peer: tuple[str, int | None]) -> None:
    assert parse_peer(text) == peer


@pytest.mark.parametrize(
    "text", ["", ":4000", "gpu1:", "gpu1:0", "gpu1:70000", "gpu1:x", "[fd00::7", "[x]:1", "a b",
             "$(id)", "-x", "gpu1;id", "a..b", "x" * 64, "1:2:3", "[fd00::7]4000", "\x1b[31m"]
)  # fmt: skip
def test_no_peer(text: str) -> None:
    with pytest.raises(BadInput, match="is no host: give names or addresses"):
        check_peers([text])


def test_lists_of_peers_and_subnets() -> None:
    assert listed(["a,b", " c  d ", "a"]) == ("a", "b", "c", "d")
    with pytest.raises(BadInput, match="65 peers, at most 64"):
        check_peers([f"gpu{n}" for n in range(65)])
    check_subnets(["10.0.0.0/24", "10.0.0.7/24", "fd00::/8"])
    with pytest.raises(BadInput, match=r"job bert: subnet '10.0.0.0/33' is none.*--subnet"):
        check_subnets(["10.0.0.0/33"], "job bert: ")
