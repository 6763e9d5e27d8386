"""Facts of this machine alone. Blocks; nothing is sent."""

from __future__ import annotations

import errno
import os
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from mingled.core.events import Address
from mingled.doctor.here import Daemons
from mingled.doctor.realms import held
from mingled.edges.machine import machine
from mingled.frameworks.environment import defaults
from mingled.net import interfaces, netlink
from mingled.net.facts import Facts

MDNS_PORT = 5353

NAMES = (
    *("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
"""Variables that a job's environment may contradict mingled with."""

FILE_BYTES_MAX = 1024 * 1024
"""Of /etc/hosts and the like: some block lists are that long, nothing else is."""

PROCESSES_MAX = 100_000
"""Looked through for who holds a port."""


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Of a UDP socket. `pid` and `name` are 0 and empty where we may not see whose it is."""

    uid: int
    pid: int = 0
    name: str = ""
    mingled: bool = False

    @property
    def words(self) -> str:
        if self.name:
            return f"{self.name} (pid {self.pid})"
        return f"a program of uid {self.uid} (run as root to see which)"


class Bridge(msgspec.Struct, frozen=True, kw_only=True):
    """A bridge of this machine. `querier`: it asks itself who is in which group."""

    name: str
    snooping: bool
    querier: bool


class Here(msgspec.Struct, frozen=True, kw_only=True):
    """What is known before anything is sent."""

    host: str
    daemons: Daemons
    facts: Facts
    candidates: tuple[Address, ...]
    machine: str
    environment: dict[str, str]  #: of NAMES, as somebody else than mingled set them
    hosts_file: str
    containers: tuple[str, ...]  #: what says that this is a container
    mdns_owners: tuple[Owner, ...]
    mdns_held: bool  #: 5353 cannot be shared
    bridges: tuple[Bridge, ...]
    name_servers: tuple[str, ...]
    key_trouble: str = ""  #: why the cluster key could not be read, though there is one
    unit: bool = False  #: systemd runs, and has a unit of mingled

    @property
    def own(self) -> frozenset[str]:
        return frozenset(a.address for link in self.facts.links for a in link.addresses)


def gather(daemons: Daemons) -> Here:
    facts = interfaces.facts()
    return Here(
        host=socket.gethostname(),
        daemons=daemons,
        facts=facts,
        candidates=interfaces.candidates(),
        machine=machine(),
        environment={n: v for n, v in defaults(os.environ).items() if n in NAMES and v},
        hosts_file=_read(Path("/etc/hosts")),
        containers=_containers(),
        mdns_owners=owners(MDNS_PORT),
        mdns_held=_held(MDNS_PORT),
        bridges=_bridges(),
        key_trouble=held().trouble,
        name_servers=_name_servers(_read(Path("/etc/resolv.conf"))),
        unit=has_unit(),
    )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode(errors="replace")
    except OSError:
        return ""


def has_unit(root: Path = Path("/")) -> bool:
    """Whether `systemctl start mingled` can do anything."""
    folders = ("etc", "run", "usr/local/lib", "usr/lib", "lib")
    return (root / "run/systemd/system").is_dir() and any(
        (root / folder / "systemd/system/mingled.service").exists() for folder in folders
    )


def tcp_user(port: int, proc: Path = Path("/proc")) -> str:
    """Whose socket listens on it; empty: none does, or it is not known. Needs no privilege."""
    for name in ("tcp", "tcp6"):
        for line in _read(proc / "self/net" / name).splitlines()[1:]:
            row = line.split()
            if len(row) > 7 and row[3] == "0A" and row[1].endswith(f":{port:04X}"):
                try:
                    return pwd.getpwuid(int(row[7])).pw_name
                except (KeyError, ValueError):
                    return ""
    return ""


def _containers(root: Path = Path("/")) -> tuple[str, ...]:
    found = [f"/{name}" for name in (".dockerenv", "run/.containerenv") if (root / name).exists()]
    groups = _read(root / "proc/1/cgroup")
    found += [
        f"/proc/1/cgroup names {word}"
        for word in ("docker", "kubepods", "containerd", "libpod", "lxc")
        if word in groups
    ]
    return tuple(found)


def _name_servers(conf: str) -> tuple[str, ...]:
    """The three that libc asks."""
    words = (line.split() for line in conf.splitlines())
    return tuple(w[1][:64] for w in words if len(w) > 1 and w[0] == "nameserver")[:3]


# ---------------------------------------------------------------- a port, and whose it is


def owners(port: int, proc: Path = Path("/proc")) -> tuple[Owner, ...]:
    """Of the UDP sockets bound to it, each process once."""
    inodes: dict[str, int] = {}
    for name in ("udp", "udp6"):
        inodes |= udp_inodes(_read(proc / "self/net" / name), port)
    pids = dict(_holders(set(inodes), proc)) if inodes else {}
    found = []
    for inode, uid in inodes.items():
        pid = pids.get(inode, 0)
        line = _read(proc / str(pid) / "cmdline").replace("\0", " ") if pid else ""
        found.append(
            Owner(
                uid=uid,
                pid=pid,
                name=_read(proc / str(pid) / "comm").strip() if pid else "",
                mingled="mingled" in line,
            )
        )
    return tuple(dict.fromkeys(found))


def udp_inodes(table: str, port: int) -> dict[str, int]:
    """Of /proc/net/udp: inode and uid of each socket on that port."""
    rows = (line.split() for line in table.splitlines()[1:])
    return {
        row[9]: int(row[7])
        for row in rows
        if len(row) > 9 and row[7].isdigit() and row[1].endswith(f":{port:04X}")
    }


def _holders(inodes: set[str], proc: Path) -> Iterator[tuple[str, int]]:
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    pids = [entry for entry in os.listdir(proc) if entry.isdigit()]
    for pid in pids[:PROCESSES_MAX]:
        try:
            for fd in os.scandir(proc / pid / "fd"):
                inode = wanted.get(os.readlink(fd.path))
                if inode:
                    yield inode, int(pid)
        except OSError:  # it ended, or is somebody else's
            continue


def _held(port: int) -> bool:
    """Whether somebody keeps it for himself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


# ---------------------------------------------------------------- bridges


def _bridges() -> tuple[Bridge, ...]:
    try:
        messages = netlink.ask(lambda ipr: list(ipr.get_links(kind="bridge")))
    except netlink.NoNetlink:
        return ()
    found = []
    for message in messages:
        attributes = _attributes(message)
        info = _attributes(attributes.get("IFLA_LINKINFO") or {})
        data = _attributes(info.get("IFLA_INFO_DATA") or {})
        if "IFLA_BR_MCAST_SNOOPING" in data:
            found.append(
                Bridge(
                    name=str(attributes.get("IFLA_IFNAME", "")),
                    snooping=bool(data["IFLA_BR_MCAST_SNOOPING"]),
                    querier=bool(data.get("IFLA_BR_MCAST_QUERIER")),
                )
            )
    return tuple(found)


def _attributes(message: Any) -> dict[str, Any]:
    return dict(message.get("attrs", ()))
