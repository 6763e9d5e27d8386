"""Machines made up: links for tables, and a stand-in for `netifaces`."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from mingled.net import ioctls, quick
from mingled.net.facts import Facts, Link, LinkAddress, reach_of

V4, V6, PACKET = int(socket.AF_INET), int(socket.AF_INET6), 17


def address(text: str, **more: Any) -> LinkAddress:
    """`10.0.0.1/24`; without a prefix it is 0."""
    plain, _, prefix = text.partition("/")
    return LinkAddress(address=plain, prefix=int(prefix or 0), reach=reach_of(plain), **more)


def link(name: str, kind: Any, *addresses: str | LinkAddress, **more: Any) -> Link:
    """Up, with a carrier."""
    given = {"up": True, "carrier": True, **more}
    own = tuple(address(a) if isinstance(a, str) else a for a in addresses)
    return Link(name=name, kind=kind, addresses=own, **given)


def machine(*links: Link, exact: bool = True) -> Facts:
    return Facts(links=links, exact=exact)


class FakeNetifaces:
    """Counts how often it is asked for addresses. As the real one does, it leaves out of the whole
    listing what has none of any family."""

    def __init__(self, has: dict[str, list[str]], default: dict[int, str]) -> None:
        self.has = has
        self.asked = 0
        self.bare: set[str] = set()
        self.default = default
        self.flags: dict[str, int] = {}
        self.speeds: dict[str, int] = {}
        self.wireless: set[str] = set()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Instead of netifaces and of what the kernel says by ioctl."""
        up = ioctls.IFF_UP | ioctls.IFF_RUNNING
        monkeypatch.setattr(quick, "netifaces", self.module)
        monkeypatch.setattr(ioctls, "index", lambda n: [*self.has].index(n) + 1)
        monkeypatch.setattr(ioctls, "flags", lambda n: self.flags.get(n, up))
        monkeypatch.setattr(ioctls, "settle", lambda _: None)
        monkeypatch.setattr(ioctls, "mtu_bytes", lambda _: 1500)
        monkeypatch.setattr(ioctls, "speed_mbits", lambda n: self.speeds.get(n))
        monkeypatch.setattr(ioctls, "wireless", lambda n: n in self.wireless)

    def module(self) -> SimpleNamespace:
        return SimpleNamespace(
            AF_INET=V4,
            AF_INET6=V6,
            AF_PACKET=PACKET,
            interfaces=lambda: list(self.has),
            ifaddresses=self._addresses,
            allifaddresses=self._all,
            gateways=lambda: {f: [("10.0.0.254", name, True)] for f, name in self.default.items()},
        )

    def _all(self) -> dict[str, dict[int, list[dict[str, str]]]]:
        self.asked += 1
        return {name: self._of(name) for name in self.has if name not in self.bare}

    def _addresses(self, name: str) -> dict[int, list[dict[str, str]]]:
        self.asked += 1
        return self._of(name)

    def _of(self, name: str) -> dict[int, list[dict[str, str]]]:
        if name not in self.has:
            raise ValueError("You must specify a valid interface name.")
        found: dict[int, list[dict[str, str]]] = {
            family: [self._entry(a) for a in self.has[name] if (":" in a) == (family == V6)]
            for family in (V4, V6)
        }
        return found | {PACKET: [{"addr": "02:00:00:00:00:01"}]}

    @staticmethod
    def _entry(text: str) -> dict[str, str]:
        plain, _, mask = text.partition("/")
        return {"addr": plain, "netmask": mask} if mask else {"addr": plain}
