"""`mingled.torch` on real LANs: two processes a node, and IPv6 alone."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from .conftest import MakeLan, absent
from .helpers import nothing_left, python

pytestmark = pytest.mark.torch

SCRIPT = """
import json, os, sys
import torch, torch.distributed as dist
import mingled.torch
cfg = mingled.torch.init_process_group("gloo", job="bert", world_size=int(sys.argv[1]))
total = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(total)
said = {"rank": cfg.rank, "local": cfg.local_rank, "sum": total.item(), "master": cfg.master_addr}
said["family"] = os.environ.get("NCCL_SOCKET_FAMILY")
os.write(1, json.dumps(said).encode() + b"\\n")
dist.barrier()
mingled.torch.destroy_process_group()
"""

Said = dict[str, Any]


@pytest.fixture(autouse=True)
def _needs_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        absent("torch is not installed")


def test_two_processes_on_each_node(lan: MakeLan) -> None:
    both = lan(nodes=2)
    running = [python(node, SCRIPT, "4") for node in both.nodes for _ in range(2)]
    told: list[Said] = [json.loads(one.well().out) for one in running]
    assert sorted(one["rank"] for one in told) == [0, 1, 2, 3]
    assert [one["sum"] for one in told] == [10, 10, 10, 10]
    for pair in (told[:2], told[2:]):
        assert sorted(one["local"] for one in pair) == [0, 1]
    assert {one["family"] for one in told} == {None}
    nothing_left(both)


@pytest.mark.parametrize(
    ("ipv6", "only"), [(True, "0"), ("fd77::/64", "0"), (True, "1"), ("fd77::/64", "1")]
)
def test_nothing_but_ipv6(lan: MakeLan, ipv6: bool | str, only: str) -> None:
    """Link-local addresses need a scope, each node's own; also where the store listens on one."""
    both = lan(nodes=2, ipv4=False, ipv6=ipv6)
    env = {"MINGLE_STORE_INTERFACE_ONLY": only}
    told: list[Said] = [
        json.loads(one.well().out)
        for one in [python(node, SCRIPT, "2", env=env) for node in both.nodes]
    ]
    assert sorted(one["rank"] for one in told) == [0, 1]
    assert [one["sum"] for one in told] == [3, 3]
    assert {one["family"] for one in told} == {"AF_INET6"}
    (master,) = {one["master"] for one in told}
    assert master in {
        f"{node.address}%eth0" if ipv6 is True else node.address for node in both.nodes
    }
