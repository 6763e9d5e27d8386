"""Which of a machine's addresses are advertised, and in which order: on machines made up."""

from __future__ import annotations

import ipaddress
import socket
from types import SimpleNamespace

import pytest

from mingled.core.events import Address
from mingled.net import interfaces
from mingled.net.interfaces import (
    all_addresses,
    candidates,
    default_interfaces,
    interface_names,
    interface_of,
)

V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)


class Machine:
    """Stands in for `netifaces`; counts how often it is asked for addresses."""

    def __init__(self, has: dict[str, list[str]], default: dict[int, str]) -> None:
        self.has = has
        self.asked = 0
        self._default = default

    def module(self) -> SimpleNamespace:
        return SimpleNamespace(
            AF_INET=V4,
            AF_INET6=V6,
            interfaces=lambda: list(self.has),
            ifaddresses=self._addresses,
            gateways=lambda: {f: [("gateway", name, True)] for f, name in self._default.items()},
        )

    def _addresses(self, name: str) -> dict[int, list[dict[str, str]]]:
        self.asked += 1
        return {
            family: [{"addr": a} for a in self.has[name] if (":" in a) == (family == V6)]
            for family in (V4, V6)
        }


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(
        {
            "lo": ["127.0.0.1", "::1"],
            "docker0": ["172.17.0.1"],
            "wlan0": ["192.168.1.5"],
            "tailscale0": ["100.64.0.7"],
            "eth1": ["10.1.0.2", "fe80::2%eth1"],
            "eth0": ["fd00::1", "10.0.0.1", "fe80::1%eth0"],
            "veth12": ["10.9.9.9"],
            "down0": [],
        },
        {V4: "eth1"},
    )
    monkeypatch.setattr(interfaces, "_netifaces", made.module)
    monkeypatch.setattr(interfaces, "_known", {})
    return made


def names(found: tuple[Address, ...]) -> list[tuple[str, str]]:
    return [(a.interface, a.address) for a in found]


@pytest.mark.usefixtures("machine")
def test_the_best_address_comes_first() -> None:
    assert names(candidates()) == [
        ("eth1", "10.1.0.2"),  # the default route's
        ("eth0", "10.0.0.1"),  # wired
        ("eth0", "fd00::1"),
        ("tailscale0", "100.64.0.7"),  # wireless and tunnels last, container bridges never
        ("wlan0", "192.168.1.5"),
    ]
    assert default_interfaces() == ("eth1",)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["eth0"], ["10.0.0.1", "fd00::1"]),
        (["fd00::1"], ["fd00::1"]),
        (["docker0"], ["172.17.0.1"]),  # whoever names it means it
        (["wlan0", "eth0"], ["10.0.0.1", "fd00::1", "192.168.1.5"]),
        (["lo"], ["127.0.0.1", "::1"]),
        (["eth7"], []),
    ],
)
def test_what_the_user_allows(only: list[str], expected: list[str]) -> None:
    assert [a.address for a in candidates(only)] == expected


def test_loopback_only_where_there_is_nothing_else(machine: Machine) -> None:
    machine.has = {"lo": ["127.0.0.1", "::1"], "docker0": ["172.17.0.1"]}
    assert names(candidates()) == [("lo", "127.0.0.1"), ("lo", "::1")]
    machine.has = {}
    assert candidates() == ()


def test_what_is_no_address_is_left_out(machine: Machine) -> None:
    machine.has = {"eth0": ["nonsense", "", "10.0.0.1", "fd00::1%eth0", "fe80::1"]}
    assert names(tuple(all_addresses())) == [("eth0", "10.0.0.1"), ("eth0", "fd00::1")]


def test_the_interface_of_an_address_is_remembered(machine: Machine) -> None:
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


def test_an_address_of_two_interfaces_is_the_first_ones(machine: Machine) -> None:
    machine.has = {"eth0": ["10.0.0.1"], "eth1": ["10.0.0.1"]}
    assert interface_of("10.0.0.1") == "eth0"


def test_this_very_machine() -> None:
    assert "lo" in interface_names()
    found = all_addresses()
    assert ("lo", "127.0.0.1") in [(a.interface, a.address) for a in found]
    assert {a.interface for a in found} <= set(interface_names())
    assert set(candidates()) <= set(found)
    for address in candidates():
        ipaddress.ip_address(address.address)
