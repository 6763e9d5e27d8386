"""The interfaces as the kernel itself describes them, over netlink: kinds, ports, lifetimes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mingled.net import ioctls, netlink, quick
from mingled.net.facts import Facts, Link, LinkAddress, Origin, State, reach_of
from mingled.net.naming import HARDWARE_KINDS, kind_by_kernel

_AF_INET6 = 10
_AF_BRIDGE = 7
_IFF_LOOPBACK = 0x8
_TUN_TYPE_TAP = 2

# linux/if_addr.h
_IFA_F_TEMPORARY = 0x01  # of IPv4 it would be IFA_F_SECONDARY
_IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x08, 0x20, 0x40
_IFA_F_OPTIMISTIC, _IFA_F_PERMANENT = 0x04, 0x80
_BY_KERNEL = (1, 3)  # IFA_PROTO: loopback, link-local


def links() -> tuple[Link, ...]:
    """All interfaces of this network namespace, by index.

    Raises:
        netlink.NoNetlink: it does not answer; `quick.facts()` knows less, and always answers.
    """
    for name in quick.names():
        ioctls.settle(name)
    every, addresses = netlink.ask(lambda ipr: (list(ipr.get_links()), list(ipr.get_addr())))
    by_index: dict[int, list[LinkAddress]] = {}
    for message in addresses:
        found = _address(message)
        if found is not None:
            by_index.setdefault(int(message["index"]), []).append(found)
    # AF_BRIDGE messages are about ports, and double the interface.
    messages = {int(m["index"]): m for m in every if m["family"] != _AF_BRIDGE}
    names = {index: str(_attributes(m).get("IFLA_IFNAME", "")) for index, m in messages.items()}
    gateways = quick.default_gateways()
    return tuple(
        _link(messages[index], names, by_index.get(index, ()), gateways.get(names[index], ()))
        for index in sorted(messages)
    )


def facts() -> Facts:
    """From netlink; where it does not answer from netifaces, with the reason."""
    try:
        return Facts(links=links(), exact=True)
    except netlink.NoNetlink as error:
        return quick.facts(str(error))


def _link(
    message: Mapping[str, Any],
    names: Mapping[int, str],
    addresses: Iterable[LinkAddress],
    gateways: tuple[str, ...],
) -> Link:
    attributes = _attributes(message)
    index, name = int(message["index"]), str(attributes.get("IFLA_IFNAME", ""))
    info = _attributes(attributes.get("IFLA_LINKINFO") or {})
    said = str(info.get("IFLA_INFO_KIND") or "")
    wireless = not said and ioctls.wireless(name)
    kind = kind_by_kernel(name, said, int(message["ifi_type"]), wireless=wireless, tap=_tap(info))
    up = bool(message["flags"] & ioctls.IFF_UP)
    elsewhere = attributes.get("IFLA_LINK_NETNSID") is not None
    return Link(
        name=name,
        kind=kind,
        index=index,
        hardware=_hardware(message, attributes, said),
        up=up,
        carrier=_carrier(message, attributes) if up else None,
        state=str(attributes.get("IFLA_OPERSTATE") or "unknown").lower(),
        speed_mbits=quick.speed_of(name, kind),
        mtu_bytes=int(attributes.get("IFLA_MTU") or 0),
        mac=str(attributes.get("IFLA_ADDRESS") or ""),
        addresses=tuple(sorted(addresses, key=lambda a: ":" in a.address)),
        gateways=gateways,
        master=names.get(int(attributes.get("IFLA_MASTER") or 0), ""),
        parent="" if elsewhere else names.get(int(attributes.get("IFLA_LINK") or 0), ""),
        peer_elsewhere=elsewhere,
    )


def _carrier(message: Mapping[str, Any], attributes: Mapping[str, Any]) -> bool:
    """Of one that is switched on: else the kernel does not look. IFF_RUNNING knows of logins too
    (802.1X)."""
    running = bool(message["flags"] & ioctls.IFF_RUNNING)
    return running and attributes.get("IFLA_CARRIER") != 0


def _hardware(message: Mapping[str, Any], attributes: Mapping[str, Any], said: str) -> bool:
    """A card has a bus that it sits on (IFLA_PARENT_DEV_NAME, Linux 5.14), or at least no software
    driver's kind. A virtual machine's card counts: the machine cannot tell."""
    if attributes.get("IFLA_PARENT_DEV_NAME"):
        return True
    if said:
        return said in HARDWARE_KINDS
    return not message["flags"] & _IFF_LOOPBACK


def _tap(info: Mapping[str, Any]) -> bool:
    data = _attributes(info.get("IFLA_INFO_DATA") or {})
    return data.get("IFLA_TUN_TYPE") == _TUN_TYPE_TAP


def _address(message: Mapping[str, Any]) -> LinkAddress | None:
    attributes = _attributes(message)
    # On a point-to-point interface IFA_ADDRESS is the peer's.
    text = attributes.get("IFA_LOCAL") or attributes.get("IFA_ADDRESS")
    if not text:
        return None
    ipv6 = message["family"] == _AF_INET6
    flags = int(attributes.get("IFA_FLAGS") or message["flags"])
    address = str(text)
    return LinkAddress(
        address=address,
        prefix=int(message["prefixlen"]),
        reach=reach_of(address),
        origin=_origin(address, flags, attributes.get("IFA_PROTO"), ipv6=ipv6),
        state=_state(flags) if ipv6 else "ok",
    )


def _origin(address: str, flags: int, protocol: object, *, ipv6: bool) -> Origin:
    if not flags & _IFA_F_PERMANENT:  # it has a lifetime: DHCP, or a router's advertisement
        return "dynamic"
    if protocol in _BY_KERNEL or (ipv6 and reach_of(address) == "link-local"):
        return "automatic"
    return "automatic" if reach_of(address) == "loopback" else "static"


def _state(flags: int) -> State:
    if flags & _IFA_F_DADFAILED:
        return "duplicate"
    # An optimistic address may be used while it is found out (RFC 4429).
    if flags & _IFA_F_TENTATIVE and not flags & _IFA_F_OPTIMISTIC:
        return "tentative"
    if flags & _IFA_F_DEPRECATED:
        return "deprecated"
    return "temporary" if flags & _IFA_F_TEMPORARY else "ok"


def _attributes(message: Mapping[str, Any]) -> dict[str, Any]:
    return dict(message.get("attrs", ()))
