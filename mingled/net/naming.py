"""What kind of interface this is: by its name, and by what the kernel calls it."""

from __future__ import annotations

import re

from mingled.net.facts import Kind

_NAMES: tuple[tuple[Kind, str], ...] = (
    ("loopback", r"lo\d*$"),
    ("docker", r"docker\d+$|docker_gwbridge$|br-[0-9a-f]{12}$|(cni-)?podman\d|nerdctl\d"),
    ("bridge", r"virbr\d|(lxc|lxd|incus|xen)br|cni\d|cbr\d|weave$|br\d+$|vmbr\d|bridge\d"),
    ("bridge", r"ovs-|br-(int|tun|ex)$|vmnet|vboxnet"),
    ("dummy", r"dummy|kube-|nodelocaldns"),
    ("vxlan", r"flannel|vxlan|geneve?|genev_sys|cilium_"),
    ("vlan", r"vlan\d|.+\.\d+$"),
    ("veth", r"veth|cali|lxc|vethwe"),
    ("wifi", r"wl|wifi|ath\d"),
    ("wwan", r"ww"),
    ("infiniband", r"ib[\dps]"),
    ("wireguard", r"wg|nordlynx"),
    ("ppp", r"ppp"),
    ("tap", r"tap|vnet\d|macvtap"),
    ("tun", r"tun\d|utun|tailscale|zt|vpn|ipsec|nebula"),
    ("tunnel", r"gre|gif\d|sit\d|stf\d|ip6?tnl|tunl|ip_vti|ip6_vti|erspan"),
    ("bond", r"bond|team\d"),
    ("other", r"ifb|nlmon|awdl|llw|anpi|ap\d"),
)
"""The first that matches. Engines and hypervisors name their bridges themselves."""

_BY_NAME = tuple((kind, re.compile(pattern)) for kind, pattern in _NAMES)

_ENGINE = re.compile(
    r"docker|br-[0-9a-f]{12}$|(cni-)?podman\d|nerdctl\d|virbr\d|(lxc|lxd|incus|xen)br|cni\d|cbr\d|"
    r"weave|ovs-|br-(int|tun)$|vmnet|vboxnet"
)
"""Bridges whose addresses are often the same on every machine (docker0 is 172.17.0.1), so whoever
connects there reaches itself. br0 and vmbr0 are an administrator's, and usually the LAN."""

_HOST_SIDE = re.compile(r"veth[0-9a-f]{6,}$|cali|lxc|vethwe")
"""The host's end of a container's cable, as engines name it. The container's is called eth0."""

_BY_KERNEL: dict[str, Kind] = {
    **dict.fromkeys(("bond", "team", "hsr"), "bond"),
    **dict.fromkeys(("bridge", "openvswitch"), "bridge"),
    **dict.fromkeys(("veth", "netkit"), "veth"),
    **dict.fromkeys(("ipvtap", "macvtap"), "macvtap"),
    **dict.fromkeys(("vxlan", "geneve"), "vxlan"),
    **dict.fromkeys(("wwan", "rmnet"), "wwan"),
    **dict.fromkeys(
        ("gre", "gretap", "ip6gre", "ip6gretap", "erspan", "ip6erspan", "ipip", "sit", "ip6tnl"),
        "tunnel",
    ),
    **dict.fromkeys(("vti", "vti6", "xfrm", "gtp", "bareudp", "amt", "ovpn"), "tunnel"),
    "dsa": "ethernet",
    "dummy": "dummy",
    "ipoib": "infiniband",
    "ipvlan": "ipvlan",
    "macvlan": "macvlan",
    "ppp": "ppp",
    "tun": "tun",
    "vlan": "vlan",
    "vrf": "vrf",
    "wireguard": "wireguard",
}
"""`rtnl_link_ops.kind` of the kernel's drivers. A network card's driver has none."""

HARDWARE_KINDS = frozenset({"dsa", "ipoib", "wwan", "rmnet", "can"})
"""Kinds of the kernel that stand for a card all the same."""

ARPHRD_INFINIBAND, ARPHRD_PPP, ARPHRD_LOOPBACK, ARPHRD_NONE = 32, 512, 772, 0xFFFE


def kind_by_name(name: str) -> Kind:
    """What interfaces of this name usually are; `ethernet` where the name says nothing."""
    return next((kind for kind, pattern in _BY_NAME if pattern.match(name)), "ethernet")


def kind_by_kernel(name: str, said: str, arphrd: int, *, wireless: bool, tap: bool) -> Kind:
    """`said` is netlink's IFLA_INFO_KIND, empty for a card; `arphrd` its hardware type (ARPHRD_*);
    `tap`: a tun that carries Ethernet frames."""
    if said:
        if said == "tun" and tap:
            return "tap"
        kind = _BY_KERNEL.get(said, "other")
        return "docker" if kind == "bridge" and kind_by_name(name) == "docker" else kind
    if arphrd == ARPHRD_LOOPBACK:
        return "loopback"
    if wireless:
        return "wifi"
    if arphrd == ARPHRD_INFINIBAND:
        return "infiniband"
    if arphrd == ARPHRD_PPP:
        return "ppp"
    if arphrd == ARPHRD_NONE:  # no hardware address at all: a tunnel of an old kernel, a modem
        named = kind_by_name(name)
        return named if named in ("wwan", "wireguard", "tunnel") else "tun"
    return "ethernet"


def is_engines_bridge(name: str) -> bool:
    """Whether a container engine or hypervisor calls its bridges so."""
    return _ENGINE.match(name) is not None


def is_host_side(name: str) -> bool:
    """Whether an engine calls the host's end of a container's veth so."""
    return _HOST_SIDE.match(name) is not None
