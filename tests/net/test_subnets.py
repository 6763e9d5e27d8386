"""Whether two addresses are in one subnet, as this machine sees it."""

from __future__ import annotations

import pytest

from mingled.errors import BadInput
from mingled.net.subnets import same_subnet

from .machines import link, machine

FACTS = machine(
    link("lo", "loopback", "127.0.0.1/8"),
    link("eth0", "ethernet", "10.0.0.1/24", "10.0.0.9/24", "10.5.0.1/16", "fd00::1/64"),
    link("eth1", "ethernet", "192.168.1.1/24", "fd00::1"),
    link("docker0", "docker", "172.17.0.1/16"),
)


@pytest.mark.parametrize(
    ("first", "second", "yes", "why"),
    [
        ("10.0.0.1", "10.0.0.200", True, "both are in 10.0.0.0/24 of eth0"),
        ("fd00::7", "fd00::8", True, "both are in fd00::/64 of eth0"),
        ("10.0.0.7", "10.0.0.7", True, "both are 10.0.0.7"),
        ("172.17.0.2", "172.17.0.3", True, "docker0, a container bridge: other machines may"),
        ("fe80::1%eth0", "fe80::2%eth0", True, "both are link-local on eth0"),
        ("127.0.0.1", "127.0.0.2", True, "127.0.0.0/8 of lo"),
        (
            "10.0.0.1",
            "192.168.1.5",
            False,
            "10.0.0.1 is in 10.0.0.0/24 of eth0, but 192.168.1.5 is in 192.168.1.0/24 of eth1",
        ),
        ("10.0.0.1", "8.8.8.8", False, "8.8.8.8 is in no subnet of this node"),
        ("10.0.0.1", "10.5.0.2", False, "10.5.0.2 is in 10.5.0.0/16 of eth0"),
        ("10.0.0.1", "fd00::1", False, "fd00::1 is in fd00::/64 of eth0"),
        ("fe80::1%eth0", "fe80::2%eth1", False, "fe80::1%eth0 is on eth0, but"),
        ("8.8.8.8", "1.1.1.1", None, "ask on one of those hosts"),
        ("fe80::1", "fe80::2%eth0", None, "name the interface too, as in fe80::1%eth0"),
        ("fe80::1%eth0", "fe80::2", None, "name the interface too, as in fe80::2%eth0"),
        ("fe80::1", "10.0.0.1", None, "fe80::1 is link-local, so no subnet has it and 10.0.0.1"),
        ("10.0.0.1", "fe80::1", None, "fe80::1 is link-local, so no subnet has it and 10.0.0.1"),
    ],
)
def test_answers(first: str, second: str, yes: bool | None, why: str) -> None:
    answer = same_subnet(FACTS, first, second)
    assert answer.yes is yes
    assert why in answer.why


def test_what_is_no_address_is_refused() -> None:
    for text in ("", "eth0", "10.0.0.0/24", "10.0.0", "gpu1"):
        with pytest.raises(BadInput, match="is not an address such as"):
            same_subnet(FACTS, "10.0.0.1", text)
