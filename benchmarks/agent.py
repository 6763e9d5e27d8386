"""Runs on a node of the lab and does there what a benchmark says: a line of JSON in, lines out.

It stays, so that no interpreter's start is measured. Times are CLOCK_MONOTONIC in seconds, which
every namespace of a machine shares. With the argument `serve` it is the reference's barrier server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mingled import client
from mingled.core import local
from mingled.core.words import Form, JobId
from mingled.errors import DaemonError
from mingled.namespaces import network_namespace

SOCKET = Path("/run/mingled/control.sock")

BARRIER_PORT = 29_900

PATIENCE_S = 60.0
"""For 64 daemons that start at once on two cores."""

Order = dict[str, Any]


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        asyncio.run(_serve())
        return
    _say(up=True)
    with asyncio.Runner() as runner:
        runner.get_loop()
        for line in sys.stdin:
            order: Order = json.loads(line)
            _until(order.get("at"))
            match order["do"]:
                case "daemon":
                    _daemon()
                case "join":
                    _join(order)
                case "victim":
                    _victim(order)
                case "hold":
                    _hold(order)
                case "torch":
                    import torch.distributed.elastic.rendezvous.registry  # noqa: F401  # seconds

                    _say(up=True)
                case "rendezvous":
                    _rendezvous(order)
                case "barrier":
                    runner.run(_barrier(order))
                case "spawn":
                    _spawn(order)
                case "private":
                    _private(order)
                case "quiet":
                    _quiet(Path(order["folder"]))


def _say(**words: Any) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def _until(at: float | None) -> None:
    if at is not None:
        time.sleep(max(0.0, at - time.monotonic()))


# ---------------------------------------------------------------- mingled


def _daemon() -> None:
    """Wait until the node's daemon answers. Raises `DaemonError` where it never does."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            client.ask(client.connect(SOCKET), local.Status())
            _say(up=True)
            return
        except DaemonError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _join(order: Order) -> None:
    """Join, say how many are here at each change, wait for the release, and leave when told to."""
    connection, request, ready = _released(order)
    if order.get("watch"):
        _until_lost(connection)
    sys.stdin.readline()
    if ready is not None:
        client.Lease(connection, request, ready).leave()
    _say(left=True)


def _released(order: Order) -> tuple[client.Connection, local.Join, local.Ready | None]:
    """Join, and wait for the release. With `timeout_s` a failure is said; else it is raised."""
    connection = client.connect(SOCKET)
    request = local.Join(
        job=JobId(order["job"]),
        form=Form.LAUNCHER,
        size_min=order["size"],
        size_max=order["size"],
        rank=order["rank"],
        timeout_s=order.get("timeout_s"),
        netns=network_namespace(),
    )
    sent = time.monotonic()
    connection.send(request)
    while not isinstance(message := connection.receive(), local.Ready):
        if isinstance(message, local.Failed) and request.timeout_s is not None:
            _say(start=sent, end=time.monotonic(), failed=message.sentence)
            return connection, request, None
        if isinstance(message, local.Failed):
            raise DaemonError(message.sentence)
        if isinstance(message, local.Progress):
            _say(here=message.here)
    _say(start=sent, end=time.monotonic())
    return connection, request, message


def _hold(order: Order) -> None:
    """Join, say every change of a member's fate, and leave when told to."""
    connection, request, ready = _released(order)
    poll = select.poll()
    for source in (connection.fileno(), sys.stdin.fileno()):
        poll.register(source, select.POLLIN)
    while ready is not None:
        ends = [source for source, _ in poll.poll()]
        if sys.stdin.fileno() in ends:
            break
        if isinstance(news := connection.receive(), local.Gone):
            _say(gone=news.how, rank=news.rank, reason=news.reason)
    sys.stdin.readline()
    if ready is not None:
        client.Lease(connection, request, ready).leave()
    _say(left=True)


def _until_lost(connection: client.Connection) -> None:
    """Say when the loss of a member was told."""
    while not (isinstance(news := connection.receive(), local.Gone) and news.how == "lost"):
        pass
    _say(lost=time.monotonic())


def _victim(order: Order) -> None:
    """Join as a process of its own, which is killed when told to."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):  # whatever it is, it must not become an agent
            _released(order)
            signal.pause()  # the word to die is for the one above
        os._exit(1)
    sys.stdin.readline()
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    _say(killed=killed)


def _rendezvous(order: Order) -> None:
    """One round by torch's own interface, with the backend that is named."""
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    size, words = order["size"], {"timeout": 900}
    if order["endpoint"]:  # c10d else asks a DNS, which the lab has not
        words["is_host"] = order["endpoint"].startswith(f"{order['address']}:")
        words["local_addr"] = order["address"]
    parameters = RendezvousParameters(
        order["backend"], order["endpoint"], order["job"], size, size, **words
    )
    handler = get_rendezvous_handler(parameters)
    _say(here=1)
    start = time.monotonic()
    handler.next_rendezvous()
    _say(start=start, end=time.monotonic())
    sys.stdin.readline()
    handler.shutdown()
    _say(left=True)


def _private(order: Order) -> None:
    """Start a private daemon, and say when it can be asked."""
    start = time.monotonic()
    connection = client.find(JobId(order["job"]), private_only=True)
    _say(start=start, end=time.monotonic())
    connection.close()


# ---------------------------------------------------------------- the reference


async def _barrier(order: Order) -> None:
    """The same over one bare TCP connection: come, wait for everybody, go."""
    start = time.monotonic()
    reader, writer = await asyncio.open_connection(order["server"], BARRIER_PORT)
    writer.write(f"{order['job']} {order['size']}\n".encode())
    _say(here=1)
    if not await reader.readline():
        raise ConnectionError("the barrier's server hung up")
    end = time.monotonic()
    writer.close()
    await writer.wait_closed()
    _say(start=start, end=end)


async def _serve() -> None:
    waiting: dict[bytes, list[asyncio.StreamWriter]] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        job, size = (await reader.readline()).split()
        here = waiting.setdefault(job, [])
        here.append(writer)
        if len(here) == int(size):
            for other in waiting.pop(job):
                other.write(b"go\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "0.0.0.0", BARRIER_PORT, backlog=1024)
    _say(up=True)
    await server.serve_forever()


# ---------------------------------------------------------------- whole commands


def _spawn(order: Order) -> None:
    """Run a command to its end."""
    argv: list[str] = order["argv"]
    reader, writer = os.pipe()
    start = time.monotonic()
    pid = os.posix_spawn(
        argv[0],
        argv,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, writer, 2),
        ],
    )
    os.close(writer)
    status = os.waitpid(pid, 0)[1]
    end = time.monotonic()
    with open(reader, errors="backslashreplace") as said:
        _say(start=start, end=end, code=os.waitstatus_to_exitcode(status), err=said.read())


def _quiet(folder: Path) -> None:
    """Wait until the last private daemon has ended: it takes its socket with it."""
    while list(folder.glob("*.sock")):
        time.sleep(0.02)
    _say(quiet=True)


if __name__ == "__main__":
    main()
