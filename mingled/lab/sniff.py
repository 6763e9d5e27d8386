"""Runs on a node, as a script: copies what passes a card to stdout, in pcap format.

tcpdump cannot do this part rootless (it insists on changing its user), and when stopped it forgets
what it has not read yet. Arguments: interface, and what `tcpdump -ddd` makes of the filter.
Says "listening" on stderr once nothing is missed any more. When stdin closes, it copies what has
passed until then and ends.
"""

import contextlib
import ctypes
import select
import socket
import struct
import sys
import time

_ETH_P_ALL = 3
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER_BYTES = 32 << 20  # what a burst may pile up while we are not scheduled
_PACKET_BYTES_MAX = 1 << 18
_ETHERNET = 1


def main() -> None:
    interface, program = sys.argv[1:]
    # Protocol 0 receives nothing: the filter is in place before the first packet comes.
    card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with contextlib.suppress(OSError):
        card.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
    _attach(card, program)
    card.bind((interface, _ETH_P_ALL))
    card.setblocking(False)
    out = sys.stdout.buffer
    out.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, _PACKET_BYTES_MAX, _ETHERNET))
    out.flush()
    sys.stderr.write("listening\n")
    sys.stderr.flush()
    stopping = False
    while not stopping:
        readable, _, _ = select.select([card, sys.stdin], [], [])
        stopping = sys.stdin in readable
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = card.recv(_PACKET_BYTES_MAX)
                now_us = time.time_ns() // 1000
                size = len(packet)
                out.write(struct.pack("=IIII", *divmod(now_us, 1_000_000), size, size) + packet)
        out.flush()


def _attach(card: socket.socket, program: str) -> None:
    """Give the kernel a classic BPF program: struct sock_fprog of linux/filter.h."""
    count, *lines = program.split("\n")
    code = b"".join(struct.pack("=HBBI", *map(int, line.split())) for line in lines if line)
    buffer = ctypes.create_string_buffer(code)
    fprog = struct.pack("@HP", int(count), ctypes.addressof(buffer))
    card.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


if __name__ == "__main__":
    main()
