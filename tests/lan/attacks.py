"""What a stranger on the network, or an ill-behaved user, does to a daemon: run as a script.

    python attacks.py garbage ADDRESS COUNT
    python attacks.py services COUNT LABEL-OR-EMPTY
    python attacks.py connections ADDRESS PORT COUNT
    python attacks.py clients SOCKET COUNT

Each says `done` on stdout once all has been sent or connected; what is open stays open until stdin
ends. Seeds are fixed: what breaks a daemon breaks it again.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

MDNS = ("224.0.0.251", 5353)
BROADCAST_PORT = 29_491

BURST = 32
PAUSE_S = 0.004
"""Between bursts: as much as fits into a receive buffer at once, or most would never arrive."""

CLIENT_HELLO_HEAD = bytes.fromhex("1603010200010001fc0303")
"""Of a TLS record that announces 512 bytes."""

TYPE = b"\x07_mingle\x04_tcp\x05local\x00"

TTL_S = 4_500

SLOW_EVERY_S = 0.2


def main() -> None:
    raise_descriptors()
    attack, *words = sys.argv[1:]
    held = ATTACKS[attack](*words)
    sys.stdout.write("done\n")
    sys.stdout.flush()
    held()


def raise_descriptors() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def until_told() -> None:
    sys.stdin.read()


# ---------------------------------------------------------------- datagrams


def garbage(address: str, count: str) -> Callable[[], None]:
    """Half to the broadcast port, half to multicast DNS, from random bytes to what is nearly
    right."""
    made = random.Random(32)
    json = itertools.cycle(
        [
            b'{"type":"who","node":"%s"}' % (b"0" * 32),
            b'{"type":"echo","node":"%s","token":"t","back":true,"pad":"%s"}'
            % (b"0" * 32, b"p" * 900),
            b'{"type":"ask","node":"%s","labels":["%s"]}' % (b"0" * 32, b"a" * 26),
            b'{"type":"advert","node":"","advert":{}}',
            b"[" * 1_400,
            b'{"type":"who","node":"\xff\xfe"}',
        ]
    )
    names = itertools.cycle(
        [
            b"\xc0\x0c\xc0\x0c",  # a name that points at itself
            b"\x3f" + b"x" * 63 + b"\x00",
            TYPE,
        ]
    )

    def ours() -> bytes:
        return made.choice([made.randbytes(made.randrange(1_472)), next(json)])

    def dns() -> bytes:
        head = struct.pack("!6H", made.randrange(65_536), made.choice([0, 0x8400]), 1, 60, 0, 0)
        tail = next(names) + struct.pack("!HHIH", made.choice([1, 12, 33]), 1, TTL_S, 400)
        return made.choice([made.randbytes(made.randrange(1_472)), head + tail * 3])

    to = [(address, BROADCAST_PORT), ("255.255.255.255", BROADCAST_PORT)]
    with sender() as sock:
        for number in paced(int(count)):
            if number % 2:
                sock.sendto(ours(), to[number // 2 % 2])
            else:
                sock.sendto(dns(), MDNS)
    return until_told


def services(count: str, label: str) -> Callable[[], None]:
    """Forged adverts. Each names an address where nothing is; every third comes without the records
    that say so, every fourth is of `label`, if there is one; the others' are made up."""
    made = random.Random(33)
    with sender() as sock:
        for number in paced(int(count)):
            name = "".join(made.choices("abcdefghijklmnopqrstuvwxyz234567", k=26))
            if label and number % 4 == 0:
                name = label
            packet = service(name, made.randbytes(16).hex(), number, whole=number % 3 != 0)
            sock.sendto(packet, MDNS)
    return until_told


def service(label: str, claim: str, number: int, *, whole: bool) -> bytes:
    """A response with one service, as a leader's daemon announces it (RFC 6762, RFC 6763)."""
    instance = f"{label}-{claim}".encode()
    name = bytes([len(instance)]) + instance + TYPE
    host = b"".join(bytes([len(p)]) + p for p in (f"mingle-{claim}".encode(), b"local")) + b"\x00"
    texts = (b"v=1", b"k=none", f"n={claim}".encode(), b"p=29490")
    records = [(TYPE, 12, 1, name)]
    if whole:
        text = b"".join(bytes([len(t)]) + t for t in texts)
        place = bytes((10, 77, 200 + number % 50, 1 + number % 250))
        records += [
            (name, 33, 0x8001, struct.pack("!3H", 0, 0, 29_490) + host),
            (name, 16, 0x8001, text),
            (host, 1, 0x8001, place),
        ]
    body = b"".join(
        owner + struct.pack("!HHIH", kind, class_, TTL_S, len(data)) + data
        for owner, kind, class_, data in records
    )
    return struct.pack("!6H", 0, 0x8400, 0, len(records), 0, 0) + body


def sender() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", MDNS[1]))  # or what it says counts as a simple resolver's
    return sock


def paced(count: int) -> Iterator[int]:
    for number in range(count):
        if number and number % BURST == 0:
            time.sleep(PAUSE_S)
        yield number


# ---------------------------------------------------------------- connections


def connections(address: str, port: str, count: str) -> Callable[[], None]:
    """A third says nothing, a third garbage, a third the beginning of a ClientHello."""
    made = random.Random(5)
    held = []
    for number in range(int(count)):
        sock = socket.create_connection((address, int(port)), timeout=60)
        word = (b"", made.randbytes(200), CLIENT_HELLO_HEAD + made.randbytes(40))[number % 3]
        with contextlib.suppress(ConnectionError):  # it is hung up on already
            sock.sendall(word)
        held.append(sock)

    def hold() -> None:
        until_told()
        held.clear()

    return hold


def clients(path: str, count: str) -> Callable[[], None]:
    """A third says nothing, a third a byte now and then, a third asks and does not read."""
    held: list[socket.socket] = []
    for number in range(int(count)):
        sock = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):  # it is hung up on already
            sock.connect(path)
            sock.sendall((b"", b"{", b'{"type":"status"}\n' * 20)[number % 3])
        held.append(sock)

    def slowly() -> None:
        while not select.select([sys.stdin], [], [], SLOW_EVERY_S)[0]:
            for sock in held[1::3]:
                with contextlib.suppress(OSError):
                    sock.send(b" ")

    return slowly


ATTACKS: dict[str, Callable[..., Callable[[], None]]] = {
    "garbage": garbage,
    "services": services,
    "connections": connections,
    "clients": clients,
}

if __name__ == "__main__":
    main()
