"""Which of a machine's addresses are advertised, by names alone: on machines made up."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path

import pytest

from mingled.core.events import Address
from mingled.errors import BadInput
from mingled.net import interfaces, ioctls, links, netlink, quick
from mingled.net.interfaces import (
    all_addresses,
    candidates,
    choice,
    default_interfaces,
    facts,
    forget,
    interface_names,
    interface_of,
    refusal,
    remember,
)

from .machines import V4, V6, FakeNetifaces


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeNetifaces:
    made = FakeNetifaces(
        {
            "lo": ["127.0.0.1/255.0.0.0", "::1"],
            "docker0": ["172.17.0.1/255.255.0.0"],
            "wlan0": ["192.168.1.5"],
            "tailscale0": ["100.64.0.7"],
            "eth1": ["10.1.0.2/255.255.255.0", "fe80::2%eth1"],
            "eth0": ["fd00::1/ffff:ffff:ffff:ffff::", "10.0.0.1", "fe80::1%eth0"],
            "vethab12cd3": ["fe80::9%vethab12cd3"],
            "down0": [],
        },
        {V4: "eth1", V6: "eth0"},
    )
    made.speeds = {"eth1": 100_000, "eth0": 1000, "tailscale0": 10}
    made.install(monkeypatch)
    monkeypatch.setattr(interfaces, "_known", {})
    return made


def names(found: tuple[Address, ...]) -> list[tuple[str, str]]:
    return [(a.interface, a.address) for a in found]


@pytest.mark.usefixtures("machine")
def test_the_best_address_comes_first() -> None:
    assert names(candidates()) == [
        ("eth1", "10.1.0.2"),  # the faster
        ("eth1", "fe80::2"),
        ("eth0", "10.0.0.1"),
        ("eth0", "fd00::1"),
        ("eth0", "fe80::1"),
        ("wlan0", "192.168.1.5"),
        ("tailscale0", "100.64.0.7"),
        ("docker0", "172.17.0.1"),
    ]
    assert default_interfaces() == ("eth1", "eth0")


@pytest.mark.usefixtures("machine")
def test_prefixes_and_what_is_virtual() -> None:
    assert candidates(["eth1"])[0] == Address(address="10.1.0.2", interface="eth1", prefix=24)
    (bridge,) = candidates(subnets=["172.16.0.0/12"])
    assert bridge == Address(address="172.17.0.1", interface="docker0", prefix=16, virtual=True)
    by_address = {a.address: a for a in all_addresses()}
    assert by_address["fd00::1"].prefix == 64
    assert by_address["10.0.0.1"].prefix == 0  # nobody said
    assert by_address["172.17.0.1"].virtual


def test_a_wifi_card_with_another_name_is_found_out(machine: FakeNetifaces) -> None:
    machine.wireless = {"eth1"}
    assert names(candidates())[0] == ("eth0", "10.0.0.1")


def test_flags_count_where_they_are_known(machine: FakeNetifaces) -> None:
    machine.flags = {"eth1": 0, "eth0": ioctls.IFF_UP}
    assert names(candidates())[0] == ("wlan0", "192.168.1.5")
    reasons = {v.interface: v.why for v in choice().verdicts}
    assert reasons["eth1"] == "it is down"
    assert reasons["eth0"].startswith("it has no carrier")


@pytest.mark.usefixtures("machine")
def test_a_malformed_subnet_is_refused() -> None:
    with pytest.raises(BadInput, match=r"--subnet 10\.0\.0\.0/99: not a subnet"):
        candidates(subnets=["10.0.0.0/99"])


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("only", "subnets", "said"),
    [
        ((), (), None),
        (("eth0", "10.1.0.2"), ("10.0.0.0/8",), None),
        (("down0",), (), None),  # its address may still come
        (("fe80::1%eth0",), (), None),
        (("eth7",), (), "gpu1 has no interface eth7; it has docker0 172.17.0.1/16, wlan0"),
        (("10.9.9.9",), (), "gpu1 has no address 10.9.9.9; it has "),
        ((), ("10.3.0.0/16",), "gpu1 has no address in 10.3.0.0/16; it has "),
        ((), ("nonsense",), "--subnet nonsense: not a subnet such as 10.0.0.0/8"),
        ((), ("10.0.0.0/99",), "--subnet 10.0.0.0/99: not a subnet"),
        (("eth1",), ("192.168.0.0/16",), "that --interface eth1 and --subnet 192.168.0.0/16 both"),
    ],
)
def test_refusals(only: tuple[str, ...], subnets: tuple[str, ...], said: str | None) -> None:
    sentence = refusal(only, subnets, host="gpu1")
    if said is None:
        assert sentence is None
    else:
        assert sentence is not None
        assert said in sentence
        assert "correct" in sentence


def test_a_refusal_lists_loopback_last_and_not_hundreds(machine: FakeNetifaces) -> None:
    machine.has |= {f"br-{n:012x}": ["172.18.0.1"] for n in range(40)}
    sentence = refusal(["eth7"], host="gpu1")
    assert sentence is not None
    assert "and 36 more: correct --interface" in sentence


def test_what_is_no_address_is_left_out(machine: FakeNetifaces) -> None:
    machine.has = {"eth0": ["nonsense", "", "10.0.0.1", "fd00::1%eth0", "fe80::1"]}
    assert names(tuple(all_addresses())) == [("eth0", "10.0.0.1"), ("eth0", "fd00::1")]


def test_one_listing_serves_all_interfaces(machine: FakeNetifaces) -> None:
    machine.bare = {"down0"}  # a tun has no address of any family, not even a MAC
    seen = facts(exact=False)
    assert machine.asked == 1
    assert {link.name for link in seen.links} == machine.has.keys()
    assert candidates(seen=seen)[0].address == "10.1.0.2"
    assert refusal(["eth7"], seen=seen)
    assert machine.asked == 1
    quick.snapshot()
    assert machine.asked == 2
    found = quick.addresses()
    assert machine.asked == 3
    assert {name: [a.address for a in those] for name, those in found.items()} == {
        link.name: [a.address for a in link.addresses] for link in seen.links
    }


def test_what_was_read_is_remembered_until_something_changes(machine: FakeNetifaces) -> None:
    remember(facts(exact=False))
    assert interface_of("10.0.0.1") == "eth0"
    assert interface_of("fe80::2%eth1") == "eth1"
    assert machine.asked == 1
    machine.has["wlan0"].append(machine.has["eth0"].pop(1))
    assert interface_of("10.0.0.1") == "eth0"  # nobody has said so yet
    forget()
    assert interface_of("10.0.0.1") == "wlan0"
    assert machine.asked == 2


def test_the_interface_of_an_address_is_remembered(machine: FakeNetifaces) -> None:
    assert interface_of("10.0.0.1") == "eth0"
    asked = machine.asked
    assert interface_of("fd00::1%eth0") == "eth0"
    assert interface_of("10.1.0.2") == "eth1"
    assert machine.asked == asked
    assert interface_of("10.1.0.3") == ""
    machine.has["eth1"].append("10.1.0.3")
    assert interface_of("10.1.0.3") == "eth1"  # what was not known is asked for again
    machine.has["eth0"], machine.has["eth1"] = machine.has["eth1"], machine.has["eth0"]
    candidates()
    assert interface_of("10.0.0.1") == "eth1"


def test_a_scope_decides_between_two_interfaces(machine: FakeNetifaces) -> None:
    machine.has = {"eth0": ["10.0.0.1", "fe80::1%eth0"], "eth1": ["10.0.0.1", "fe80::1%eth1"]}
    assert interface_of("10.0.0.1") == "eth0"
    assert interface_of("fe80::1%eth1") == "eth1"
    assert interface_of("fe80::1") == "eth0"
    assert interface_of("fe80::1%7") == "eth0"


def test_where_netlink_does_not_answer_names_have_to_do(
    machine: FakeNetifaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(question: object) -> None:
        raise netlink.NoNetlink("a sandbox forbids it")

    monkeypatch.setattr(netlink, "ask", refuse)
    assert candidates(exact=True) == candidates()
    read = links.facts()
    assert (read.exact, read.why_not) == (False, "a sandbox forbids it")
    assert machine.has.keys() == {link.name for link in read.links}


def test_a_snapshot_changes_with_what_matters(
    machine: FakeNetifaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(before: tuple[object, ...]) -> tuple[object, ...]:
        after = quick.snapshot()
        assert after != before
        return after

    first = quick.snapshot()
    assert quick.snapshot() == first
    machine.has["down0"].append("10.2.0.1")
    second = changed(first)
    machine.flags["eth0"] = ioctls.IFF_UP
    third = changed(second)
    machine.default[V4] = "eth0"
    fourth = changed(third)
    machine.flags["eth0"] |= 0x1000  # IFF_MULTICAST and the like are nobody's business
    assert quick.snapshot() == fourth
    # Removed and made again, with the same name and addresses: another index.
    monkeypatch.setattr(ioctls, "index", lambda n: [*machine.has].index(n) + (n == "eth0") * 50)
    changed(fourth)


def test_sysfs_is_believed_only_where_it_shows_our_namespace(tmp_path: Path) -> None:
    for name, index in (("lo", ioctls.index("lo")), ("other", 77), ("odd", "nonsense")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ifindex").write_text(f"{index}\n")
    assert ioctls.sysfs("lo", tmp_path) == tmp_path / "lo"
    assert ioctls.sysfs("other", tmp_path) is None
    assert ioctls.sysfs("odd", tmp_path) is None
    assert ioctls.sysfs("eth7", tmp_path) is None


def test_an_interface_that_is_not_there_is_not_asked_about() -> None:
    for name in ("no-such-card", "a name longer than the kernel allows", "", "a\0b", "é" * 9):
        assert ioctls.flags(name) is None
        assert ioctls.mtu_bytes(name) is None
        assert ioctls.speed_mbits(name) is None
        assert not ioctls.wireless(name)


def test_this_very_machine() -> None:
    assert "lo" in interface_names()
    found = all_addresses()
    assert ("lo", "127.0.0.1", 8) in [(a.interface, a.address, a.prefix) for a in found]
    assert {a.interface for a in found} <= set(interface_names())
    loopback = candidates(["lo"])
    assert {a.address for a in loopback} <= {"127.0.0.1", "::1"}
    assert candidates(["lo"], exact=True) == loopback
    assert {a for a in candidates() if not a.address.startswith("fe80")} <= set(found)
    for address in candidates():
        ipaddress.ip_address(address.address)


async def test_netlink_answers_inside_a_running_loop() -> None:
    assert asyncio.get_running_loop().is_running()
    (lo,) = [link for link in links.links() if link.kind == "loopback"]
    assert (lo.name, lo.hardware, lo.mtu_bytes) == ("lo", False, ioctls.mtu_bytes("lo"))
    assert "127.0.0.1" in [a.address for a in lo.addresses]
