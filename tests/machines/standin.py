"""Stands for training: all ranks keep one TCP connection to rank 0, and count steps together. It
ends as training does when any of them is lost; `enough` in its folder ends it well."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

PAUSE_S = 0.05
SILENT_S = 20.0
"""So long nobody says anything: torch's own patience would be 15 s."""


def main() -> None:
    folder = Path(sys.argv[1])
    rank, size = int(os.environ["PET_NODE_RANK"]), int(os.environ["PET_NNODES"])
    place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    say(f"begins rank {rank} of {size} round {os.environ['MINGLE_ROUND']}")
    step = lead(folder, place, size) if rank == 0 else follow(place)
    say(f"ends at {step}")


def lead(folder: Path, place: tuple[str, int], size: int) -> int:
    with socket.create_server(place) as server:
        server.settimeout(SILENT_S)
        others = [server.accept()[0] for _ in range(size - 1)]
    step = 0
    while not (folder / "enough").exists():
        step += 1
        for other in others:
            other.sendall(f"{step}\n".encode())
        for other in others:
            heard(other)
        say(f"did {step}")
        time.sleep(PAUSE_S)
    for other in others:
        other.sendall(b"0\n")
    return step


def follow(place: tuple[str, int]) -> int:
    until = time.monotonic() + SILENT_S
    while True:
        try:
            leader = socket.create_connection(place, SILENT_S)
            break
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE_S)
    step = 0
    while (told := heard(leader)) != 0:
        step = told
        leader.sendall(f"{step}\n".encode())
        say(f"did {step}")
    return step


def heard(sock: socket.socket) -> int:
    sock.settimeout(SILENT_S)
    line = b""
    while not line.endswith(b"\n"):
        chunk = sock.recv(1)
        if not chunk:
            raise SystemExit("a peer has gone")
        line += chunk
    return int(line)


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  read by the test


main()
