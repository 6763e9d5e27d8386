"""What kind of interface a name, or the kernel's word, stands for."""

from __future__ import annotations

import pytest

from mingled.net.naming import (
    ARPHRD_INFINIBAND,
    ARPHRD_LOOPBACK,
    ARPHRD_NONE,
    ARPHRD_PPP,
    is_engines_bridge,
    is_host_side,
    kind_by_kernel,
    kind_by_name,
)

ETHER = 1


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ("lo lo0", "loopback"),
        ("eth0 eno1 ens3 enp0s31f6 enx00aabbccddee em1 en0 hsn0 rdma0", "ethernet"),
        ("wlan0 wlp2s0 wlx00aabb", "wifi"),
        ("wwan0 wwp0s20", "wwan"),
        ("ib0 ibp94s0 ibs1", "infiniband"),
        ("docker0 docker_gwbridge br-0123456789ab podman0 cni-podman0 nerdctl0", "docker"),
        ("br0 virbr0 lxcbr0 lxdbr0 cni0 cbr0 vmbr0 br-int ovs-system bridge100", "bridge"),
        ("vethab12cd3 veth0 cali12345 lxc0a1b", "veth"),
        ("flannel.1 vxlan.calico cilium_vxlan genev_sys_6081", "vxlan"),
        ("tun0 tailscale0 utun3 ztabcdef nebula1", "tun"),
        ("tap0 vnet3", "tap"),
        ("wg0 wg-quick nordlynx", "wireguard"),
        ("ppp0", "ppp"),
        ("gre0 sit0 tunl0 ip6tnl0 gif0", "tunnel"),
        ("bond0 team0", "bond"),
        ("eth0.5 vlan7 bond0.100", "vlan"),
        ("dummy0 kube-ipvs0 nodelocaldns", "dummy"),
        ("ifb0 awdl0", "other"),
    ],
)
def test_names(names: str, kind: str) -> None:
    assert {name: kind_by_name(name) for name in names.split()} == dict.fromkeys(
        names.split(), kind
    )


@pytest.mark.parametrize(
    ("name", "said", "arphrd", "wireless", "tap", "kind"),
    [
        ("eth0", "", ETHER, False, False, "ethernet"),
        ("docker9000", "", ETHER, False, False, "ethernet"),  # a card can be called anything
        ("eth0", "", ETHER, True, False, "wifi"),
        ("lo", "", ARPHRD_LOOPBACK, False, False, "loopback"),
        ("ib0", "", ARPHRD_INFINIBAND, False, False, "infiniband"),
        ("modem", "", ARPHRD_PPP, False, False, "ppp"),
        ("vpn0", "", ARPHRD_NONE, False, False, "tun"),
        ("wwan0", "", ARPHRD_NONE, False, False, "wwan"),
        ("docker0", "bridge", ETHER, False, False, "docker"),
        ("br0", "bridge", ETHER, False, False, "bridge"),
        ("virbr0", "bridge", ETHER, False, False, "bridge"),
        ("eth0", "veth", ETHER, False, False, "veth"),
        ("x", "tun", ARPHRD_NONE, False, False, "tun"),
        ("x", "tun", ETHER, False, True, "tap"),
        ("x", "wireguard", ARPHRD_NONE, False, False, "wireguard"),
        ("x", "geneve", ETHER, False, False, "vxlan"),
        ("x", "ip6gre", 823, False, False, "tunnel"),
        ("x", "team", ETHER, False, False, "bond"),
        ("x", "of the year 2040", ETHER, False, False, "other"),
    ],
)
def test_the_kernels_words(
    name: str, said: str, arphrd: int, wireless: bool, tap: bool, kind: str
) -> None:
    assert kind_by_kernel(name, said, arphrd, wireless=wireless, tap=tap) == kind


def test_whose_names_these_are() -> None:
    engines = ["docker0", "br-0123456789ab", "virbr0", "cni0", "lxdbr0", "ovs-system", "vmnet8"]
    administrators = ["br0", "vmbr0", "br-lan", "bridge0"]
    assert [n for n in engines + administrators if is_engines_bridge(n)] == engines
    assert is_host_side("veth12ab34c")
    assert not is_host_side("eth0")
    assert not is_host_side("veth0")
