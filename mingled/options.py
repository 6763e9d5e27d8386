"""How one daemon is to run, and what of that can change while it does."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import msgspec

from mingled import keys
from mingled.core.datagrams import BROADCAST_PORT
from mingled.core.settings import Settings

LINK_PORT = 29_490
"""Fixed, so that a firewall can be opened for it; beside torch's 29500 and out of its way."""

AT_ONCE = ("log_level", "peers", "key_file", "key_may_come")
"""What a reload changes (SIGHUP, `systemctl reload`). The rest are sockets that are open, and what
jobs were told."""

_NAMES = {
    "interfaces": "interface",
    "subnets": "subnet",
    "rungs": "discovery",
    "key_may_come": "key_file",
}
"""What users call a field that is called otherwise."""


class Changes(msgspec.Struct, frozen=True):
    """Of one configuration to another, with the names in the file."""

    applied: tuple[str, ...]
    later: tuple[str, ...]  #: only a restart changes these

    @property
    def sentence(self) -> str:
        """For the log."""
        parts = []
        if self.applied:
            parts.append(f"changed: {', '.join(self.applied)}")
        if self.later:
            parts.append(f"restart mingled to change {', '.join(self.later)}")
        return "; ".join(parts) or "nothing has changed"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How one daemon is to run."""

    socket: Path
    socket_mode: int = 0o666  #: SO_PEERCRED decides what each user may do
    private: bool = False  #: one user's, for one job; ends with its last lease
    link_port: int = LINK_PORT
    key_file: Path | None = None  #: the cluster's keys; None: the job ID is the only secret
    key_may_come: bool = False  #: ... until there is /etc/mingled/key
    interfaces: tuple[str, ...] = ()  #: names or addresses allowed; empty: all
    subnets: tuple[str, ...] = ()  #: ... in CIDR notation
    peers: tuple[str, ...] = ()  #: hosts to ask, for every job
    rungs: tuple[str, ...] = ("mdns", "broadcast", "peers")
    broadcast_port: int = BROADCAST_PORT
    metrics_file: Path | None = None  #: for node_exporter, every `metrics.EVERY_S`
    log_level: str = "info"
    settings: Settings = Settings()

    def changes(self, new: Self) -> Changes:
        """What a reload makes of another configuration."""
        fields = self.__struct_fields__
        differ = [name for name in fields if getattr(self, name) != getattr(new, name)]

        def named(at_once: bool) -> tuple[str, ...]:
            names = (_NAMES.get(n, n) for n in differ if (n in AT_ONCE) == at_once)
            return tuple(dict.fromkeys(names))

        return Changes(applied=named(True), later=named(False))

    def with_changes(self, new: Self) -> Self:
        """What is in force after a reload: of what needs a restart the values from before, so that
        the next reload says so again."""
        now = {name: getattr(new, name) for name in AT_ONCE}
        return msgspec.structs.replace(self, **now)


def keyring(options: Options) -> keys.Keyring:
    """A daemon without a key is to have the machine's as soon as there is one. Raises as
    `keys.load`."""
    awaited = options.key_file is None and options.key_may_come
    return keys.Keyring(keys.SYSTEM if awaited else options.key_file, may_come=awaited)
