"""`mingled.torch` against real torch and real private daemons: in this process, and in several."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest

from mingled import client
from mingled.core import local
from mingled.core.words import Form, JobId
from mingled.errors import BadInput, JoinTimeout, Lost

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch
import torch.distributed as dist

import mingled.torch
from mingled.frameworks import process_group
from tests.core.samples import CONFIG, WHO
from tests.daemons import seats
from tests.frameworks.test_ddp import FakeLease
from tests.unique import job

JOB = job("bert")
"""Not the one of another run of these tests: all use this machine's loopback."""

pytestmark = [pytest.mark.usefixtures("runtime", "restored"), pytest.mark.torch]

Said = dict[str, Any]

API = 'mingled.torch.init_process_group("gloo", job=JOB, world_size=SIZE)'
URL = 'dist.init_process_group("gloo", init_method=f"mingle://{JOB}?world_size={SIZE}")'
TORCHS_OWN = 'dist.init_process_group("gloo")'

SCRIPT = """
import json, os, sys
import torch, torch.distributed as dist
import mingled.torch
JOB, SIZE, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for _ in range(rounds):
    {init}
    total = torch.tensor([dist.get_rank() + 1])
    dist.all_reduce(total)
    names = ("MINGLE_ROUND", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "GLOO_SOCKET_IFNAME")
    said = {{name: os.environ[name] for name in names}}
    said |= {{"rank": dist.get_rank(), "size": dist.get_world_size(), "sum": total.item()}}
    print(json.dumps(said), flush=True)
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.fixture
def restored() -> Iterator[None]:
    """The environment of this very process, its group and its stores."""
    with mock.patch.dict(os.environ):
        yield
    if dist.is_initialized():
        dist.destroy_process_group()
    for joined in process_group._GROUPS.values():
        joined.config.leave()
    process_group._GROUPS.clear()


def start(init: str, size: int, rounds: int = 1, by: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    script = SCRIPT.format(init=init)
    words = (*by, sys.executable, "-W", "error::UserWarning", "-c", script, JOB)
    return subprocess.Popen(
        [*words, str(size), str(rounds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(processes: list[subprocess.Popen[str]]) -> list[list[Said]]:
    """What each said, a line for each round, by rank in the first; all have ended well."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        found.append([json.loads(line) for line in out.splitlines() if line.startswith("{")])
    return sorted(found, key=lambda lines: int(lines[0]["rank"]))


def listens(port: int, address: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((address, port)).close()
    except ConnectionRefusedError:
        return False
    return True


# ---------------------------------------------------------------- several processes


def test_two_rounds_of_the_same_processes() -> None:
    lines = said([start(init, 3, rounds=2) for init in (API, API, URL)])
    for round_ in (0, 1):
        of_round = [by_rank[round_] for by_rank in lines]
        assert sorted(line["rank"] for line in of_round) == [0, 1, 2]
        assert {(line["size"], line["sum"]) for line in of_round} == {(3, 6)}
        assert {line["MINGLE_ROUND"] for line in of_round} == {str(round_ + 1)}
        assert {line["GLOO_SOCKET_IFNAME"] for line in of_round} == {"lo"}
        assert [line["LOCAL_RANK"] for line in of_round] == [str(line["rank"]) for line in of_round]
        assert len({line["MASTER_PORT"] for line in of_round}) == 1
    first, second = (lines[0][round_]["MASTER_PORT"] for round_ in (0, 1))
    assert first != second  # a new store


@pytest.mark.parametrize("leader", [API, TORCHS_OWN], ids=["ours leads", "env leads"])
def test_who_comes_by_mingle_wait_takes_part(leader: str) -> None:
    """`env://` opens its own store as rank 0, and waits for as many clients as there are to be."""

    def wait(rank: str) -> tuple[str, ...]:
        given = ("--job", JOB, "--world-size", "2", "--rank", rank, "--timeout", "60s", "--")
        return (sys.executable, "-m", "mingled.cli.wait", *given)

    ours = API.replace("SIZE)", f"SIZE, rank={0 if leader == API else 1})")
    other = start(TORCHS_OWN, 2, by=wait("1" if leader == API else "0"))
    lines = said([start(ours, 2), other])
    assert [(line["rank"], line["sum"]) for (line,) in lines] == [(0, 3), (1, 3)]


# ---------------------------------------------------------------- this process


def alone(**more: Any) -> mingled.DdpConfig:
    return mingled.torch.init_process_group("gloo", job=JOB, world_size=1, **more)


def test_it_returns_who_this_process_is() -> None:
    cfg = alone(timeout=timedelta(seconds=20))
    assert (cfg.rank, cfg.world_size) == (dist.get_rank(), dist.get_world_size()) == (0, 1)
    assert os.environ["MASTER_PORT"] == str(cfg.master_port)
    assert listens(cfg.master_port)
    assert dist.get_backend() == "gloo"
    assert dist.distributed_c10d._get_default_store().timeout == timedelta(seconds=20)


@pytest.mark.parametrize("by", ["argument", "url", "environment"])
def test_the_store_may_listen_on_its_own_address_alone(by: str) -> None:
    if by == "argument":
        alone(store_interface_only=True)
    elif by == "url":
        url = f"mingle://{JOB}?world_size=1&store_interface_only=1"
        dist.init_process_group("gloo", init_method=url)
    else:
        os.environ["MINGLE_STORE_INTERFACE_ONLY"] = "1"
        alone()
    port = int(os.environ["MASTER_PORT"])
    assert (os.environ["MASTER_ADDR"], listens(port)) == ("127.0.0.1", True)
    assert not listens(port, "127.0.0.2")
    dist.destroy_process_group()
    again = alone(store_interface_only=False)  # beats the environment
    assert listens(again.master_port, "127.0.0.2")


def test_the_backend_may_be_left_to_torch() -> None:
    mingled.torch.init_process_group(job=JOB, world_size=1)
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == 1


def test_an_interface_of_the_users_own_stays() -> None:
    os.environ["NCCL_SOCKET_IFNAME"] = "^docker"
    alone()
    assert os.environ["NCCL_SOCKET_IFNAME"] == "^docker"
    assert os.environ["TP_SOCKET_IFNAME"] == "lo"


def test_the_store_lives_until_the_next_rounds_takes_its_place() -> None:
    first = alone()
    dist.destroy_process_group()  # torch's own: others may not be done with theirs
    assert listens(first.master_port)
    assert len(seats()) == 1
    second = alone()
    assert not listens(first.master_port)
    assert listens(second.master_port)
    assert second.config.round == 2


def test_our_destroy_leaves_the_job_too() -> None:
    cfg = alone()
    part = dist.new_group([0])
    mingled.torch.destroy_process_group(part)
    assert dist.is_initialized()
    assert len(seats()) == 1
    mingled.torch.destroy_process_group()
    assert not dist.is_initialized()
    assert seats() == []
    assert listens(cfg.master_port)


def test_rank_and_size_may_come_from_the_environment() -> None:
    os.environ.update({"RANK": "0", "WORLD_SIZE": "1"})
    dist.init_process_group("gloo", init_method=f"mingle://{JOB}")
    assert (dist.get_rank(), dist.get_world_size()) == (0, 1)


def test_torchs_own_arguments_reach_the_url() -> None:
    dist.init_process_group("gloo", init_method=f"mingle://{JOB}?wait=0", rank=0, world_size=1)
    assert (dist.get_rank(), dist.get_world_size()) == (0, 1)


def test_a_warning_shows_the_users_own_line() -> None:
    os.environ["MASTER_ADDR"] = "10.9.9.9"
    with pytest.warns(UserWarning, match=r"MASTER_ADDR=10\.9\.9\.9 .* is replaced by") as caught:
        dist.init_process_group("gloo", init_method=f"mingle://{JOB}?world_size=1")
    assert [warning.filename for warning in caught] == [__file__]


def test_a_group_that_fails_is_a_loss_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Said] = []
    leave = client.Lease.leave

    def noted(lease: client.Lease, **how: Any) -> None:
        ends.append(how)
        leave(lease, **how)

    monkeypatch.setattr(client.Lease, "leave", noted)
    with pytest.raises(AttributeError):  # torch finds out when all have met
        alone(device_id="cuda:0")
    assert ends == [{"lost": True, "reason": "no process group: AttributeError"}]
    assert seats() == []


def test_a_rank_0_that_ended_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the seal and our connection to its store."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    config = msgspec.structs.replace(
        CONFIG,
        interface="lo",
        global_rank=1,
        world_size=2,
        master_addr="127.0.0.1",
        master_port=port,
    )
    join = local.Join(job=JobId(JOB), form=Form.PROCESS, size_min=2, size_max=2)
    lease = FakeLease(join, config, WHO)
    monkeypatch.setattr(client, "join", lambda *_: lease)
    monkeypatch.setattr(process_group, "CONNECT_S", 0.2)
    with pytest.raises(Lost, match=rf"rank 0's store at 127\.0\.0\.1:{port} cannot be reached"):
        mingled.torch.init_process_group("gloo", job=JOB, world_size=2, join_timeout=0.2)
    ((lost, reason),) = lease.ends
    assert lost
    assert "cannot be reached" in reason
    assert not dist.is_initialized()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"backend": "nccl"}, "the torch here has no backend 'nccl'; gloo works without a GPU"),
        ({"backend": "cpu:gloo,cuda:bogus"}, "the torch here has no backend 'bogus'"),
        ({"timeout": 0}, "timeout=0: want seconds above 0, or a timedelta"),
        ({"timeout": "1 min"}, "timeout='1 min': want seconds"),
        ({"join_timeout": timedelta(0)}, "join_timeout=0.0: want seconds above 0"),
        ({"world_size": None, "rank": 0}, "how many processes are there to be"),
        ({"world_size": None}, "how many processes are there to be"),
        ({"world_size": "2"}, "world_size='2'"),
        ({"job": 1}, "want a str"),
        ({"rank": 1}, "rank 1"),
    ],
)
def test_what_cannot_work_is_one_sentence(arguments: Said, sentence: str) -> None:
    if arguments.get("backend") == "nccl" and dist.is_nccl_available():
        pytest.skip("this torch has nccl")
    given: Said = {"backend": "gloo", "job": JOB, "world_size": 1} | arguments
    with pytest.raises(BadInput, match=sentence):
        mingled.torch.init_process_group(given.pop("backend"), **given)
    assert not dist.is_initialized()


def test_a_second_group_is_refused_before_anybody_waits() -> None:
    alone()
    with pytest.raises(BadInput, match=f"job {JOB}: this process has a process group already"):
        alone()
    assert len(seats()) == 1


def test_others_that_do_not_come() -> None:
    with pytest.raises(JoinTimeout, match=f"job {JOB}"):
        mingled.torch.init_process_group("gloo", job=JOB, world_size=2, join_timeout=0.2)
    with pytest.raises(JoinTimeout):
        mingled.torch.init_process_group(
            "gloo", job=JOB, world_size=2, timeout=timedelta(seconds=0.2)
        )


@pytest.mark.parametrize(
    ("query", "kind", "sentence"),
    [
        ("world_size=2&timeout=0.2", dist.DistStoreError, f"job {JOB}: no rendezvous"),
        ("world_size=two", ValueError, "world_size=two: want a number"),
        ("", ValueError, "how many processes .* Give world_size=N"),
        ("world_size=2&rank=2", ValueError, "rank 2"),
        ("world_size=1&interface=eth77", ValueError, "eth77"),
    ],
)
def test_torchs_callers_get_torchs_errors(query: str, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=f"using mingle:// rendezvous: .*{sentence}") as caught:
        dist.init_process_group("gloo", init_method=f"mingle://{JOB}?{query}")
    assert isinstance(caught.value.__cause__, mingled.MingleError)
    assert str(caught.value.__cause__) in str(caught.value)


def test_a_daemon_that_is_not_there(tmp_path: Path) -> None:
    os.environ["MINGLE_SOCKET"] = str(tmp_path / "none.sock")
    with pytest.raises(dist.DistNetworkError, match=r"none\.sock on .*: there is no such socket"):
        dist.init_process_group("gloo", init_method=f"mingle://{JOB}?world_size=1")


def test_a_worker_of_torchrun_has_what_it_needs() -> None:
    os.environ["TORCHELASTIC_RUN_ID"] = "1"
    with pytest.raises(BadInput, match="this is a worker of torchrun"):
        alone()


def test_without_torch_the_import_says_so() -> None:
    script = "import sys; sys.modules['torch'] = None; import mingled.torch"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "mingled.errors.BadInput: torch cannot be imported here" in done.stderr


def test_importing_it_twice_registers_once() -> None:
    importlib.reload(mingled.torch)
