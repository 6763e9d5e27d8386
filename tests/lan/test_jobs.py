"""Jobs on real LANs: whoever comes first, everybody gets the same address and a rank of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mingled.core.secrets import label_of
from mingled.core.settings import Settings
from mingled.core.words import JobId
from mingled.lab import Lan

from .conftest import MakeLan
from .helpers import (
    BIN,
    READY,
    SHOW,
    STAY,
    Done,
    Env,
    launch,
    nothing_left,
    status,
    wait,
)

NAMED = "/run/m.sock"
"""Not where clients look by themselves."""

ORDERS = ("rank 0 first", "rank 0 last", "all at once")

by_system_daemons = pytest.mark.parametrize("system", [False, True], ids=["private", "system"])


def prepare(lan: Lan, system: bool) -> Env:
    """With `system` a daemon of the system's kind on every node; what its clients need to know."""
    if not system:
        return {}
    for running in [launch(node, NAMED) for node in lan.nodes]:
        running.until(READY)
    return {"MINGLE_SOCKET": NAMED}


def run_job(lan: Lan, order: str, explicit: bool, env: Env) -> list[Done]:
    """One launcher on each node, the last node being the leader wherever rank 0 is asked for."""
    count = len(lan)
    everybody_automatic = not explicit and order == "all at once"

    def flags(number: int) -> list[str]:
        leads = number == count and not everybody_automatic
        rank = ["--node-rank", str(0 if leads else number)] if explicit or leads else []
        return ["--nnodes", str(count), *rank]

    waits = {}
    numbers = list(range(1, count + 1))
    if order == "rank 0 first":
        waits[count] = wait(lan.node(count), "bert", *flags(count), env=env)
        waits[count].until("1/")
    for number in numbers:
        if number not in waits and (number != count or order == "all at once"):
            waits[number] = wait(lan.node(number), "bert", *flags(number), env=env)
    if order == "rank 0 last":
        for other in waits.values():
            other.until("here: ")
        waits[count] = wait(lan.node(count), "bert", *flags(count), env=env)
    return [waits[number].well() for number in numbers]


def check_job(lan: Lan, ended: Sequence[Done], names: tuple[str, str]) -> int:
    """Everybody was told the same, and it is true. The number of rank 0's node."""
    rank_name, size_name = names
    envs = [done.env for done in ended]
    addresses = [node.address for node in lan.nodes]
    assert sorted(int(env[rank_name]) for env in envs) == list(range(len(lan)))
    assert {env[size_name] for env in envs} == {str(len(lan))}
    assert len({(env["MASTER_ADDR"], env["MASTER_PORT"], env["MINGLE_CLAIM"]) for env in envs}) == 1
    leader = next(n for n, env in enumerate(envs) if env[rank_name] == "0")
    assert envs[0]["MASTER_ADDR"] == addresses[leader]
    assert {env["MINGLE_LEADER_HOST"] for env in envs} == {lan.node(leader + 1).name}
    assert [env["MINGLE_ADDRESS"] for env in envs] == addresses
    for env in envs:
        assert env["MINGLE_INTERFACE"] == env["GLOO_SOCKET_IFNAME"] == env["TP_SOCKET_IFNAME"]
        assert (env["MINGLE_INTERFACE"], env["NCCL_SOCKET_IFNAME"]) == ("eth0", "=eth0")
    by_rank = sorted(range(len(lan)), key=lambda n: int(envs[n][rank_name]))
    assert {env["MINGLE_HOSTS"] for env in envs} == {",".join(addresses[n] for n in by_rank)}
    return leader + 1


@by_system_daemons
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "automatic"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_everybody_gets_the_same_rendezvous(
    lan: MakeLan, nodes: int, order: str, explicit: bool, system: bool
) -> None:
    some = lan(nodes=nodes)
    ended = run_job(some, order, explicit, prepare(some, system))
    leader = check_job(some, ended, ("PET_NODE_RANK", "PET_NNODES"))
    if explicit or order != "all at once":
        assert leader == nodes
    for number, done in enumerate(ended, start=1):
        if explicit and number != nodes:
            assert done.env["PET_NODE_RANK"] == str(number)
        assert done.env["PET_MASTER_ADDR"] == done.env["MASTER_ADDR"]
        assert done.env["PET_NPROC_PER_NODE"] == "1"
        assert "RANK" not in done.env  # torchrun gives it


def rivals() -> tuple[str, str]:
    """Two jobs whose search for a port begins at the same one."""
    seen: dict[int, str] = {}
    for number in range(Settings().port_count + 1):
        job = f"job{number}"
        first = sum(label_of(JobId(job), b"").encode()) * 7919 % Settings().port_count
        if first in seen:
            return seen[first], job
        seen[first] = job
    raise AssertionError


@by_system_daemons
def test_two_jobs_at_once_on_the_same_nodes(lan: MakeLan, system: bool) -> None:
    both = lan(nodes=2)
    env = prepare(both, system)
    waits = {
        (job, node.number): wait(
            node, job, "--world-size", "2", "--rank", str(node.number - 1), cmd=STAY, env=env
        )
        for job in rivals()
        for node in both.nodes
    }
    for running in waits.values():
        running.until("MINGLE_EXPORTED", kind="out")
    for node in both.nodes:
        jobs = {j["job"]: j for report in status(node, env) for j in report["jobs"]}
        assert set(jobs) == set(rivals())
        assert {tuple(m["state"] for m in j["rounds"][-1]["members"]) for j in jobs.values()} == {
            ("running", "running")
        }
        shown = node.run([str(BIN / "mingle"), "status"], env=env, check=True).stdout
        for job in rivals():
            assert f"job {job}: round" in shown
        assert all(n.name in shown and n.address in shown for n in both.nodes)
    ended = {key: running.finish() for key, running in waits.items()}
    ports = set()
    for job in rivals():
        envs = [ended[job, 1].env, ended[job, 2].env]
        assert check_job(both, [ended[job, 1], ended[job, 2]], ("RANK", "WORLD_SIZE")) == 1
        assert [e["MINGLE_JOB"] for e in envs] == [job, job]
        ports.add(envs[0]["MASTER_PORT"])
    assert len(ports) == 2


@by_system_daemons
def test_four_scripts_with_given_ranks(lan: MakeLan, system: bool) -> None:
    both = lan(nodes=2)
    env = prepare(both, system)
    where = {3: 2, 1: 2, 2: 1, 0: 1}  # rank: node
    waits = {
        rank: wait(both.node(n), "bert", env={**env, "RANK": str(rank), "WORLD_SIZE": "4"})
        for rank, n in where.items()
    }
    envs = {rank: running.well().env for rank, running in waits.items()}
    for rank, found in envs.items():
        assert found["RANK"] == str(rank)
        assert found["WORLD_SIZE"] == "4"
        assert found["LOCAL_WORLD_SIZE"] == "2"
        assert found["LOCAL_RANK"] == ("0" if rank in (0, 1) else "1")
        assert found["NODE_RANK"] == ("0" if where[rank] == 1 else "1")
        assert found["MASTER_ADDR"] == both.node(1).address
        assert "PET_NNODES" not in found
    assert len({found["MASTER_PORT"] for found in envs.values()}) == 1


@by_system_daemons
def test_four_scripts_with_automatic_ranks(lan: MakeLan, system: bool) -> None:
    both = lan(nodes=2)
    env = prepare(both, system)
    waits = [wait(both.node(n), "bert", "--world-size", "4", env=env) for n in (1, 2, 1, 2)]
    envs = [running.well().env for running in waits]
    assert sorted(e["RANK"] for e in envs) == ["0", "1", "2", "3"]
    for on_node in (envs[0::2], envs[1::2]):
        first = min(int(e["RANK"]) for e in on_node)
        assert first in (0, 2)  # contiguous on a node
        for e in on_node:
            assert int(e["RANK"]) == first + int(e["LOCAL_RANK"])
            assert (e["NODE_RANK"], e["LOCAL_WORLD_SIZE"]) == (str(first // 2), "2")
    leader = next(e for e in envs if e["RANK"] == "0")
    assert {e["MASTER_ADDR"] for e in envs} == {leader["MINGLE_ADDRESS"]}


@pytest.mark.parametrize("order", ORDERS)
def test_plain_form(lan: MakeLan, order: str) -> None:
    three = lan(nodes=3)
    ranks = [0, 1, 2] if order == "rank 0 first" else [1, 2, 0]
    waits = {}
    for rank in ranks:
        cmd = SHOW if rank else STAY
        waits[rank] = wait(three.node(rank + 1), "bert", "--rank", str(rank), cmd=cmd)
        if order == "rank 0 first" and rank == 0:
            waits[0].until("MINGLE_EXPORTED", kind="out")  # released alone
        if order == "rank 0 last" and rank != 0:
            waits[rank].until("waiting for rank 0")
    waits[1].well()
    waits[2].well()
    waits[0].finish()
    envs = {rank: running.well().env for rank, running in waits.items()}
    for rank, found in envs.items():
        assert found["RANK"] == str(rank)
        assert found["MASTER_ADDR"] == three.node(1).address
        assert (found["MINGLE_INTERFACE"], found["GLOO_SOCKET_IFNAME"]) == ("eth0", "eth0")
        assert "WORLD_SIZE" not in found
    assert len({found["MASTER_PORT"] for found in envs.values()}) == 1


def test_one_home_and_one_machine_id(lan: MakeLan, tmp_path: Path) -> None:
    both = lan(nodes=2)
    home = tmp_path / "home"
    home.mkdir()
    ids = {node.run(["cat", "/etc/machine-id"]).stdout for node in both.nodes}
    assert len(ids) == 1
    waits = [wait(node, "bert", "--nnodes", "2", env={"HOME": str(home)}) for node in both.nodes]
    ended = [running.well() for running in waits]
    check_job(both, ended, ("PET_NODE_RANK", "PET_NNODES"))
    nothing_left(both)
    assert list(home.iterdir()) == []
