"""What is fuzzed: a function of bytes that may raise nothing, and inputs to begin with."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from tests.fuzz import discovery, files, hello, lines, loops, shell

SOCKET_BYTES_MAX = 65 * 1024
"""The socket takes lines of 64 KiB."""

HELLO_BYTES_MAX = 20 * 1024
"""A record of TLS holds 16 KiB."""

DATAGRAM_BYTES_MAX = 2_048
"""Longer ones than are taken (1,500)."""

DNS_BYTES_MAX = 9_100
"""zeroconf drops what is longer than 8,966."""

CORE_BYTES_MAX = 128
"""About twenty events; the tests play longer runs, of seeds."""


class Target(NamedTuple):
    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    bytes_max: int
    what: str
    json: bool = False


def _core_seeds() -> list[bytes]:
    return [random.Random(seed).randbytes(8 << seed % 7) for seed in range(70)]


TARGETS: dict[str, Target] = {
    "socket-line": Target(
        lines.socket_line,
        lines.socket_seeds,
        SOCKET_BYTES_MAX,
        "lines on the Unix socket",
        json=True,
    ),
    "peer-hello": Target(
        hello.peer_hello, hello.hello_seeds, HELLO_BYTES_MAX, "a connection that is not let in yet"
    ),
    "peer-frame": Target(
        lines.peer_frame,
        lines.peer_seeds,
        SOCKET_BYTES_MAX,
        "frames of a peer that was let in",
        json=True,
    ),
    "mdns-text": Target(
        discovery.mdns_text,
        discovery.text_seeds,
        DNS_BYTES_MAX,
        "a TXT record and an instance's name",
    ),
    "mdns-packet": Target(
        discovery.mdns_packet, discovery.packet_seeds, DNS_BYTES_MAX, "a whole DNS message"
    ),
    "datagram": Target(
        discovery.datagram,
        discovery.datagram_seeds,
        DATAGRAM_BYTES_MAX,
        "a broadcast datagram",
        json=True,
    ),
    "configuration": Target(
        files.configuration, files.configuration_seeds, SOCKET_BYTES_MAX, "the configuration file"
    ),
    "core": Target(shell.play, _core_seeds, CORE_BYTES_MAX, "any events in any order"),
}


def close() -> None:
    """After the last input of a process that goes on."""
    discovery.close()
    files.close()
    hello.close()
    loops.close()
