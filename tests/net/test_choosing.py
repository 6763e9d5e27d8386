"""Which addresses are taken, in which order, and why: a table of machines."""

from __future__ import annotations

import pytest

from mingled.net.choosing import Rank, choose, rank_of, speed_words
from mingled.net.facts import Facts, Link, LinkAddress
from mingled.net.restricting import restriction

from .machines import address, link, machine

LO = link("lo", "loopback", "127.0.0.1/8", "::1/128")
ETH0 = link("eth0", "ethernet", "10.0.0.1/24", "fd00::1/64", "fe80::1/64", speed_mbits=1000)
ETH1 = link("eth1", "ethernet", "10.1.0.1/24", speed_mbits=100_000)
WLAN = link("wlan0", "wifi", "192.168.1.5/24", speed_mbits=400_000)
TUN = link("tun0", "tun", "10.8.0.2/24")
WG = link("wg0", "wireguard", "10.9.0.2/24")
DOCKER = link("docker0", "docker", "172.17.0.1/16", "fe80::42/64", speed_mbits=10_000)


def taken(facts: Facts, *, only: tuple[str, ...] = (), subnets: tuple[str, ...] = ()) -> list[str]:
    return [a.address for a in choose(facts, restriction(only, subnets)).addresses]


def why(facts: Facts, name: str, *only: str) -> str:
    verdicts = {v.interface: v for v in choose(facts, restriction(only)).verdicts}
    assert not verdicts[name].used
    assert verdicts[name].place is None
    return verdicts[name].why


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        pytest.param((LO,), ["127.0.0.1", "::1"], id="loopback where there is nothing else"),
        pytest.param((), [], id="nothing at all"),
        pytest.param((LO, ETH0), ["10.0.0.1", "fd00::1", "fe80::1"], id="IPv4, IPv6, link-local"),
        pytest.param(
            (DOCKER, WG, TUN, WLAN, ETH0, ETH1, LO),
            [
                *("10.1.0.1", "10.0.0.1", "fd00::1", "fe80::1"),  # wired, the faster first
                "192.168.1.5",  # however fast it says it is
                *("10.8.0.2", "10.9.0.2"),  # tunnels, by name
                "172.17.0.1",
            ],
            id="wired, wireless, tunnels, virtual",
        ),
        pytest.param(
            (link("b", "ethernet", "10.0.0.2"), link("a", "ethernet", "10.0.0.1"), ETH0),
            ["10.0.0.1", "fd00::1", "fe80::1", "10.0.0.1", "10.0.0.2"],
            id="unknown speed last, then by name",
        ),
        pytest.param(
            (
                link("eth0", "ethernet", "10.0.0.1", "fd00::1", "fe80::1"),
                link("eth1", "ethernet", "10.0.0.2", "fd00::2", "fe80::2"),
            ),
            ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2", "fe80::1", "fe80::2"],
            id="equal cards: IPv4 of all, then IPv6",
        ),
        pytest.param(
            (
                link("ib0", "infiniband", "10.4.0.1", speed_mbits=200_000),
                link("bond0", "bond", "10.5.0.1", speed_mbits=50_000),
                link("eth0.5", "vlan", "10.6.0.1", speed_mbits=25_000, parent="eth0"),
                ETH0,
            ),
            ["10.4.0.1", "10.5.0.1", "10.6.0.1", "10.0.0.1", "fd00::1", "fe80::1"],
            id="all of these are wired",
        ),
        pytest.param((LO, DOCKER), ["172.17.0.1"], id="virtual before loopback, no link-local"),
        pytest.param(
            (link("eth0", "ethernet", "169.254.7.7/16", "fe80::1/64"), LO),
            ["169.254.7.7", "fe80::1"],
            id="169.254 where there is nothing else of IPv4",
        ),
        pytest.param(
            (link("eth0", "ethernet", "169.254.7.7/16"), ETH1), ["10.1.0.1"], id="169.254 else not"
        ),
        pytest.param(
            (link("eth0", "ethernet", "169.254.7.7/16"), DOCKER),
            ["169.254.7.7", "172.17.0.1"],
            id="docker0 does not count as IPv4",
        ),
        pytest.param(
            (
                link(
                    "eth0",
                    "ethernet",
                    address("fd00::1", state="tentative"),
                    address("fd00::2", state="duplicate"),
                    address("fd00::3", state="deprecated"),
                    address("fd00::4", state="temporary"),
                    address("fd00::5"),
                ),
            ),
            ["fd00::5", "fd00::3", "fd00::4"],
            id="what soon changes comes last, what is not unique never",
        ),
        pytest.param(
            (link("lo", "loopback", "127.0.0.1", "10.255.0.9/32"), ETH1),
            ["10.1.0.1", "10.255.0.9"],
            id="a service's address on lo",
        ),
    ],
)
def test_the_order(links: tuple[Link, ...], expected: list[str]) -> None:
    assert taken(machine(*links)) == expected


@pytest.mark.parametrize(
    ("only", "subnets", "expected"),
    [
        (("eth0",), (), ["10.0.0.1", "fd00::1", "fe80::1"]),
        (("fd00::1",), (), ["fd00::1"]),
        (("fe80::1%eth0",), (), ["fe80::1"]),
        (("FD00:0::1",), (), ["fd00::1"]),
        (("docker0",), (), ["172.17.0.1"]),
        (("wlan0", "eth1"), (), ["10.1.0.1", "192.168.1.5"]),
        (("lo",), (), ["127.0.0.1", "::1"]),
        (("127.0.0.1",), (), ["127.0.0.1"]),
        (("eth7",), (), []),
        ((), ("10.0.0.0/8",), ["10.1.0.1", "10.0.0.1", "10.8.0.2"]),
        ((), ("10.0.0.77/24", "fd00::/8"), ["10.0.0.1", "fd00::1"]),
        ((), ("127.0.0.0/8",), ["127.0.0.1"]),
        (("eth0",), ("fd00::/8",), ["fd00::1"]),
        (("eth1",), ("fd00::/8",), []),
    ],
)
def test_what_the_user_allows(
    only: tuple[str, ...], subnets: tuple[str, ...], expected: list[str]
) -> None:
    facts = machine(LO, DOCKER, WLAN, TUN, ETH0, ETH1)
    assert taken(facts, only=only, subnets=subnets) == expected


def test_each_address_has_its_prefix_interface_and_whether_it_is_virtual() -> None:
    every = choose(machine(LO, ETH1, DOCKER)).addresses
    assert [(a.interface, a.prefix, a.virtual) for a in every] == [
        ("eth1", 24, False),
        ("docker0", 16, True),
    ]


@pytest.mark.parametrize(
    ("subject", "others", "said"),
    [
        (link("eth0", "ethernet", "10.0.0.1", up=False, carrier=None), (), "it is down"),
        (link("eth0", "ethernet", "10.0.0.1", carrier=False), (), "no cable"),
        (link("wlan0", "wifi", "10.0.0.1", carrier=False), (), "not connected to any network"),
        (link("eth0", "ethernet", "10.0.0.1", carrier=False, state="dormant"), (), "a login"),
        (link("eth0", "ethernet"), (), "it has no address"),
        (link("eth0", "ethernet", "fe80::1", master="br0"), (), "a port of br0"),
        (link("ceth0", "veth", "fe80::1"), (), "leads nowhere"),
        (link("eth0", "ethernet", address("fd00::1", state="duplicate")), (), "another host has"),
        (link("eth0", "ethernet", address("fd00::1", state="tentative")), (), "to be unique"),
        (link("eth0", "ethernet", "169.254.1.1"), (ETH1,), "did DHCP not answer?"),
        (LO, (ETH1,), "only where there is nothing else"),
    ],
)
def test_why_not(subject: Link, others: tuple[Link, ...], said: str) -> None:
    facts = machine(subject, *others)
    assert said in why(facts, subject.name)
    assert not {a.interface for a in choose(facts).addresses} & {subject.name}


def test_a_restriction_leaves_out_and_says_so() -> None:
    assert "--interface or --subnet leaves it out" in why(machine(ETH0, ETH1), "eth0", "eth1")


def test_a_virtual_interface_that_is_named_needs_no_carrier() -> None:
    idle = link("docker0", "docker", "172.17.0.1/16", carrier=False)
    assert taken(machine(LO, idle)) == ["127.0.0.1", "::1"]
    assert taken(machine(LO, idle), only=("docker0",)) == ["172.17.0.1"]
    unplugged = link("eth0", "ethernet", "10.0.0.1", carrier=False)
    assert taken(machine(unplugged, ETH1), only=("eth0",)) == []


def test_what_is_not_known_is_believed_to_be_up() -> None:
    assert taken(machine(link("eth0", "ethernet", "10.0.0.1", up=None, carrier=None))) == [
        "10.0.0.1"
    ]


@pytest.mark.parametrize(
    ("subject", "others", "expected"),
    [
        (link("br0", "bridge", gateways=("10.0.0.254",)), (), Rank.WIRED),
        (link("docker0", "docker", gateways=("10.0.0.254",)), (), Rank.WIRED),
        (
            link("br0", "bridge"),
            (link("eth0", "ethernet", master="br0", hardware=True),),
            Rank.WIRED,
        ),
        (link("br0", "bridge"), (link("bond0", "bond", master="br0"),), Rank.WIRED),
        (
            link("br0", "bridge"),
            (link("veth0", "veth", master="br0", hardware=False),),
            Rank.VIRTUAL,
        ),
        (link("br0", "bridge"), (link("eth0", "ethernet", hardware=True),), Rank.VIRTUAL),
        (link("eth0", "veth", "10.0.0.1", peer_elsewhere=True), (), Rank.WIRED),
        (link("eth0", "veth", "fe80::1", peer_elsewhere=True), (), Rank.WIRED),
        (link("eth0", "veth", peer_elsewhere=True), (), Rank.VIRTUAL),
        (link("veth1", "veth", "10.0.0.1"), (), Rank.VIRTUAL),
        (link("vethab12cd3", "veth", "10.0.0.1", peer_elsewhere=True), (), Rank.VIRTUAL),
        (link("cali12", "veth", "10.0.0.1", peer_elsewhere=True), (), Rank.VIRTUAL),
        (link("v", "vlan", parent="eth0"), (ETH0,), Rank.WIRED),
        (link("v", "vlan", parent="docker0"), (DOCKER,), Rank.VIRTUAL),
        (link("v", "vlan", parent="wlan0"), (WLAN,), Rank.WIRELESS),
        (
            link("v", "vlan", parent="eth0"),
            (link("eth0", "veth", peer_elsewhere=True),),
            Rank.WIRED,
        ),
        (link("eth0", "macvlan", peer_elsewhere=True), (), Rank.WIRED),
        (link("mv0", "macvlan", parent="dummy0"), (link("dummy0", "dummy"),), Rank.VIRTUAL),
        (link("a", "vlan", parent="a"), (), Rank.WIRED),  # no kernel does so: it must end
        (link("dummy0", "dummy"), (), Rank.VIRTUAL),
        (link("macvtap0", "macvtap"), (), Rank.VIRTUAL),
        (link("flannel.1", "vxlan"), (), Rank.VIRTUAL),
        (link("gre1", "tunnel"), (), Rank.TUNNEL),
        (link("ppp0", "ppp"), (), Rank.TUNNEL),
        (link("wwan0", "wwan"), (), Rank.WIRELESS),
    ],
)
def test_ranks(subject: Link, others: tuple[Link, ...], expected: Rank) -> None:
    assert rank_of(machine(subject, *others), subject) is expected


def test_without_netlink_bridges_are_judged_by_name() -> None:
    for name, kind, expected in (
        ("br0", "bridge", Rank.WIRED),
        ("virbr0", "bridge", Rank.VIRTUAL),
        ("docker0", "docker", Rank.VIRTUAL),
    ):
        subject = link(name, kind)
        assert rank_of(machine(subject, exact=False), subject) is expected


def test_members_of_a_vrf_keep_their_addresses() -> None:
    inside = link("eth0", "ethernet", "10.0.0.1", master="red")
    assert taken(machine(inside, link("red", "vrf"))) == ["10.0.0.1"]


def test_verdicts_and_addresses_never_disagree() -> None:
    facts = machine(LO, DOCKER, WLAN, TUN, ETH0, ETH1)
    for only in ((), ("docker0",), ("lo",), ("eth7",), ("10.1.0.1",)):
        chosen = choose(facts, restriction(only))
        order = list(dict.fromkeys(a.interface for a in chosen.addresses))
        places = {v.place: v.interface for v in chosen.verdicts if v.used}
        assert [places[n + 1] for n in range(len(order))] == order
        assert [v.interface for v in chosen.verdicts] == [link.name for link in facts.links]


def test_verdicts_in_words() -> None:
    verdicts = {v.interface: v.why for v in choose(machine(DOCKER, WLAN, TUN, ETH0)).verdicts}
    assert verdicts["eth0"] == "wired, 1 Gbit/s"
    assert verdicts["wlan0"] == "wireless, so after what is wired, 400 Gbit/s"
    assert verdicts["tun0"].endswith("speed unknown")
    assert verdicts["docker0"].startswith("virtual, so after all others")
    (only,) = choose(machine(LO)).verdicts
    assert (only.used, only.place) == (True, 1)
    assert only.why.startswith("loopback, since there is nothing else")


@pytest.mark.parametrize(
    ("mbits", "text"),
    [(None, ""), (100, "100 Mbit/s"), (1000, "1 Gbit/s"), (2500, "2.5 Gbit/s")],
)
def test_speeds(mbits: int | None, text: str) -> None:
    assert speed_words(mbits) == text


def test_addresses_of_one_interface_keep_their_order() -> None:
    one: LinkAddress = address("10.0.0.9/24")
    facts = machine(link("eth0", "ethernet", one, "10.0.0.2/24"))
    assert taken(facts) == ["10.0.0.9", "10.0.0.2"]
