"""A daemon's side of the Unix socket, played by a test line by line."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, TypeVar

from mingled.core import local
from mingled.core.codec import encode
from mingled.core.config import Config, Member
from mingled.core.words import Form, Nonce, ParticipantId

from .running import PATIENCE_S, WAIT, Running

JOB = "bert"
HOSTS = ("gpu1", "gpu2", "gpu3")
M = TypeVar("M", bound=local.Local)


def config(round_: int = 1, *, rank: int = 1, form: Form = Form.LAUNCHER, **changes: Any) -> Config:
    """Of this participant in a round of three nodes; address and port tell the rounds apart."""
    members = tuple(
        Member(
            rank=n,
            node_rank=n,
            local_index=0,
            nproc=1,
            global_rank=n,
            host=host,
            address=f"10.0.0.{n + 1}",
            user="ann",
            node=f"{n:032x}",
            participant=who(n),
        )
        for n, host in enumerate(HOSTS)
    )
    values: dict[str, Any] = {
        "job": JOB,
        "form": form,
        "round": round_,
        "claim": Nonce("c" * 32),
        "rank": rank,
        "master_addr": "10.0.0.1",
        "master_port": 29500 + round_,
        "interface": "eth0",
        "address": f"10.0.0.{rank + 1}",
        "nnodes": len(HOSTS),
        "node_rank": rank,
        "nproc_per_node": 1,
        "global_rank": rank,
        "world_size": len(HOSTS),
        "local_rank": 0,
        "local_world_size": 1,
        "members": members,
        "leader_host": "gpu1",
    }
    return Config(**(values | changes))


def who(rank: int) -> ParticipantId:
    return ParticipantId(f"{rank + 1:032x}")


def ready(round_: int = 1, *, rank: int = 1, **changes: Any) -> local.Ready:
    return local.Ready(participant=who(rank), config=config(round_, rank=rank, **changes))


def gone(how: Any = "lost", *, rank: int = 2, **changes: Any) -> local.Gone:
    values: dict[str, Any] = {"reason": "no sign of life", "ago_s": 4.2} | changes
    host, address = HOSTS[rank], f"10.0.0.{rank + 1}"
    return local.Gone(job=JOB, round=1, rank=rank, host=host, address=address, how=how, **values)


class Served:
    """One client's connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines = sock.makefile("rb")

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._sock.close()

    def request(self, kind: type[M]) -> M:
        """The next, which is of this kind."""
        self.size_bytes = len(line := self._lines.readline())
        message = local.request_decoder.decode(line)
        assert isinstance(message, kind), message
        return message

    def say(self, *messages: local.Local) -> None:
        self.say_bytes(b"".join(encode(message) for message in messages))

    def say_bytes(self, line: bytes) -> None:
        self._sock.sendall(line)

    def until_closed(self) -> None:
        assert self._lines.read() == b""


class FakeDaemon:
    """Listens until `end`; may then be started again at the same path, as a daemon is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._served: list[Served] = []
        self.start()

    def __enter__(self) -> FakeDaemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(PATIENCE_S)
        self._sock.bind(str(self.path))
        self._sock.listen()

    def end(self) -> None:
        """As a daemon ends: hangs up on everybody."""
        for served in self._served:
            served.close()
        self._sock.close()
        self.path.unlink(missing_ok=True)

    def accept(self) -> Served:
        sock, _ = self._sock.accept()
        sock.settimeout(PATIENCE_S)
        self._served.append(Served(sock))
        return self._served[-1]

    def join(self, *answer: local.Local) -> tuple[Served, local.Join]:
        """The next client asks to join, and is released."""
        served = self.accept()
        join = served.request(local.Join)
        served.say(*answer)
        return served, join

    def leave(self) -> local.Leave:
        """The next client ends its lease."""
        with self.accept() as served:
            leave = served.request(local.Leave)
            served.say(local.Done(count=1))
            return leave

    def environ(self, **more: str) -> dict[str, str]:
        """For a client of this daemon: nothing of ours around it but that."""
        ours = ("MINGLE", "PET_", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_", "TORCHELASTIC")
        schedulers = ("SLURM_", "OMPI_", "PMIX_", "SING_", "JOB_COMPLETION_INDEX")
        names = [name for name in os.environ if not name.startswith(ours + schedulers)]
        clean = {name: os.environ[name] for name in names}
        return {**clean, "MINGLE_SOCKET": str(self.path), **more}


THREE = ("--job", JOB, "--nnodes", "3")
RESTART = ("--on-lost", "restart")

SERVES = "echo ready $MASTER_PORT $PET_NODE_RANK; while :; do read line; done"
"""A CMD for `sh -c` that says so when it runs, and runs until it is ended."""


def start(daemon: FakeDaemon, *flags: str, cmd: str, **more: Any) -> Running:
    """mingle-wait with this script as CMD, on one of three nodes."""
    words = [*THREE, *flags, "--", "sh", "-c", cmd]
    return Running(WAIT, *words, env=daemon.environ(), **more)
