"""The control socket against clients that do not behave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from mingled.core import events, local
from mingled.core.codec import encode
from mingled.core.config import Config
from mingled.core.words import Form, JobId, Nonce, ParticipantId
from mingled.edges import control
from mingled.processes import user_name

from .waiting import until

JOIN = b'{"type":"join","job":"bert","form":"process","size_min":2,"size_max":2}\n'
WHO = ParticipantId("a" * 32)
HINT = local.Notice(kind="hint", sentence="hi")
CONFIG = Config(
    job="bert",
    form=Form.PROCESS,
    round=1,
    claim=Nonce("c" * 32),
    rank=1,
    master_addr="10.0.0.1",
    master_port=29_500,
    interface="eth0",
    address="10.0.0.2",
    nnodes=2,
    node_rank=1,
    nproc_per_node=1,
    global_rank=1,
    world_size=2,
    local_rank=0,
    local_world_size=1,
    members=(),
    leader_host="one",
)
REATTACH = local.Reattach(
    join=local.Join(job=JobId("bert"), form=Form.PROCESS, size_min=2, size_max=2),
    participant=WHO,
    config=CONFIG,
)


NOBODY = 65_534

AS_NOBODY = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *(sys.executable, "-Sc"),
    "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
    "s.sendall(sys.argv[2].encode()); sys.stdin.read()",
]
"""Says a line to a socket as another user, and stays until its stdin ends."""


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user as well")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def descriptors_are(count: int) -> bool:
    """Waits until so many are open: who hung up is noticed by and by."""
    return await until(lambda: descriptors() == count)


class Daemon:
    """What a daemon is to its control socket: it hears of events."""

    def __init__(self, path: Path, netns: int | None = None) -> None:
        self.path = path
        self.events: asyncio.Queue[events.Event] = asyncio.Queue()
        self.watched: list[tuple[ParticipantId, int]] = []
        self.control = control.Control(self.events.put_nowait, self._watch, netns)
        self.listener = control.Listener(path, 0o666)

    def _watch(self, participant: ParticipantId, pid: int, pidfd: int) -> None:
        os.close(pidfd)
        self.watched.append((participant, pid))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path))

    async def answers(self, data: bytes) -> list[local.Local]:
        """Everything that is said to somebody who says `data`, until the daemon hangs up."""
        reader, writer = await self.connect()
        writer.write(data)
        lines = [local.reply_decoder.decode(line) async for line in reader]
        writer.close()
        return list(lines)

    async def reattach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
        """A connection that asks for WHO's seat, and its request."""
        reader, writer = await self.connect()
        writer.write(encode(REATTACH))
        asked = await self.events.get()
        assert isinstance(asked, events.ReattachAsked)
        assert (asked.participant, asked.join, asked.config) == (WHO, REATTACH.join, CONFIG)
        assert (asked.holder.pid, asked.holder.uid) == (os.getpid(), os.getuid())
        return reader, writer, asked.request

    async def seat(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that has it."""
        reader, writer, request = await self.reattach()
        self.control.seat(WHO, request)
        self.control.answer(request, local.Done(count=1))
        assert local.reply_decoder.decode(await reader.readline()) == local.Done(count=1)
        return reader, writer


@pytest.fixture
async def daemon() -> AsyncIterator[Daemon]:
    with tempfile.TemporaryDirectory() as folder:  # every user may enter it
        os.chmod(folder, 0o755)
        running = Daemon(Path(folder, "s"))
        await running.control.start(running.listener.sock)
        yield running
        await running.control.close()
        running.listener.close()
        assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\xff\xfe\n", "request"),
        (b'{"type":"sta\n', "request"),
        (b"\n", "request"),
        (b"[" * 5000 + b"\n", "request"),
        (b'{"type":"reboot"}\n', "reboot"),
        (b'{"type":"join","job":"bert"}\n', "form"),
        (b'{"type":"join","job":"","form":"plain","rank":0}\n', "the job ID is empty"),
        (JOIN.replace(b"bert", b"a\\nb"), "control character U+000A"),
        (JOIN.replace(b"bert", b"x" * 256), "256 bytes"),
        (JOIN.replace(b'"size_max":2', b'"size_max":2,"rank":2'), "job bert"),
        (JOIN.replace(b'"size_max":2', b'"size_max":1e99'), "request"),
    ],
)
async def test_fault_36_what_is_no_request_is_answered_and_hung_up_on(
    daemon: Daemon, data: bytes, sentence: str
) -> None:
    (failed,) = await daemon.answers(data)
    assert isinstance(failed, local.Failed)
    assert failed.code == "bad-input"
    assert sentence in failed.sentence
    assert daemon.events.empty()


async def test_fault_35_a_line_that_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LINE_SIZE_BYTES_MAX", 100)
    daemon = Daemon(tmp_path / "s")
    await daemon.control.start(daemon.listener.sock)
    (failed,) = await daemon.answers(b"x" * 101)
    assert isinstance(failed, local.Failed)
    assert (failed.code, "longer than 100 bytes" in failed.sentence) == ("bad-input", True)
    await daemon.control.close()
    daemon.listener.close()


async def test_fault_35_a_line_as_long_as_may_be(daemon: Daemon) -> None:
    _reader, writer = await daemon.connect()
    line = b'{"type":"status","pad":"' + b"x" * (local.LINE_SIZE_BYTES_MAX - 28) + b'"}\n'
    assert len(line) == local.LINE_SIZE_BYTES_MAX - 1
    writer.write(line)
    asked = await daemon.events.get()
    assert isinstance(asked, events.StatusAsked)
    (failed,) = await daemon.answers(line.replace(b"xxx", b"x" * 7))
    assert isinstance(failed, local.Failed)
    assert "longer than 65536 bytes" in failed.sentence
    writer.close()


async def test_fault_37_a_line_that_is_never_whole(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then buys no time, neither for the first line nor for a later one, nor once
    one is a participant."""
    monkeypatch.setattr(control, "FIRST_LINE_S", 0.2)

    async def drips(first: bytes) -> list[bytes]:
        loop, heard = asyncio.get_running_loop(), b""
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            client.connect(str(daemon.path))
            client.sendall(first)
            while True:
                try:
                    async with asyncio.timeout(0.02):
                        said = await loop.sock_recv(client, 65_536)
                except TimeoutError:
                    with contextlib.suppress(BrokenPipeError):
                        client.send(b" ")
                    continue
                except ConnectionResetError:  # some of it was never read
                    said = b""
                if not said:
                    return heard.splitlines()
                heard += said

    before = descriptors()
    answers = await asyncio.gather(*(drips(b"") for _ in range(20)), drips(JOIN))
    for (line,) in answers:
        failed = local.reply_decoder.decode(line)
        assert isinstance(failed, local.Failed)
        assert "no request within 0.2 s" in failed.sentence
    asked = await daemon.events.get()
    assert isinstance(asked, events.JoinAsked)
    vanished = events.ClientVanished(participant=asked.participant)
    assert await daemon.events.get() == vanished
    assert await descriptors_are(before)


async def test_fault_37_whoever_asks_and_does_not_read(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not asked on, and leaves no descriptor behind, though its answer never went out."""
    monkeypatch.setattr(control, "FIRST_LINE_S", 0.05)
    before = descriptors()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(daemon.path))
    client.sendall(b'{"type":"status"}\n' * 2)
    await daemon.events.get()
    asked = await daemon.events.get()
    assert isinstance(asked, events.StatusAsked)
    daemon.control.answer(asked.request, local.Notice(kind="hint", sentence="x" * 500_000))
    assert await descriptors_are(before + 1)
    client.close()


@AS_ROOT
async def test_fault_07_the_kernel_says_who_asks(daemon: Daemon) -> None:
    """Every request carries the uid of SO_PEERCRED, whatever the line says."""
    for line, kind in (
        (b'{"type":"status","uid":0}\n', events.StatusAsked),
        (b'{"type":"leave","job":"bert","uid":0}\n', events.LeaveAsked),
        (b'{"type":"adopt","token":"t","pid":1,"uid":0}\n', events.AdoptAsked),
        (JOIN.replace(b"}", b',"uid":0,"user":"root"}'), events.JoinAsked),
    ):
        done = await asyncio.create_subprocess_exec(
            *AS_NOBODY, str(daemon.path), line, stdin=subprocess.PIPE
        )
        asked = await daemon.events.get()
        assert isinstance(asked, kind)
        if isinstance(asked, events.JoinAsked):
            holder = asked.holder
            assert (holder.uid, holder.pid) == (NOBODY, done.pid)
            assert holder.user == user_name(NOBODY)
        else:
            assert isinstance(asked, events.StatusAsked | events.LeaveAsked | events.AdoptAsked)
            assert asked.uid == NOBODY
        await done.communicate(b"")
    assert isinstance(await daemon.events.get(), events.ClientVanished)


async def test_fault_37_a_thousand_clients_that_leave_no_descriptor(daemon: Daemon) -> None:
    before = descriptors()
    lines = [b"", b"x", b"\n", b'{"type":"status"}', JOIN[:40], b'{"type":"adopt"}\n']
    for at in range(1_000):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(daemon.path))
            client.sendall(lines[at % len(lines)])
        await asyncio.sleep(0)
    assert await descriptors_are(before)
    assert daemon.events.empty()
    assert daemon.control._requests == {}


async def test_fault_37_a_client_that_says_nothing(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "FIRST_LINE_S", 0.01)
    (failed,) = await daemon.answers(b'{"type"')
    assert isinstance(failed, local.Failed)
    assert (failed.code, "within 0.01 s" in failed.sentence) == ("bad-input", True)


@pytest.mark.parametrize("version", [(2, 0), (0, 0), (1, 2)])
@pytest.mark.parametrize(
    "request_",
    [
        local.Status(),
        REATTACH,
        local.StoreOpened(proof=Nonce("0" * 32), port=1),
        local.StoreFailed(proof=Nonce("0" * 32), reason="x"),
    ],
    ids=lambda request: type(request).__name__,
)
async def test_fault_43_another_version_is_refused(
    daemon: Daemon, request_: local.Request, version: tuple[int, int]
) -> None:
    (failed,) = await daemon.answers(encode(msgspec.structs.replace(request_, version=version)))
    assert isinstance(failed, local.Failed)
    assert failed.code == "version"
    said = ".".join(map(str, version))
    assert f"the client (pid {os.getpid()}) speaks version {said}" in failed.sentence
    assert "install the same mingled on both" in failed.sentence


async def test_a_minor_apart_and_fields_of_the_future_are_served(daemon: Daemon) -> None:
    reader, writer = await daemon.connect()
    writer.write(b'{"type":"status","version":[1,1],"colour":"red"}\n')
    asked = await daemon.events.get()
    assert isinstance(asked, events.StatusAsked)
    assert asked.uid == os.getuid()
    daemon.control.answer(asked.request, local.Done(count=7))
    assert local.reply_decoder.decode(await reader.readline()) == local.Done(count=7)
    writer.close()


async def test_fault_44_a_join_is_told_of_and_so_is_its_end(daemon: Daemon) -> None:
    reader, writer = await daemon.connect()
    writer.write(JOIN)
    asked = await daemon.events.get()
    assert isinstance(asked, events.JoinAsked)
    assert (asked.join.job, asked.join.form) == ("bert", Form.PROCESS)
    assert (asked.holder.pid, asked.holder.uid) == (os.getpid(), os.getuid())
    assert daemon.watched == [(asked.participant, os.getpid())]
    daemon.control.tell(asked.participant, local.Notice(kind="hint", sentence="hi"))
    assert b'"hi"' in await reader.readline()
    writer.close()
    vanished = await daemon.events.get()
    assert vanished == events.ClientVanished(participant=asked.participant)
    daemon.control.tell(asked.participant, local.Notice(kind="hint", sentence="nobody hears"))


@pytest.mark.parametrize("first", [JOIN, encode(REATTACH)], ids=["join", "reattach"])
@pytest.mark.parametrize("second", [JOIN, encode(REATTACH)], ids=["join", "reattach"])
async def test_two_joins_on_one_connection(daemon: Daemon, first: bytes, second: bytes) -> None:
    (failed,) = await daemon.answers(first + second)
    assert isinstance(failed, local.Failed)
    assert "one join a connection" in failed.sentence
    if first == JOIN:
        assert isinstance(await daemon.events.get(), events.JoinAsked)
        assert isinstance(await daemon.events.get(), events.ClientVanished)
    else:
        assert isinstance(await daemon.events.get(), events.ReattachAsked)
    assert daemon.events.empty()


async def test_a_connection_that_is_seated_is_the_participants(daemon: Daemon) -> None:
    reader, writer = await daemon.seat()
    assert daemon.watched == [(WHO, os.getpid())]
    daemon.control.tell(WHO, HINT)
    assert local.reply_decoder.decode(await reader.readline()) == HINT
    writer.write(encode(local.StoreFailed(proof=Nonce("0" * 32), reason="full")))
    failed = events.StoreFailed(participant=WHO, proof=Nonce("0" * 32), reason="full")
    assert await daemon.events.get() == failed
    writer.close()
    assert await daemon.events.get() == events.ClientVanished(participant=WHO)


async def test_a_connection_that_is_seated_may_say_nothing(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer, request = await daemon.reattach()
    monkeypatch.setattr(control, "FIRST_LINE_S", 0.01)
    writer.write(b'{"type":"status"}\n')  # after each line the patience is looked up anew
    asked = await daemon.events.get()
    assert isinstance(asked, events.StatusAsked)
    daemon.control.answer(asked.request, local.Done(count=0))
    await reader.readline()
    await daemon.answers(b"")  # another's patience is over
    daemon.control.seat(WHO, request)
    await daemon.answers(b"")
    daemon.control.tell(WHO, HINT)
    assert local.reply_decoder.decode(await reader.readline()) == HINT
    assert daemon.events.empty()
    writer.close()
    await daemon.events.get()


async def test_a_reattach_that_fails_is_hung_up_on(daemon: Daemon) -> None:
    before = descriptors()
    reader, writer, request = await daemon.reattach()
    daemon.control.answer(request, local.Failed(code="refused", sentence="no"))
    failed = local.reply_decoder.decode(await reader.readline())
    assert failed == local.Failed(code="refused", sentence="no")
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert daemon.watched == []
    assert daemon.events.empty()
    assert await descriptors_are(before)


async def test_a_new_connection_replaces_the_old(daemon: Daemon) -> None:
    old, old_writer = await daemon.seat()
    new, new_writer = await daemon.seat()
    assert await old.read() == b""
    assert daemon.events.empty()
    daemon.control.tell(WHO, HINT)
    assert local.reply_decoder.decode(await new.readline()) == HINT
    assert daemon.watched == [(WHO, os.getpid())] * 2
    old_writer.close()
    new_writer.close()
    assert await daemon.events.get() == events.ClientVanished(participant=WHO)
    assert daemon.events.empty()


async def test_fault_44_whoever_hangs_up_before_it_is_seated_has_vanished(daemon: Daemon) -> None:
    _reader, writer, request = await daemon.reattach()
    writer.close()
    await asyncio.wait(daemon.control._tasks)
    daemon.control.seat(WHO, request)
    daemon.control.answer(request, local.Done(count=1))
    assert await daemon.events.get() == events.ClientVanished(participant=WHO)
    assert daemon.watched == [(WHO, os.getpid())]  # the process may still be there


async def test_a_reattach_that_is_never_answered_leaves_no_descriptor(daemon: Daemon) -> None:
    _reader, writer, _request = await daemon.reattach()
    ((_pid, pidfd),) = daemon.control._opened.values()
    await daemon.control.close()
    with pytest.raises(OSError):
        os.fstat(pidfd)
    writer.close()


async def test_a_store_is_told_of(daemon: Daemon) -> None:
    _reader, writer = await daemon.connect()
    proof = Nonce("0" * 32)
    writer.write(JOIN + encode(local.StoreOpened(proof=proof, port=29_500)))
    asked = await daemon.events.get()
    assert isinstance(asked, events.JoinAsked)
    opened = events.StoreOpened(participant=asked.participant, proof=proof, port=29_500)
    assert await daemon.events.get() == opened
    writer.close()
    await daemon.events.get()


@pytest.mark.parametrize(
    "said",
    [
        local.StoreOpened(proof=Nonce("0" * 32), port=29_500),
        local.StoreFailed(proof=Nonce("0" * 32), reason="full"),
    ],
    ids=["opened", "failed"],
)
async def test_a_store_of_nobody(daemon: Daemon, said: local.Local) -> None:
    (failed,) = await daemon.answers(encode(said))
    assert isinstance(failed, local.Failed)
    assert (failed.code, "join a job on this connection" in failed.sentence) == ("bad-input", True)
    assert daemon.events.empty()


@pytest.mark.parametrize("request_", [JOIN, encode(REATTACH)], ids=["join", "reattach"])
async def test_whom_the_kernel_does_not_name(
    daemon: Daemon, request_: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = events.Holder(pid=0, identity="?", uid=-1, user="?", watched=False)
    monkeypatch.setattr(control, "open_peer", lambda _: (nobody, None))
    (failed,) = await daemon.answers(request_)
    assert isinstance(failed, local.Failed)
    assert "does not say who you are" in failed.sentence
    assert daemon.events.empty()


@pytest.mark.parametrize(
    "asked",
    [
        msgspec.structs.replace(REATTACH.join, netns=2),
        msgspec.structs.replace(REATTACH, join=msgspec.structs.replace(REATTACH.join, netns=2)),
    ],
    ids=["join", "reattach"],
)
async def test_a_client_of_another_network_namespace(tmp_path: Path, asked: local.Local) -> None:
    daemon = Daemon(tmp_path / "s", netns=1)
    await daemon.control.start(daemon.listener.sock)
    (failed,) = await daemon.answers(encode(asked))
    assert isinstance(failed, local.Failed)
    assert failed.code == local.OTHER_NAMESPACE
    assert daemon.events.empty()
    await daemon.control.close()
    daemon.listener.close()


async def test_adopting_a_process_that_is_not_there(daemon: Daemon) -> None:
    for pid in (0, -1, 2**31 - 1, 2**40):
        _reader, writer = await daemon.connect()
        writer.write(msgspec.json.encode({"type": "adopt", "token": "t", "pid": pid}) + b"\n")
        asked = await daemon.events.get()
        assert isinstance(asked, events.AdoptAsked)
        assert asked.holder is None
        writer.close()


async def test_a_client_that_does_not_read_is_hung_up_on(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "UNSENT_BYTES_MAX", 1000)
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(daemon.path))
    client.sendall(JOIN)
    asked = await daemon.events.get()
    assert isinstance(asked, events.JoinAsked)
    long = local.Notice(kind="hint", sentence="x" * 500_000)
    for _ in range(5):
        daemon.control.tell(asked.participant, long)
    assert await daemon.events.get() == events.ClientVanished(participant=asked.participant)
    client.close()
