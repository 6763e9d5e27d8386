"""The Python call and the client below it, against real private daemons and handwritten ones."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from msgspec.structs import replace

import mingled
from mingled import client, locks
from mingled.core import local
from mingled.core.codec import encode
from mingled.core.words import Form, JobId, Nonce
from mingled.errors import (
    BadInput,
    Cancelled,
    DaemonError,
    JoinTimeout,
    NotPermitted,
    Refused,
    VersionSkew,
)
from tests.core.samples import CONFIG, WHO
from tests.daemons import seats
from tests.unique import job

JOB = job("bert")
"""Not the one of another run of these tests: all use this machine's loopback."""

pytestmark = pytest.mark.usefixtures("runtime", "restored")


@pytest.fixture
def restored() -> Iterator[None]:
    """`apply` changes the environment of this very process."""
    with mock.patch.dict(os.environ):
        yield


# ---------------------------------------------------------------- mingled.join


def test_process_form() -> None:
    cfg = mingled.join(JOB, world_size=1, rank=0)
    assert (cfg.job, cfg.rank, cfg.world_size, cfg.nnodes) == (JOB, 0, 1, 1)
    assert (cfg.local_rank, cfg.local_world_size, cfg.node_rank) == (0, 1, 0)
    assert cfg.master_addr == cfg.address == "127.0.0.1"
    assert cfg.interface == "lo"
    assert cfg.init_method == f"tcp://127.0.0.1:{cfg.master_port}"
    (member,) = cfg.members
    assert (member.rank, member.nproc, member.address) == (0, 1, "127.0.0.1")
    (seat,) = seats()
    assert (seat.pid, seat.state, seat.form) == (os.getpid(), "released", Form.PROCESS)
    cfg.leave()
    cfg.leave()
    assert seats() == []


@pytest.mark.parametrize("nnodes", [1, "1", "1:1"])
def test_launcher_form(nnodes: int | str) -> None:
    with mingled.join(JOB, nnodes=nnodes, nproc_per_node=4, node_rank=0) as cfg:
        assert (cfg.node_rank, cfg.nnodes, cfg.nproc_per_node) == (0, 1, 4)
        assert (cfg.rank, cfg.world_size, cfg.local_world_size) == (0, 4, 4)
        env = cfg.to_env()
        assert (env["PET_NNODES"], env["PET_NPROC_PER_NODE"]) == ("1", "4")
        assert "RANK" not in env
    assert seats() == []


def test_plain_form() -> None:
    with mingled.join(JOB, rank=0) as cfg:
        assert (cfg.rank, cfg.world_size, cfg.members) == (0, 0, ())
        assert cfg.to_env()["MASTER_PORT"] == str(cfg.master_port)
        assert "WORLD_SIZE" not in cfg.to_env()


def test_apply_sets_what_to_env_says_and_the_next_job_does_not_read_it() -> None:
    with mingled.join(JOB + "1", world_size=1) as cfg:
        before = dict(os.environ)
        env = cfg.to_env()
        assert dict(os.environ) == before
        cfg.apply()
        assert {name: os.environ[name] for name in env} == env
        assert (env["RANK"], env["WORLD_SIZE"]) == ("0", "1")
    with pytest.raises(BadInput, match=f"job {JOB}2"):
        mingled.join(JOB + "2", timeout=5)  # neither a size nor a rank: RANK is the last job's
    with mingled.join(JOB + "2", rank=0) as plain:
        plain.apply()
        assert os.environ["MINGLE_JOB"] == JOB + "2"
        assert "WORLD_SIZE" not in os.environ


def test_rank_and_size_of_the_environment_are_defaults_of_one_form() -> None:
    os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "NODE_RANK": "0"})
    with mingled.join(JOB) as cfg:
        assert (cfg.config.form, cfg.world_size) == (Form.PROCESS, 1)
    with mingled.join(JOB, nnodes=1) as cfg:
        assert cfg.config.form is Form.LAUNCHER
    os.environ["RANK"] = "zero"
    with pytest.raises(BadInput, match="RANK='zero' in the environment is no number"):
        mingled.join(JOB)


def test_a_second_join_replaces_the_first_and_says_so() -> None:
    first = mingled.join(JOB, world_size=1)
    with pytest.warns(
        UserWarning, match=f"job {JOB} on .*: this replaces the earlier join of pid "
    ):
        second = mingled.join(JOB, world_size=1)
    first.leave()  # its lease is not the second's
    (seat,) = seats()
    assert seat.participant == second.config.members[0].participant
    second.leave()
    assert seats() == []


def test_a_newer_join_ends_one_that_waits() -> None:
    waiting = threading.Event()
    failures: list[BaseException] = []

    def wait() -> None:
        request = local.Join(job=JobId(JOB), form=Form.PROCESS, size_min=2, size_max=2)
        try:
            client.join(request, lambda _: waiting.set())
        except Cancelled as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(60)
    with mingled.join(JOB, world_size=1):
        thread.join(60)
    assert "a newer join of the same process took this place" in str(failures[0])


def test_an_exception_in_the_block_is_a_loss_and_goes_on() -> None:
    with pytest.raises(KeyError), mingled.join(JOB, world_size=1):
        raise KeyError("bug")
    assert seats() == []


def test_the_lease_outlives_the_config_object() -> None:
    assert mingled.join(JOB, world_size=1).rank == 0
    (seat,) = seats()
    assert seat.state == "released"


def test_the_lease_ends_with_the_process() -> None:
    code = f"import mingled; print(mingled.join({JOB!r}, world_size=1).rank)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
    with mingled.join(JOB, world_size=1):  # the daemon lives on: ask it
        while len(seats()) > 1:  # the kernel tells the daemon of that end after it told us
            pass
        assert [seat.pid for seat in seats()] == [os.getpid()]


def test_a_timeout() -> None:
    with pytest.raises(JoinTimeout, match=rf"job {JOB}: no rendezvous on .* 1 more never came"):
        mingled.join(JOB, world_size=2, timeout=0.5)
    assert seats() == []


def test_a_worker_of_torchrun_is_refused_with_the_hint(runtime: Path) -> None:
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    with pytest.raises(BadInput, match=f"mingle-wait --job {JOB} -- torchrun"):
        mingled.join(JOB, world_size=1)
    assert not runtime.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, f"job {JOB}"),
        ({"nnodes": 2, "rank": 0}, "give one kind"),
        ({"world_size": 1, "require_same": "tourch"}, "--require-same 'tourch': there are python"),
        ({"world_size": 1, "require_same": ["torch"]}, "want text"),
        ({"nproc_per_node": 2}, "add nnodes=N"),
        ({"nnodes": "many"}, "is no number and no MIN:MAX"),
        ({"nnodes": 0}, f"job {JOB}"),
        ({"nnodes": 2, "node_rank": 2}, f"job {JOB}"),
        ({"world_size": 2, "rank": -1}, f"job {JOB}"),
        ({"world_size": -1}, f"job {JOB}"),
        ({"nnodes": 1, "nproc_per_node": 0}, "--nproc-per-node 0"),
    ],
)
def test_arguments_that_cannot_work(
    runtime: Path, arguments: dict[str, object], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        mingled.join(JOB, **arguments)  # type: ignore[arg-type]  # wrong on purpose
    assert not runtime.exists()


@pytest.mark.parametrize("job", ["", "x" * 256, "a\0b", "\ud800"])
def test_impossible_job_ids(job: str) -> None:
    with pytest.raises(BadInput, match="job ID"):
        mingled.join(job, rank=0)


def test_importing_is_light() -> None:
    heavy = {"torch", "zeroconf", "asyncio", "click", "cryptography", "rich", "netifaces", "numpy"}
    for code in ("import mingled", "import mingled; mingled.join; mingled.DdpConfig"):
        code += f"; import sys; print(sorted({heavy!r} & set(sys.modules)))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"


# ---------------------------------------------------------------- daemons of all kinds


class FakeDaemon:
    """Answers each connection's first line with the next of `answers`, then hangs up."""

    def __init__(self, path: Path, answers: list[list[local.Local]]) -> None:
        self.requests: list[bytes] = []
        self._answers = answers
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._sock:
            for answer in self._answers:
                connection, _ = self._sock.accept()
                with connection:
                    self.requests.append(connection.makefile("rb").readline())
                    connection.sendall(b"".join(encode(message) for message in answer))

    def end(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


JOIN = local.Join(job=JobId(JOB), form=Form.PROCESS, size_min=2, size_max=2)


def refuse(code: str) -> list[local.Local]:
    return [local.Failed(code=code, sentence="a sentence")]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("version", VersionSkew),
        ("refused", Refused),
        ("not-permitted", NotPermitted),
        ("daemon", DaemonError),
        ("of a later release", mingled.MingleError),
    ],
)
def test_what_a_daemon_refuses_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: type[Exception]
) -> None:
    monkeypatch.setenv("MINGLE_SOCKET", str(tmp_path / "s"))
    daemon = FakeDaemon(tmp_path / "s", [refuse(code)])
    with pytest.raises(kind, match="a sentence"):
        client.join(JOIN, lambda _: None)
    daemon.end()
    assert b'"netns":' in daemon.requests[0]


def test_a_script_states_what_it_runs_and_is_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINGLE_SOCKET", str(tmp_path / "s"))
    monkeypatch.setenv("MINGLE_REQUIRE_SAME", "torch")
    differs = f"job {JOB}: gpu3\x1b[2J runs torch 2.11.0, the others 2.13.0"
    notice = local.Notice(kind="warning", sentence=differs)
    daemon = FakeDaemon(tmp_path / "s", [[notice, *refuse("refused")]] * 2)
    shown = "gpu3�\\[2J runs torch"
    for given, asked in ((None, b'["torch"]'), ("git, python", b'["python","git"]')):
        with pytest.warns(UserWarning, match=shown), pytest.raises(Refused):
            mingled.join(JOB, world_size=2, require_same=given)
        assert b'"require_same":' + asked in daemon.requests[-1]
        assert b'"python":"%d.%d.' % sys.version_info[:2] in daemon.requests[-1]
    daemon.end()


def test_a_daemon_that_hangs_up_at_once_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINGLE_SOCKET", str(tmp_path / "s"))
    daemon = FakeDaemon(tmp_path / "s", [[], refuse("refused")])
    with pytest.raises(Refused):
        client.join(JOIN, lambda _: None)
    daemon.end()


def test_a_daemon_that_hangs_up_later_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINGLE_SOCKET", str(tmp_path / "s"))
    notice = local.Notice(kind="hint", sentence="wait")
    daemon = FakeDaemon(tmp_path / "s", [[notice]])
    told: list[local.Local] = []
    with pytest.raises(DaemonError, match=r"the daemon at .*/s on .*: it ended or hung up"):
        client.join(JOIN, told.append)
    daemon.end()
    assert told == [notice]


def test_what_a_daemon_said_before_it_hung_up_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINGLE_SOCKET", str(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(tmp_path / "s"))
        daemon.listen()
        connection = client.find(JobId("bert"))
        served, _ = daemon.accept()
        with served:  # as a daemon does that has too many connections
            served.sendall(encode(local.Failed(code="refused", sentence="too many")))
    with pytest.raises(Refused, match="too many"):
        client.ask(connection, local.Status())


def test_rank_0_opens_the_store_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINGLE_SOCKET", str(tmp_path / "s"))
    asked: list[str] = []

    def open_store(address: str) -> int:
        asked.append(address)
        return {"10.0.0.1": 29500, "10.0.0.2": 0}[address]

    proofs = [Nonce(f"{n:032x}") for n in range(3)]
    addresses = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
    answers: list[object] = []

    def serve(daemon: socket.socket) -> None:
        connection, _ = daemon.accept()
        with connection, connection.makefile("rb") as lines:
            join = local.request_decoder.decode(lines.readline())
            assert isinstance(join, local.Join)
            answers.append(join.store)
            for proof, address in zip(proofs, addresses, strict=True):
                connection.sendall(encode(local.OpenStore(proof=proof, address=address)))
                answers.append(local.request_decoder.decode(lines.readline()))
            connection.sendall(encode(local.Ready(participant=WHO, config=CONFIG)))

    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(tmp_path / "s"))
        daemon.listen()
        thread = threading.Thread(target=serve, args=(daemon,))
        thread.start()
        lease = client.join(replace(JOIN, store=True), lambda _: None, open_store)
        thread.join(60)
    lease.connection.close()
    assert asked == list(addresses)
    assert answers == [
        True,
        local.StoreOpened(proof=proofs[0], port=29500),
        local.StoreFailed(proof=proofs[1], reason="port 0 of the store is not between 1 and 65535"),
        local.StoreFailed(proof=proofs[2], reason="'10.0.0.3'"),  # a KeyError's own words
    ]


def test_a_client_without_a_store_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINGLE_SOCKET", str(tmp_path / "s"))
    proof = Nonce("0" * 32)
    daemon = FakeDaemon(tmp_path / "s", [[local.OpenStore(proof=proof, address="10.0.0.1")]])
    with pytest.raises(DaemonError, match=r"it ended or hung up|Connection reset"):
        client.join(JOIN, lambda _: None)
    daemon.end()


def test_half_a_message_is_none_yet(tmp_path: Path) -> None:
    here, there = socket.socketpair()
    connection = client.Connection(here, tmp_path)
    line = encode(local.Done(count=1))
    with there:
        there.sendall(line[:-1])
        assert connection.pending() is None
        there.sendall(line[-1:] + line)
        assert connection.pending() == connection.pending() == local.Done(count=1)
        assert connection.pending() is None
    with pytest.raises(DaemonError, match="hung up"):
        connection.pending()
    connection.close()


def test_a_daemon_that_never_stays_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINGLE_SOCKET", str(tmp_path / "s"))
    daemon = FakeDaemon(tmp_path / "s", [[]] * client.ATTEMPTS_MAX)
    with pytest.raises(DaemonError, match="stayed long enough to be asked"):
        client.join(JOIN, lambda _: None)
    daemon.end()


def test_a_daemon_of_another_namespace_is_replaced_by_a_private_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SYSTEM_SOCKET", tmp_path / "s")
    daemon = FakeDaemon(tmp_path / "s", [refuse(local.OTHER_NAMESPACE)])
    with mingled.join(JOB, world_size=1) as cfg:
        assert cfg.rank == 0
    daemon.end()


def test_a_system_daemon_that_left_its_socket_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SYSTEM_SOCKET", tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    with mingled.join(JOB, world_size=1) as cfg:
        assert cfg.rank == 0


def test_a_runtime_folder_that_others_can_enter_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared))
    assert client.private_folder(create=False) == Path(f"/tmp/mingled-{os.getuid()}")


def test_a_runtime_folder_that_is_full(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *, wait: bool) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr(locks, "acquire", full)
    with pytest.raises(DaemonError, match=f"{runtime}/.* No space left on device; .* set XDG_"):
        mingled.join(JOB, rank=0)


def test_a_runtime_folder_too_long_for_a_socket_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert client.private_folder(create=False) == Path(f"/tmp/mingled-{os.getuid()}")


def test_a_private_folder_that_is_not_ours_alone_is_refused(runtime: Path) -> None:
    runtime.mkdir(mode=0o755)
    with pytest.raises(NotPermitted, match="is not a folder of yours alone"):
        mingled.join(JOB, rank=0)
    runtime.rmdir()
    runtime.symlink_to("/tmp")
    with pytest.raises(NotPermitted, match="is not a folder of yours alone"):
        mingled.join(JOB, rank=0)
